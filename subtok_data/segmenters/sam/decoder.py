"""Promptable models of transformers behind one interface: points, boxes and masks give masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subtok_data.device_streams import send_to
from subtok_data.errors import ConfigError
from subtok_data.segment import Prompts
from subtok_data.segmenters.pretrained import ModelComponent, TransformersModel, load_pretrained
from subtok_data.segmenters.sam.mask_generation import PointDecoder
from subtok_data.transformers_io import read_pretrained

__all__ = ["PromptChunk", "PromptDecoder", "PromptableModel", "SAMDecoder"]

_CERTAIN = 10.0
"""Logit of a pixel inside a given mask; minus this outside, as SAM 2 does it."""


@dataclass(frozen=True, eq=False)
class PromptChunk:
    """Prompts of one form, for one call of a mask decoder.

    Parameters
    ----------
    points : (P, K, 2) float64
        x, y in pixels of the image; K may be 0.
    labels : (P, K) int64
        1 inside, 0 outside.
    boxes : (P, 4) float64 or None
        x0, y0, x1, y1.
    logits : (P, 1, h, w) tensor or None
        Masks that the model made before, or those of ``PromptDecoder.to_logits``.
    several : bool
        Whether the model is to give its three masks for an ambiguous prompt, or the one for a
        prompt that says enough.
    """

    points: NDArray[np.float64]
    labels: NDArray[np.int64]
    boxes: NDArray[np.float64] | None = None
    logits: Tensor | None = None
    several: bool = False

    def __len__(self) -> int:
        return len(self.points)

    @classmethod
    def of_points(cls, points: NDArray[np.float64]) -> PromptChunk:
        """One prompt for each of (P, 2) points, three masks each.

        Examples
        --------
        >>> PromptChunk.of_points(np.zeros((5, 2))).labels.shape
        (5, 1)
        """
        return cls(points[:, None], np.ones((len(points), 1), np.int64), several=True)


class PromptDecoder(PointDecoder, Protocol):
    """A model that gives masks for points, boxes and masks."""

    def check(self, prompts: Prompts) -> None:
        """Raise PromptError for a prompt that the model does not take."""
        ...

    def prompt(self, embedding: Any, chunk: PromptChunk) -> tuple[Tensor, Tensor]:
        """Return low-resolution logits (P, M, h, w) and predicted IoU (P, M)."""
        ...

    def to_logits(self, embedding: Any, masks: Tensor) -> Tensor:
        """Bring masks (P, H, W) bool of the image to the form of ``PromptChunk.logits``."""
        ...


@dataclass(frozen=True, eq=False)
class _Embedding:
    """What the encoder made of a crop, and where the crop lies in the model's input.

    SAM scales an image and pads it: ``inside`` is its size before the padding. SAM 2 stretches it
    over the whole input, so ``inside`` is None.
    """

    features: list[Tensor]
    size: tuple[int, int]
    canvas: tuple[int, int]
    inside: tuple[int, int] | None

    @property
    def scale(self) -> tuple[float, float]:
        """Factors for x and y, from the crop to the model's input."""
        height, width = self.inside or self.canvas
        return width / self.size[1], height / self.size[0]


