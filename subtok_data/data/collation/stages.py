"""``BatchStages``: the way of a batch in the main process, from raw to finished.

Look-ahead runs the stages one at a time, so that those of several batches overlap; a pending batch
that finishes itself, and the replacement of a single sample, run them in a row. Same stages, same
bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from subtok_data.batch import (
    BatchUpload,
    RecycledArrays,
    list_regions,
    pad_tokens,
    put_column_row,
    stack_pixels,
)
from subtok_data.data.cache import TokenCache
from subtok_data.data.collation.in_progress import BatchInProgress, SampleInProgress
from subtok_data.data.collation.pending_batch import RawBatch
from subtok_data.data.collation.worker import BatchOptions, WorkerCollator
from subtok_data.data.pool import InlineSegmentPool, SegmentPool
from subtok_data.data.replacement import Replacement, find_source, next_good
from subtok_data.devices import DEVICE_FAILURES
from subtok_data.errors import ConfigError, SampleError, SubtokError
from subtok_data.images import image_size
from subtok_data.segment import (
    Budget,
    PromptedPartitioner,
    Prompts,
    SegmentTask,
    StoredPartitioner,
)
from subtok_data.segmenters import Evidence
from subtok_data.text import layout_regions, layout_text
from subtok_data.tokenizer import SubobjectTokenizer

__all__ = ["BatchStages"]

_STORED = StoredPartitioner()
_NO_LIMITS = Budget()


def _untimed(stage: str) -> AbstractContextManager[None]:
    del stage
    return nullcontext()


@dataclass(frozen=True, kw_only=True)
class BatchStages:
    """Take batches from raw to finished: open, infer, segment, collect, replace failures, build.

    Parameters
    ----------
    tokenizer : SubobjectTokenizer
        Its segmenter infers; its task is what the pool runs.
    options : BatchOptions
        How batches look.
    pool : SegmentPool, optional
        Partitions images; in the calling thread by default.
    upload : BatchUpload, optional
        Brings finished batches to a device; they stay on the CPU by default.
    pin : bool, optional
        Whether finished batches that stay on the CPU are in pinned memory.
    timed : callable, optional
        ``timed(stage)`` is a context in which that stage runs; ``stage`` is "infer", "device" (the
        wait for inference that was started) or "finish".
    logs : tuple of list of Replacement, optional
        Get the replacements of each batch that is finished.
    arrays : RecycledArrays, optional
        Where the memory of finished batches comes from, and goes to when they are gone.
    cache : TokenCache, optional
        Gets the tokens that are made here.
    """

    tokenizer: SubobjectTokenizer
    options: BatchOptions
    pool: SegmentPool = field(default_factory=InlineSegmentPool)
    upload: BatchUpload | None = None
    pin: bool = False
    timed: Callable[[str], AbstractContextManager[Any]] = _untimed
    logs: tuple[list[Replacement], ...] = ()
    arrays: RecycledArrays = field(default_factory=RecycledArrays)
    cache: TokenCache | None = None

    def run(self, raw: RawBatch) -> BatchInProgress:
        """Run all stages up to ``collect``, one after the other in this thread."""
        batch = self.open(raw)
        self.infer(batch)
        self.segment(batch)
        self.collect(batch)
        return batch

    def open(self, raw: RawBatch) -> BatchInProgress:
        """Lay out a raw batch sample by sample.

        Raises
        ------
        ConfigError
            If its stored tokens are those of another configuration.
        """
        if raw.tokens_hash is not None and raw.tokens_hash != self.tokenizer.config_hash:
            raise ConfigError(
                f"stored tokens have configuration {raw.tokens_hash}, the tokenizer "
                f"{self.tokenizer.config_hash}: give the tokenizer that made them "
                "(SubobjectTokenizer.from_config(StoredTokens(DIR).config)), or tokenize again"
            )
        if self.cache is not None:
            for notice in raw.notices:
                self.cache.tell(notice)
        return BatchInProgress.of(raw)

    def infer(self, batch: BatchInProgress) -> None:
        """Infer all images without tokens together; an asynchronous segmenter only starts.

        Raises
        ------
        SubtokError
            If not one sample can be inferred: then the model is at fault, not an image.
        """
        for sample in batch.samples:
            if sample.token_maps is not None:
                sample.take_stored_tokens()
        segmenter = self.tokenizer.segmenter
        images, sizes, prompts = self._inputs(batch.to_infer)
        if not images:
            return
        with self.timed("infer"):
            try:
                if segmenter.is_asynchronous:
                    batch.inference = segmenter.launch(images, sizes, prompts)
                else:
                    batch.take_evidence(segmenter.infer(images, sizes, prompts))
            except DEVICE_FAILURES:
                raise
            except Exception as error:
                self._infer_each(batch, error)

    def segment(self, batch: BatchInProgress) -> None:
        """Wait for inference and hand every image to the pool."""
        inference, batch.inference = batch.inference, None
        if inference is not None:
            with self.timed("device"):
                try:
                    batch.take_evidence(inference.result())
                except DEVICE_FAILURES:
                    raise
                except Exception as error:
                    self._infer_each(batch, error)
                _refuse_total_failure(batch)
        for sample in batch.samples:
            sample.submit(self._task(sample), self.pool)

    def collect(self, batch: BatchInProgress) -> None:
        """Wait for the pool; a failure stays with its sample."""
        batch.wait()
        for sample in batch.samples:
            sample.collect()
            if self.cache is not None and sample.error is None:
                self._keep(sample, self.cache)

    def finish(self, batch: BatchInProgress) -> dict[str, Any]:
        """Augment what awaited its tokens, replace failed samples, build, and log replacements.

        Raises
        ------
        SampleError
            If a sample failed and ``on_error`` is ``"raise"``.
        SubtokError
            If all samples failed and there is none to take instead.
        """
        self.augment(batch)
        self.replace_failures(batch)
        finished = batch.finished or self.build(batch)
        if self.upload is not None:
            self.upload.receive(finished, batch.sent)
        for log in self.logs:
            log += batch.replaced
        return finished

    # --- inference ----------------------------------------------------------------------------

    def _inputs(
        self, samples: Sequence[SampleInProgress]
    ) -> tuple[list[NDArray[np.uint8]], list[tuple[int, int]], list[Prompts | None]]:
        """Images, their sizes, and their prompts if the segmenter takes any."""
        images = [image for sample in samples for image in sample.images]
        sizes = [image_size(image) for image in images]
        if not self.tokenizer.segmenter.takes_prompts:
            return images, sizes, [None] * len(images)
        prompts: list[Prompts | None] = []
        for sample in samples:
            prompts += sample.raw.prompts or [None] * len(sample.images)
        return images, sizes, prompts

    def _infer_each(self, batch: BatchInProgress, error: Exception) -> None:
        """Infer image by image after a failure, to learn which sample is to blame."""
        for sample in batch.to_infer:
            found: list[Evidence] = []
            try:
                for image, size, prompts in zip(*self._inputs([sample]), strict=True):
                    found += self.tokenizer.segmenter.infer([image], [size], [prompts])
            except DEVICE_FAILURES:
                raise
            except Exception as own:
                sample.fail(own, "infer")
            sample.evidence = found
        _refuse_total_failure(batch, error)

    # --- segmentation -------------------------------------------------------------------------

    def _task(self, sample: SampleInProgress) -> SegmentTask:
        if sample.raw.awaits_tokens:  # as tokens are stored: of any room, without prompts
            return self.tokenizer.segment_task()
        limit = sample.raw.room
        task = self.tokenizer.segment_task(shape_size=self.options.shape_size, max_tokens=limit)
        if sample.token_maps is None:
            return task
        if sample.raw.tokens == "cache":  # as this task made them, prompts and budget included
            return replace(task, partitioner=_STORED, budget=_NO_LIMITS)
        if isinstance(task.partitioner, PromptedPartitioner):
            # Stored tokens are those without prompts: regions go on top of them.
            return replace(task, partitioner=task.partitioner.with_base(_STORED))
        return replace(task, partitioner=_STORED, budget=Budget(max_tokens=limit))

    def _keep(self, sample: SampleInProgress, cache: TokenCache) -> None:
        """Give the cache what it lacks; tokens that come from it get what it does not hold."""
        raw = sample.raw
        if raw.tokens == "cache":
            wanted = self._task_budget(raw.room).num_tokens or 0
            sample.segmented = [
                replace(one, shortfall=max(wanted - one.num_tokens, 0)) for one in sample.segmented
            ]
        elif raw.tokens == "model" and raw.key is not None:
            cache.put(raw.key, None if raw.awaits_tokens else raw.room, sample.segmented)

    def _task_budget(self, room: int | None) -> Budget:
        budget = self.tokenizer.budget
        return budget if room is None else budget.capped(room)

    # --- augmentation after tokenization --------------------------------------------------------

    def augment(self, batch: BatchInProgress) -> None:
        """Load samples again whose tokens are made now, so that both are augmented together.

        In the thread of the user: augmentation seeds global generators.
        """
        for place, sample in enumerate(batch.samples):
            if not sample.raw.awaits_tokens or sample.error is not None:
                continue
            single = self._load_again(sample)
            batch.samples[place] = single.samples[0]
            put_column_row(batch.columns, place, single.columns)

    def _load_again(self, sample: SampleInProgress) -> BatchInProgress:
        raw, cache = sample.raw, self.cache
        source = find_source(raw.dataset_key)
        if source is None or cache is None or raw.key is None:
            raise SubtokError(
                "the dataset of this batch, or the cache of its loader, no longer exists: keep the "
                "loader alive while batches are read"
            )
        found = [(one.token_map, dict(one.token_fields)) for one in sample.segmented]
        with cache.reader.knowing(raw.key, found):
            again = self._worker().collate([source.get(raw.index)])
        with InlineSegmentPool() as pool:
            alone = replace(self, pool=pool)
            single = alone.run(again)
            alone.augment(single)  # where another sample stands in by now
        single.samples[0].raw.tokens = "model"  # this time
        return single

    def _worker(self) -> WorkerCollator:
        reader = None if self.cache is None else self.cache.reader
        return WorkerCollator(self.tokenizer.canvas, self.options, cache=reader)

    # --- replacement --------------------------------------------------------------------------

    def replace_failures(self, batch: BatchInProgress) -> None:
        """Raise the first failure, or put other samples in place of all that failed."""
        for place, sample in enumerate(batch.samples):
            if sample.error is None:
                continue
            if self.options.on_error == "raise":
                raise sample.error
            self._replace(batch, place, sample.error)

    def _replace(self, batch: BatchInProgress, place: int, error: SampleError) -> None:
        raw = batch.samples[place].raw
        single = self._from_dataset(raw.dataset_key, raw.index, str(error))
        if single is not None:
            batch.samples[place] = single.samples[0]
            batch.replaced += single.replaced
            put_column_row(batch.columns, place, single.columns)
            return
        other = next_good([sample.error is None for sample in batch.samples], place)
        if other is None:
            raise SubtokError(
                f"all {len(batch.samples)} samples of a batch are bad; the last: {error}"
            ) from error
        batch.samples[place] = batch.samples[other]
        batch.replaced.append(Replacement.of(error, batch.samples[other].raw.index))
        row = {name: values[other : other + 1] for name, values in batch.columns.items()}
        put_column_row(batch.columns, place, row)

    def _from_dataset(self, key: str | None, index: int, reason: str) -> BatchInProgress | None:
        """Take the first sample that its dataset offers and that fails nowhere, as a batch of 1."""
        source = find_source(key)
        if source is None:
            return None
        worker = self._worker()
        with InlineSegmentPool() as pool:
            alone = replace(self, pool=pool)
            for other in source.replacements(index, reason):
                single = alone.run(worker.collate([other]))
                alone.augment(single)
                if not single.has_failures:
                    return single
        return None

    # --- the finished batch -------------------------------------------------------------------

    def build(self, batch: BatchInProgress) -> dict[str, Any]:
        """Pad what was collected into ``batch.finished``, and return it.

        On a device of its own stream, it is there when ``batch.sent`` has come.
        """
        upload = self.upload
        with self.timed("finish"), nullcontext() if upload is None else upload.entered():
            visual = self._visual(batch)
            finished = {**self._with_text(batch.samples, visual), **batch.columns}
            # Here, since to count on a device would wait for it.
            batch.text_tokens = _count_text(finished)
            if upload is not None:
                made_there = {"pixel_values": visual["pixel_values"]}
                finished = upload.send(finished, made_there=made_there)
                batch.sent = upload.sent()
            elif self.pin:
                finished = {
                    key: value.pin_memory() if isinstance(value, torch.Tensor) else value
                    for key, value in finished.items()
                }
        batch.finished = finished
        return finished

    def _visual(self, batch: BatchInProgress) -> dict[str, Any]:
        samples = batch.samples
        segmented = [one for sample in samples for one in sample.segmented]
        images = [image for sample in samples for image in sample.encoder_images]
        device = None if self.upload is None else self.upload.device
        visual: dict[str, Any] = {
            "pixel_values": stack_pixels(images, self.options.pixels, device, self.arrays),
            "valid_sizes": _sizes([image_size(image) for image in images]),
            **pad_tokens(
                segmented,
                pad_to_multiple_of=self.options.pad_to_multiple_of,
                arrays=self.arrays,
            ),
            "source_sizes": _sizes([size for s in samples for size in s.raw.source_sizes]),
        }
        if samples[0].raw.prompts is not None:
            prompts = [one for sample in samples for one in sample.raw.prompts or []]
            visual.update(list_regions(prompts, segmented))
            visual.update(self._region_text(samples, prompts))
        if batch.many:
            owners = [place for place, sample in enumerate(samples) for _ in sample.images]
            visual["image_to_sample"] = torch.tensor(owners, dtype=torch.int64)
        visual["sample_index"] = torch.tensor([s.raw.index for s in samples], dtype=torch.int64)
        return visual

    def _region_text(
        self, samples: Sequence[SampleInProgress], prompts: Sequence[Prompts]
    ) -> dict[str, Any]:
        """Texts of the regions: as they are, and as token ids."""
        found: dict[str, Any] = {}
        if all(one.texts is not None for one in prompts):
            found["region_texts"] = [text for one in prompts for text in one.texts or ()]
        if self.options.region_text is not None:
            rows = [row for sample in samples for row in sample.raw.region_texts]
            found.update(layout_regions(self.options.region_text, rows))
        return found

    def _with_text(
        self, samples: Sequence[SampleInProgress], visual: dict[str, Any]
    ) -> dict[str, Any]:
        if self.options.encoder is None:
            return visual
        return layout_text(
            self.options.encoder,
            [sample.raw.text for sample in samples if sample.raw.text is not None],
            [[one.num_tokens for one in sample.segmented] for sample in samples],
            visual,
            packing=self.options.packing,
            pad_to_multiple_of=self.options.pad_to_multiple_of,
        )


def _refuse_total_failure(batch: BatchInProgress, error: Exception | None = None) -> None:
    """Raise if inference failed on every image: then the model is at fault, not an image."""
    failed = [sample.error for sample in batch.samples]
    if all(failed):
        first = error or failed[0]
        raise SubtokError(f"inference failed on every image of a batch: {first}") from first


def _count_text(batch: dict[str, Any]) -> int:
    """Count the places of ``input_ids`` that are no padding."""
    if "input_ids" not in batch:
        return 0
    mask = batch.get("attention_mask")  # absent when packed: then nothing is padded
    return batch["input_ids"].numel() if mask is None else int(mask.sum())


def _sizes(sizes: Sequence[tuple[int, int]]) -> torch.Tensor:
    return torch.tensor(list(sizes), dtype=torch.int64).reshape(-1, 2)
