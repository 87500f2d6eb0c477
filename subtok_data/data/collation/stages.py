"""The main-process half of a batch: infer, hand over to the pool, pad.

The loader calls the steps of :class:`BatchFinisher` one at a time, so that they overlap between
batches; a pending batch that finishes itself calls them in a row. Same steps, same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from subtok_data.batch import PixelConfig, list_regions, pad_tokens, put_column_row, stack_pixels
from subtok_data.data.collation.in_progress import BatchInProgress, BatchSample, SampleInProgress
from subtok_data.data.collation.pending_batch import RawBatch
from subtok_data.data.datasets import Sample
from subtok_data.data.pool import InlineSegmentPool, SegmentPool
from subtok_data.data.replacement import Replacement
from subtok_data.errors import ConfigError, SampleError, SubtokError
from subtok_data.images import image_size
from subtok_data.segment import (
    Budget,
    PromptedPartitioner,
    Prompts,
    SegmentTask,
    StoredPartitioner,
)
from subtok_data.segmenters import (
    AsyncSegmenter,
    Evidence,
    PendingInference,
    Segmenter,
    takes_prompts,
)
from subtok_data.text import layout_regions, layout_text

if TYPE_CHECKING:
    from subtok_data.data.collation.worker import WorkerCollator
    from subtok_data.tokenizer import SubobjectTokenizer

__all__ = [
    "BatchFinisher",
    "FinishOptions",
    "ReadyEvidence",
    "ReplacementSource",
    "infer",
    "launch",
]

_GIVEN = StoredPartitioner()


class ReplacementSource(Protocol):
    """A dataset that can offer other samples for one that failed after collation."""

    def replacements(self, index: int, reason: str) -> Iterator[Sample]:
        """Good samples that may stand in, the same ones every time."""
        ...


@dataclass(frozen=True)
class FinishOptions:
    """How finished batches look.

    Parameters
    ----------
    pixels : PixelConfig
        Normalisation and dtype of ``pixel_values``.
    pad_to_multiple_of : int
        Round lengths up to a multiple of this.
    shape_size : int or None
        Side of ``visual_token_shapes``; None leaves them out.
    packing : bool
        The packed layout instead of the padded one.
    on_error : {"raise", "replace"}
        What a sample does that fails after collation.
    """

    pixels: PixelConfig
    pad_to_multiple_of: int = 1
    shape_size: int | None = None
    packing: bool = False
    on_error: str = "raise"

    def __post_init__(self) -> None:
        if self.pad_to_multiple_of < 1:
            raise ConfigError(f"pad_to_multiple_of={self.pad_to_multiple_of}: give at least 1")
        if self.shape_size is not None and self.shape_size < 1:
            raise ConfigError(f"shape_size={self.shape_size}: give at least 1, or None")


class BatchFinisher:
    """Steps from raw batch to finished batch: open, launch, segment, collect, replace, build.

    Parameters
    ----------
    tokenizer : SubobjectTokenizer
        Its segmenter infers; its task is what the pool runs.
    options : FinishOptions
        How batches look.
    worker_half : WorkerCollator
        Collates replacements.

    Attributes
    ----------
    source : ReplacementSource or None
        Where samples come from that replace failed ones; without it, another sample of the batch is
        taken.
    """

    def __init__(
        self, tokenizer: SubobjectTokenizer, options: FinishOptions, worker_half: WorkerCollator
    ) -> None:
        self.tokenizer = tokenizer
        self.options = options
        self.worker_half = worker_half
        self.source: ReplacementSource | None = None

    def open(self, raw: RawBatch) -> BatchInProgress:
        """Lay out a raw batch, whose stored tokens must be this tokenizer's."""
        if raw.tokens_hash is not None and raw.tokens_hash != self.tokenizer.config_hash:
            raise ConfigError(
                f"stored tokens have configuration {raw.tokens_hash}, the tokenizer "
                f"{self.tokenizer.config_hash}: give the tokenizer that made them, or tokenize "
                "again"
            )
        return BatchInProgress.of(raw)

    def launch(self, work: BatchInProgress) -> PendingInference:
        """Start inference for all images of a batch; returns at once if the segmenter can."""
        if work.has_stored_tokens:
            return ReadyEvidence([])
        return launch(self.tokenizer.segmenter, work.samples)

    def segment(
        self, work: BatchInProgress, evidence: Sequence[Evidence], pool: SegmentPool
    ) -> None:
        """Hand every image to the pool."""
        inferred = iter(evidence)
        for sample in work.samples:
            limit = None if sample.text is None else sample.text.visual_room
            stored = sample.stored_evidence()
            found = list(islice(inferred, len(sample.images))) if stored is None else stored
            sample.submit(self._task(stored is not None, limit), found, pool)

    def _task(self, stored: bool, max_tokens: int | None) -> SegmentTask:
        task = self.tokenizer.segment_task(
            shape_size=self.options.shape_size, max_tokens=max_tokens
        )
        if not stored:
            return task
        if isinstance(task.partitioner, PromptedPartitioner):
            # Stored tokens are those without prompts: regions go on top of them.
            return replace(task, partitioner=task.partitioner.with_base(_GIVEN))
        return replace(task, partitioner=_GIVEN, budget=Budget(max_tokens=max_tokens))

    def collect(self, work: BatchInProgress) -> None:
        """Wait for the pool; a failure stays with its sample."""
        for sample in work.samples:
            sample.collect()

    def replace_failures(self, work: BatchInProgress) -> None:
        """Raise the first failure, or put other samples in place of all that failed."""
        for place, sample in enumerate(work.samples):
            if sample.error is not None:
                self._replace(work, place, sample.error)

    def _replace(self, work: BatchInProgress, place: int, error: SampleError) -> None:
        if self.options.on_error == "raise":
            raise error
        index = work.samples[place].index
        if self.source is not None and index >= 0:
            for other in self.source.replacements(index, str(error)):
                single = self.open(self._raw(other))
                self.segment(single, self.launch(single).result(), InlineSegmentPool())
                self.collect(single)
                if single.samples[0].error is None:
                    work.samples[place] = single.samples[0]
                    work.replaced += single.replaced
                    put_column_row(work.columns, place, single.columns)
                    return
        ring = [*range(place + 1, len(work.samples)), *range(place)]
        good = next((p for p in ring if work.samples[p].error is None), None)
        if good is None:
            raise SubtokError(
                f"all {len(work.samples)} samples of a batch are bad; the last: {error}"
            ) from error
        work.samples[place] = work.samples[good]
        work.replaced.append(Replacement(index, work.samples[good].index, str(error)))
        row = {name: values[good : good + 1] for name, values in work.columns.items()}
        put_column_row(work.columns, place, row)

    def _raw(self, sample: Sample) -> RawBatch:
        raw = self.worker_half.collate([sample]).raw
        if raw is None:
            raise TypeError("a collated batch came back finished")
        return raw

    def build(self, work: BatchInProgress, device: torch.device | None = None) -> dict[str, Any]:
        """Pad what was collected into the batch."""
        samples = work.samples
        cut = [one for sample in samples for one in sample.cut]
        encoder_images = [image for sample in samples for image in sample.encoder_images]
        visual: dict[str, Any] = {
            "pixel_values": stack_pixels(encoder_images, self.options.pixels, device),
            "valid_sizes": _sizes([image_size(i) for i in encoder_images]),
            **pad_tokens(cut, pad_to_multiple_of=self.options.pad_to_multiple_of),
            "source_sizes": _sizes([size for sample in samples for size in sample.source_sizes]),
        }
        if samples[0].prompts is not None:
            prompts = [one for sample in samples for one in sample.prompts or []]
            visual.update(list_regions(prompts, cut))
            visual.update(self._region_text(samples, prompts))
        if work.many:
            owners = [place for place, sample in enumerate(samples) for _ in sample.images]
            visual["image_to_sample"] = torch.tensor(owners, dtype=torch.int64)
        visual["sample_index"] = torch.tensor([s.index for s in samples], dtype=torch.int64)
        batch = self._with_text(samples, visual)
        batch.update(work.columns)
        if device is None or device.type == "cpu":
            return batch
        return {
            key: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for key, value in batch.items()
        }

    def _region_text(
        self, samples: Sequence[BatchSample], prompts: Sequence[Prompts]
    ) -> dict[str, Any]:
        """Texts of the regions: as they are, and as token ids."""
        found: dict[str, Any] = {}
        if all(one.texts is not None for one in prompts):
            found["region_texts"] = [text for one in prompts for text in one.texts or ()]
        config = self.worker_half.regions
        if config is not None:
            rows = [row for sample in samples for row in sample.region_texts or ()]
            found.update(layout_regions(config, rows))
        return found

    def _with_text(self, samples: Sequence[BatchSample], visual: dict[str, Any]) -> dict[str, Any]:
        encoder = self.worker_half.encoder
        if encoder is None:
            return visual
        return layout_text(
            encoder,
            [sample.text for sample in samples if sample.text is not None],
            [[one.num_tokens for one in sample.cut] for sample in samples],
            visual,
            packing=self.options.packing,
            pad_to_multiple_of=self.options.pad_to_multiple_of,
        )


