"""Prompters: a promptable model makes a mask of each box, point or mask.

Which of the model's masks answers a prompt, and how masks are refined, follows Segment Anything
(Kirillov et al., arXiv 2304.02643, sections 3 and D.4).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subtok_data.arguments import check_count
from subtok_data.images import image_size
from subtok_data.segment import Prompts, RLEMasks, fit_prompts
from subtok_data.segmenters.base import Images, Prompter
from subtok_data.segmenters.sam.decoder import PromptableModel, PromptChunk, PromptDecoder
from subtok_data.segmenters.sam.generated_masks import mask_runs
from subtok_data.segmenters.sam.mask_generation import UPSCALED, refuse_nan

__all__ = ["ModelPrompter", "SAMPrompter", "prompt_model"]


@torch.inference_mode()
def prompt_model(
    decoder: PromptDecoder,
    embedding: Any,
    prompts: Prompts,
    *,
    prompts_per_batch: int = 64,
    refine_rounds: int = 0,
) -> RLEMasks:
    """Predict the mask of each prompt of one image.

    Of the three masks for a single point, the one of highest predicted IoU answers; every other
    prompt gets the model's one mask. A prompt that is only a mask is answered by that mask, with a
    score of 1.

    Parameters
    ----------
    decoder : PromptDecoder
        The model.
    embedding : object
        What ``decoder.encode`` made of the image.
    prompts : Prompts
        On the pixels of the image.
    prompts_per_batch : int
        Prompts per call of the mask decoder; bounds memory.
    refine_rounds : int
        So many times, the logits are given back to the model, together with the prompt.

    Returns
    -------
    RLEMasks
        In the order of the prompts; empty masks where the model found nothing.
    """
    runs = [np.array([prompts.size[0] * prompts.size[1]], np.int32)] * len(prompts)
    scores = np.ones(len(prompts), np.float32)
    asked = _asks_model(prompts)
    for index in np.flatnonzero(~asked):
        if prompts.masks is not None:
            runs[index] = prompts.masks.runs(int(index))
    for members in _forms(prompts, np.flatnonzero(asked)):
        for start in range(0, len(members), prompts_per_batch):
            some = members[start : start + prompts_per_batch]
            chunk = _chunk(decoder, embedding, prompts, some)
            logits, ious = _answers(*decoder.prompt(embedding, chunk))
            said = [ious]
            for _ in range(refine_rounds):
                again = PromptChunk(chunk.points, chunk.labels, chunk.boxes, logits[:, None])
                logits, ious = _answers(*decoder.prompt(embedding, again))
                said.append(ious)
            rounds = torch.stack(said).cpu()  # one wait for the device
            refuse_nan(rounds)
            scores[some] = rounds[-1].numpy()
            for index, run in zip(some, _runs(decoder, embedding, logits, prompts), strict=True):
                runs[index] = run
    return RLEMasks.from_runs(runs, prompts.size, scores)


def _asks_model(prompts: Prompts) -> NDArray[np.bool_]:
    """Which prompts need the model: those with more than a mask."""
    return prompts.has_box | (prompts.labels >= 0).any(1)


def _forms(prompts: Prompts, members: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Prompts alike in what they are made of: padding would change the result of the others."""
    counts = (prompts.labels >= 0).sum(1)
    forms = np.stack([prompts.has_box, prompts.has_mask, counts], axis=1)[members]
    if len(members):
        _, kinds = np.unique(forms, axis=0, return_inverse=True)
        kinds = kinds.reshape(-1)
        for kind in range(int(kinds.max()) + 1):
            yield members[kinds == kind]


def _chunk(
    decoder: PromptDecoder, embedding: Any, prompts: Prompts, members: NDArray[np.int64]
) -> PromptChunk:
    """Prompts of one form as the model takes them."""
    first = members[0]
    used = prompts.labels[members] >= 0
    count = int(used[0].sum())
    points = prompts.points[members][used].reshape(len(members), count, 2).astype(np.float64)
    labels = prompts.labels[members][used].reshape(len(members), count).astype(np.int64)
    boxes = prompts.boxes[members].astype(np.float64) if prompts.has_box[first] else None
    logits: Tensor | None = None
    if prompts.masks is not None and prompts.has_mask[first]:
        masks = prompts.masks
        logits = torch.cat(
            [
                decoder.to_logits(
                    embedding,
                    torch.from_numpy(np.stack([masks.mask(int(i)) for i in some])),
                )
                for some in np.array_split(members, range(UPSCALED, len(members), UPSCALED))
            ]
        )
    ambiguous = boxes is None and logits is None and count == 1
    return PromptChunk(points, labels, boxes, logits, several=ambiguous)