class SAMDecoder(TransformersModel):
    """A promptable model of transformers, as mask generation and prompters see it.

    Parameters
    ----------
    model : SamModel, Sam2Model, Sam3TrackerModel or EdgeTamModel
        Or a model that is called like these.
    processor : object
        Its image processor.
    """

    def encode(self, crops: Sequence[NDArray[np.uint8]]) -> list[_Embedding]:
        """Embed (h, w, 3) crops in one call of the encoder."""
        inputs = self.processor(
            images=list(crops), input_data_format="channels_last", return_tensors="pt"
        )
        # Files in half precision are loaded as they are.
        dtype = getattr(self.model, "dtype", torch.float32)
        pixels = send_to(inputs["pixel_values"], self.model.device).to(dtype)
        features: Any = self.model.get_image_embeddings(pixels)
        levels: list[Any] = [features] if isinstance(features, Tensor) else list(features)
        if not all(isinstance(level, Tensor) for level in levels):  # SAM-HQ
            raise ConfigError(
                f"the mask decoder of {type(self.model).__name__} wants more than the encoder's "
                "feature maps: give SAM, SAM 2, SAM 3 or EdgeTAM, or a PointDecoder of your own"
            )
        canvas = (pixels.shape[-2], pixels.shape[-1])
        inside: Any = inputs.get("reshaped_input_sizes")
        return [
            _Embedding(
                [level[place : place + 1] for level in levels],
                (crop.shape[0], crop.shape[1]),
                canvas,
                None if inside is None else (int(inside[place][0]), int(inside[place][1])),
            )
            for place, crop in enumerate(crops)
        ]

    def check(self, prompts: Prompts) -> None:
        """Accept every prompt."""

    def decode(self, embedding: _Embedding, points: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        """Return logits (P, 3, h, w) and predicted IoU (P, 3) for (x, y) points of the crop."""
        return self.prompt(embedding, PromptChunk.of_points(points))

    def prompt(self, embedding: _Embedding, chunk: PromptChunk) -> tuple[Tensor, Tensor]:
        """Return logits (P, M, h, w) and predicted IoU (P, M); see :class:`PromptDecoder`."""
        features = embedding.features
        device = features[0].device
        scale = np.array(embedding.scale)
        inputs: dict[str, Tensor] = {}
        if chunk.labels.shape[1]:
            points = (chunk.points * scale).astype(np.float32)
            inputs["input_points"] = send_to(torch.from_numpy(points), device)[:, None]
            inputs["input_labels"] = send_to(torch.from_numpy(chunk.labels), device)[:, None]
        if chunk.boxes is not None:
            boxes = (chunk.boxes * np.tile(scale, 2)).astype(np.float32)
            inputs["input_boxes"] = send_to(torch.from_numpy(boxes), device)[:, None]
        if chunk.logits is not None:
            inputs["input_masks"] = chunk.logits.to(features[0].dtype)
        # Prompts lie along the batch, not along the points of one image: only so can each of them
        # have a mask of its own.
        spread = [level.expand(len(chunk), -1, -1, -1) for level in features]
        outputs = self.model(
            image_embeddings=spread[0] if len(spread) == 1 else spread,
            multimask_output=chunk.several,
            **inputs,
        )
        return outputs.pred_masks[:, 0].float(), outputs.iou_scores[:, 0].float()

    def to_logits(self, embedding: _Embedding, masks: Tensor) -> Tensor:
        """Bring masks (P, H, W) to the model's mask input, (P, 1, h, w): ±10, less at outlines."""
        filled = send_to(masks, embedding.features[0].device)[:, None].float()
        if embedding.inside is not None:  # the image is in the upper left of a padded square
            height, width = (
                round(side * canvas / inside)
                for side, canvas, inside in zip(
                    embedding.size, embedding.canvas, embedding.inside, strict=True
                )
            )
            padding = (0, width - embedding.size[1], 0, height - embedding.size[0])
            filled = torch.nn.functional.pad(filled, padding)
        sides: tuple[int, int] = self.model.prompt_encoder.image_embedding_size
        shares = torch.nn.functional.interpolate(
            filled, [4 * side for side in sides], mode="bilinear", antialias=True
        )
        return _CERTAIN * (2 * shares - 1)

    def upscale(self, embedding: _Embedding, logits: Tensor) -> Tensor:
        """Bring logits (K, h, w) to the size of the crop, (K, H, W)."""
        scaled = logits[None]
        if embedding.inside is not None:
            height, width = embedding.inside
            scaled = _resize(scaled, embedding.canvas)[..., :height, :width]
        return _resize(scaled, embedding.size)[0]


def _resize(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)


class PromptableModel(ModelComponent):
    """What segmenters and prompters on a promptable model share: a decoder, loaded on first use.

    Parameters
    ----------
    model : str, Path, nn.Module or PointDecoder
        A folder or hub id of a model that ``AutoModelForMaskGeneration`` loads (safetensors only,
        at first use); such a model, with ``processor``; or a decoder of your own. One that is
        moved, saved or pickled also has ``device``, ``to``, ``identity`` and ``save``.
    processor : object, optional
        Image processor, for a model that is given as a module.
    device : str or torch.device, optional
        Where the model runs; None picks a CUDA device if there is one.

    Raises
    ------
    ConfigError
        A module without its processor, or a processor without its module.
    """

    folder: ClassVar[str] = "sam_model"

    def _open(self, source: str | Path, device: torch.device) -> Any:
        from transformers import AutoImageProcessor, AutoModelForMaskGeneration

        def read_processor(name: str, model: object) -> object:
            del model
            return read_pretrained(AutoImageProcessor, name)

        model, processor = load_pretrained(AutoModelForMaskGeneration, read_processor, source)
        return self._adopt(model.to(device), processor)

    def _adopt(self, module: torch.nn.Module, processor: Any) -> Any:
        return SAMDecoder(module, processor)

    @property
    def decoder(self) -> Any:
        """The model as mask generation and prompters see it, loaded on first use."""
        return self._loaded()