def _sizes(sizes: Sequence[tuple[int, int]]) -> torch.Tensor:
    return torch.tensor(list(sizes), dtype=torch.int64).reshape(-1, 2)


class ReadyEvidence:
    """Evidence that is there already.

    Parameters
    ----------
    evidence : list of Evidence
        Of each image.
    """

    def __init__(self, evidence: list[Evidence]) -> None:
        self._evidence = evidence

    def result(self) -> list[Evidence]:
        """See :class:`~subtok_data.segmenters.PendingInference`."""
        return self._evidence


def launch(segmenter: Segmenter, samples: Sequence[SampleInProgress]) -> PendingInference:
    """Start inference for all images of the samples; returns at once if the segmenter can."""
    if isinstance(segmenter, AsyncSegmenter) and segmenter.is_asynchronous:
        return segmenter.launch(*_inputs(segmenter, samples))
    return ReadyEvidence(infer(segmenter, samples))


def infer(segmenter: Segmenter, samples: Sequence[SampleInProgress]) -> list[Evidence]:
    """Infer all images of the samples together, or one by one if that fails.

    Returns
    -------
    list of Evidence
        Of each image, in order; empty for an image that cannot be inferred, whose sample has
        failed then.

    Raises
    ------
    SubtokError
        If not one sample can be inferred: then the model is at fault, not an image.
    """
    inputs = _inputs(segmenter, samples)
    try:
        return segmenter.infer(*inputs) if inputs[0] else []
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        found = _infer_each(segmenter, samples)
        if all(sample.error is not None for sample in samples):
            raise SubtokError(f"inference failed on every image of a batch: {error}") from error
        return found


def _infer_each(segmenter: Segmenter, samples: Sequence[SampleInProgress]) -> list[Evidence]:
    found: list[Evidence] = []
    for sample in samples:
        for image, size, prompts in zip(*_inputs(segmenter, [sample]), strict=True):
            try:
                found += segmenter.infer([image], [size], [prompts])
            except Exception as error:
                sample.fail(error, "infer")
                found.append({})
    return found


def _inputs(
    segmenter: Segmenter, samples: Sequence[SampleInProgress]
) -> tuple[list[NDArray[np.uint8]], list[tuple[int, int]], list[Prompts | None]]:
    """Images, their sizes, and their prompts if the segmenter takes any."""
    images = [image for sample in samples for image in sample.images]
    sizes = [image_size(image) for image in images]
    if not takes_prompts(segmenter):
        return images, sizes, [None] * len(images)
    prompts: list[Prompts | None] = []
    for sample in samples:
        prompts += sample.prompts or [None] * len(sample.images)
    return images, sizes, prompts