def _answers(logits: Tensor, ious: Tensor) -> tuple[Tensor, Tensor]:
    """The mask of highest predicted IoU of each prompt: (P, h, w), (P,)."""
    finite = torch.isfinite(ious).all(1)
    ious, best = ious.max(1)
    ious = torch.where(finite, ious, torch.nan)  # refused later, when they are on the host
    return logits[torch.arange(len(best), device=best.device), best], ious


def _runs(
    decoder: PromptDecoder, embedding: Any, logits: Tensor, prompts: Prompts
) -> Iterator[NDArray[np.int32]]:
    height, width = prompts.size
    for some in logits.split(UPSCALED):
        masks = decoder.upscale(embedding, some) > 0
        yield from mask_runs(masks, (0, 0, width, height), prompts.size)


class ModelPrompter(PromptableModel, Prompter):
    """What prompters share, whichever model they ask.

    Parameters
    ----------
    model, processor, device
        See :class:`~subtok_data.segmenters.sam.decoder.PromptableModel`.
    prompts_per_batch, encoder_batch, refine_rounds : int
        See :class:`SAMPrompter`.
    """

    folder: ClassVar[str] = "prompt_model"  # the segmenter's own model may be another one

    def __init__(
        self,
        model: Any,
        processor: Any = None,
        device: str | torch.device | None = None,
        *,
        prompts_per_batch: int = 64,
        encoder_batch: int = 4,
        refine_rounds: int = 0,
    ) -> None:
        super().__init__(model, processor, device)
        check_count("prompts_per_batch", prompts_per_batch, optional=False)
        check_count("encoder_batch", encoder_batch, optional=False)
        check_count("refine_rounds", refine_rounds, least=0, optional=False)
        self.encoder_batch = encoder_batch
        self.options = {"prompts_per_batch": prompts_per_batch, "refine_rounds": refine_rounds}

    @torch.inference_mode()
    def prompt_masks(
        self, images: Images, prompts: Sequence[Prompts | None]
    ) -> list[RLEMasks | None]:
        """Return one mask for each prompt; see :class:`~subtok_data.segmenters.Prompter`.

        Images without prompts, and those whose prompts are masks alone, are not encoded.
        """
        found: list[RLEMasks | None] = [None] * len(images)
        embedded: list[tuple[int, Prompts]] = []
        sizes = [image_size(image) for image in images]
        for index, asked in enumerate(fit_prompts(prompts, sizes)):
            if asked is None:
                continue
            self.decoder.check(asked.take(np.flatnonzero(_asks_model(asked))))
            if _asks_model(asked).any():
                embedded.append((index, asked))
            else:
                found[index] = prompt_model(self.decoder, None, asked)
        for start in range(0, len(embedded), self.encoder_batch):
            some = embedded[start : start + self.encoder_batch]
            embeddings = self.decoder.encode([images[index] for index, _ in some])
            for (index, asked), embedding in zip(some, embeddings, strict=True):
                found[index] = prompt_model(self.decoder, embedding, asked, **self.options)
        return found

    def config(self) -> dict[str, Any]:
        """Options and the identity of the weights, as JSON values."""
        return {"prompter": self.name, "prompting": self.options, "model": self.model_hash()}

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], folder: Path, device: str | torch.device | None
    ) -> Self:
        """Build from what :meth:`config` and :meth:`save_model` wrote."""
        return cls(folder / cls.folder, device=device, **config["prompting"])


class SAMPrompter(ModelPrompter):
    """SAM, SAM 2, SAM 3 or EdgeTAM make masks of boxes, points and masks.

    A prompt may be a box, points with labels (1 inside, 0 outside), both, or either with a mask to
    start from. The best of three masks answers a single point, the model's one mask everything
    else. A mask alone is taken as it is.

    Parameters
    ----------
    model : str, Path, nn.Module or PromptDecoder
        A folder or hub id of a model that ``AutoModelForMaskGeneration`` loads (safetensors only,
        at first use); such a model, with ``processor``; or a decoder, for instance that of a
        :class:`~subtok_data.segmenters.SAMSegmenter`, so that the weights are there once.
    processor : object, optional
        Image processor, for a model that is given as a module.
    device : str or torch.device, optional
        Where the model runs; None picks a CUDA device if there is one.
    prompts_per_batch : int
        Prompts per call of the mask decoder; bounds memory.
    encoder_batch : int
        Images per call of the image encoder.
    refine_rounds : int
        So many times, the mask is given back to the model together with the prompt, and what it
        makes of them counts (the paper's section D.4 has one round, for boxes).

    Raises
    ------
    ConfigError
        A number out of range, or a module without its processor.
    WeightsError
        At first use: nothing loadable under that name.

    Examples
    --------
    >>> from subtok_data.segmenters import SAMPrompter
    >>> prompter = SAMPrompter("facebook/sam-vit-base", refine_rounds=1)
    """

    name: ClassVar[str] = "sam"
