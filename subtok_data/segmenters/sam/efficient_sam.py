"""EfficientSAM as a segmenter and as a prompter, from its official files.

EfficientSAM (Xiong et al., arXiv 2312.00863) is SAM with a small encoder. Mask generation,
partition and prompting are those of SAM; here is only what differs in the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subtok_data.devices import resolve_device
from subtok_data.errors import PromptError, WeightsError
from subtok_data.segment import FillRules, PaintOrder, Prompts
from subtok_data.segmenters.sam.decoder import PromptableModel, PromptChunk
from subtok_data.segmenters.sam.efficient_sam_onnx import ONNXFiles
from subtok_data.segmenters.sam.efficient_sam_torchscript import (
    GRID,
    WANTED,
    EfficientSAMFiles,
    TorchScriptFile,
)
from subtok_data.segmenters.sam.mask_generation import GenerationOptions, PointDecoder
from subtok_data.segmenters.sam.prompter import ModelPrompter
from subtok_data.segmenters.sam.segmenter import SAMSegmenter

__all__ = [
    "DEFAULT_OPTIONS",
    "MAX_POINTS",
    "EfficientSAMDecoder",
    "EfficientSAMPrompter",
    "EfficientSAMSegmenter",
    "open_efficient_sam",
]

MAX_POINTS = 6
"""Points that the model takes for a prompt, the two corners of a box among them."""

DEFAULT_OPTIONS = GenerationOptions(iou_threshold=0.7, stability_threshold=0.9)
"""The filters of the official notebook."""


class EfficientSAMDecoder:
    """EfficientSAM, as mask generation and prompters see it.

    The model always gives three masks. It has no embedding for a click outside the object, cuts
    points off after the sixth, and takes no mask; prompts that need these are errors here.

    Parameters
    ----------
    model : EfficientSAMFiles
        See :func:`open_efficient_sam`.
    """

    def __init__(self, model: EfficientSAMFiles) -> None:
        self.model = model

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.model.device

    def encode(self, crops: Sequence[NDArray[np.uint8]]) -> list[tuple[Tensor, tuple[int, int]]]:
        """Embed (h, w, 3) crops; those of one size in one call of the encoder."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for place, crop in enumerate(crops):
            groups.setdefault(crop.shape, []).append(place)
        found: dict[int, tuple[Tensor, tuple[int, int]]] = {}
        for (height, width, _), members in groups.items():
            pixels = torch.from_numpy(np.stack([crops[place] for place in members]))
            embeddings = self.model.embed(pixels.permute(0, 3, 1, 2).float() / 255)
            for row, place in enumerate(members):
                found[place] = embeddings[row : row + 1], (height, width)
        return [found[place] for place in range(len(crops))]

    def check(self, prompts: Prompts) -> None:
        """Raise PromptError for points outside the object, too many points, or a mask."""
        used = prompts.labels >= 0
        counts = used.sum(1) + 2 * prompts.has_box
        for index, name in enumerate(prompts.ids):
            if (prompts.labels[index] == 0).any():
                problem = (
                    "a point with label 0 (outside the object), which EfficientSAM would take for "
                    "no click at all: leave it out, or use SAMPrompter"
                )
            elif counts[index] > MAX_POINTS:
                problem = (
                    f"{counts[index]} points (a box has 2), of which EfficientSAM would leave out "
                    f"those after {MAX_POINTS}: give fewer"
                )
            elif prompts.has_mask[index]:
                problem = (
                    "a mask together with a box or points, and EfficientSAM takes no mask: give "
                    "the mask alone, which is then taken as it is, or use SAMPrompter"
                )
            else:
                self.model.check(int(counts[index]))
                continue
            raise PromptError(f"prompt {name} has {problem}")

    def decode(self, embedding: Any, points: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        """Return logits (P, 3, h, w) and predicted IoU (P, 3) for (x, y) points of the crop."""
        return self.prompt(embedding, PromptChunk.of_points(points))

    def prompt(
        self, embedding: tuple[Tensor, tuple[int, int]], chunk: PromptChunk
    ) -> tuple[Tensor, Tensor]:
        """Return logits (P, 3, h, w) and predicted IoU (P, 3); a box is two points, 2 and 3."""
        features, (height, width) = embedding
        points, labels = chunk.points, chunk.labels
        if chunk.boxes is not None:
            corners = np.tile(np.array([[2, 3]]), (len(chunk), 1))
            points = np.concatenate([chunk.boxes.reshape(-1, 2, 2), points], axis=1)
            labels = np.concatenate([corners, labels], axis=1)
        scaled = (points * (GRID / width, GRID / height)).astype(np.float32)
        return self.model.predict(features, torch.from_numpy(scaled), torch.from_numpy(labels))

    def to_logits(self, embedding: Any, masks: Tensor) -> Tensor:
        """Raise PromptError: the model takes no mask."""
        del embedding
        raise PromptError(f"EfficientSAM takes no masks, got {len(masks)}")

    def upscale(self, embedding: tuple[Tensor, tuple[int, int]], logits: Tensor) -> Tensor:
        """Bring logits (K, h, w) to the size of the crop, as the TorchScript model does it."""
        return torch.nn.functional.interpolate(
            logits[None], embedding[1], mode="bicubic", align_corners=False
        )[0]

    def to(self, device: str | torch.device) -> None:
        """Move the model to a device."""
        self.model.to(device)

    def identity(self) -> str:
        """Return the SHA-256 of the model's files."""
        return self.model.identity()

    def save(self, folder: Path) -> None:
        """Copy the model's files."""
        self.model.save(folder)


class _FilesOwner(PromptableModel):
    """Opens EfficientSAM's files where others load a model of transformers."""

    def _open(self, source: str | Path, device: torch.device) -> Any:
        return EfficientSAMDecoder(open_efficient_sam(source, device))


class EfficientSAMSegmenter(_FilesOwner, SAMSegmenter):
    """Automatic masks of EfficientSAM, made a complete partition.

    Generation, partition and token fields are those of
    :class:`~subtok_data.segmenters.SAMSegmenter`. The official notebook's filters are the
    default: predicted IoU above 0.7, stability of at least 0.9.

    Parameters
    ----------
    path : str, Path or EfficientSAMDecoder
        The official TorchScript file, the ONNX encoder with the decoder beside it (needs
        ``subtok-data[onnx]``), or a folder with one of the two; opened at first use.
    options : GenerationOptions, optional
        Grid of points, filters, crops. ``points_per_batch`` bounds memory: the decoder copies the
        image's embedding, 4 MB, several times for each point.
    paint : {"area", "score"}
        Which of two masks lies on top: the smaller one, or the one of higher predicted IoU.
    rules : FillRules, optional
        Which parts become tokens, and who gets the rest.
    min_region : int
        Holes and islands of masks below this many pixels are cleaned; 0: masks as they are.
    device : str or torch.device, optional
        Where the model runs; None picks a CUDA device if there is one.

    Raises
    ------
    ConfigError
        Options out of range.
    WeightsError
        At first use: a file that is missing, or of another kind.

    Examples
    --------
    >>> from subtok_data import SubobjectTokenizer
    >>> from subtok_data.segmenters import EfficientSAMSegmenter
    >>> segmenter = EfficientSAMSegmenter("efficient_sam_vitt_torchscript.pt")
    >>> tokenizer = SubobjectTokenizer(segmenter, max_tokens=128)
    """

    name: ClassVar[str] = "efficient-sam"

    def __init__(
        self,
        path: str | Path | PointDecoder,
        *,
        options: GenerationOptions | None = None,
        paint: PaintOrder = "area",
        rules: FillRules | None = None,
        min_region: int = 0,
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__(
            path,
            options=options or DEFAULT_OPTIONS,
            paint=paint,
            rules=rules,
            min_region=min_region,
            device=device,
        )


class EfficientSAMPrompter(_FilesOwner, ModelPrompter):
    """EfficientSAM makes masks of boxes and points.

    A prompt may be a box, points inside the object, or both; of the three masks, the one of highest
    predicted IoU answers. A mask alone is taken as it is.

    Parameters
    ----------
    path : str, Path or EfficientSAMDecoder
        As in :class:`EfficientSAMSegmenter`.
    device : str or torch.device, optional
        Where the model runs; None picks a CUDA device if there is one.
    prompts_per_batch : int
        Prompts per call of the mask decoder; bounds memory.
    encoder_batch : int
        Images of one size per call of the image encoder.

    Raises
    ------
    ConfigError
        A number out of range.
    WeightsError
        At first use: a file that is missing, or of another kind.

    Examples
    --------
    >>> from subtok_data.segmenters import EfficientSAMPrompter
    >>> prompter = EfficientSAMPrompter("efficient_sam_vitt_torchscript.pt")
    """

    name: ClassVar[str] = "efficient-sam"

    def __init__(
        self,
        path: str | Path | PointDecoder,
        *,
        device: str | torch.device | None = None,
        prompts_per_batch: int = 64,
        encoder_batch: int = 4,
    ) -> None:
        super().__init__(
            path,
            device=device,
            prompts_per_batch=prompts_per_batch,
            encoder_batch=encoder_batch,
        )
        del self.options["refine_rounds"]  # the model takes no mask


def open_efficient_sam(path: str | Path, device: str | torch.device | None) -> EfficientSAMFiles:
    """Open whichever official files there are.

    Parameters
    ----------
    path : str or Path
        A TorchScript file; an ONNX encoder, with the decoder beside it under the same name but for
        that word; or a folder with one of the two.
    device : str, torch.device or None
        Where the model runs; None picks a CUDA device if there is one.

    Raises
    ------
    WeightsError
        Nothing of that kind there.
    """
    path, device = Path(path), resolve_device(device)
    if not path.exists():
        raise WeightsError(f"{str(path)!r} does not exist; {WANTED}")
    file = _only_model(path) if path.is_dir() else path
    if file.suffix != ".onnx":
        return TorchScriptFile(file, device)
    if "encoder" not in file.name:
        raise WeightsError(f"{str(file)!r} is not named as an encoder; {WANTED}")
    decoder = file.with_name(file.name.replace("encoder", "decoder"))
    if not decoder.is_file():
        raise WeightsError(f"{str(decoder)!r} is missing, the decoder of {file.name!r}; {WANTED}")
    return ONNXFiles(file, decoder, device)


def _only_model(folder: Path) -> Path:
    found = [*folder.glob("*.pt"), *folder.glob("*encoder*.onnx")]
    if len(found) != 1:
        names = ", ".join(sorted(file.name for file in found)) or "nothing of the kind"
        raise WeightsError(f"{str(folder)!r} holds {names}; {WANTED}, one model of them")
    return found[0]
