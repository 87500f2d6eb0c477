"""Samples and batches in the main process, on their way from images to tokens."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from subtok_data.data.collation.pending_batch import RawBatch, RawSample
from subtok_data.data.pool import SegmentJob, SegmentPool
from subtok_data.data.position import StreamPosition
from subtok_data.data.replacement import Replacement
from subtok_data.errors import SampleError, SubtokError
from subtok_data.images import image_size
from subtok_data.segment import Segmented, SegmentTask, add_prompts
from subtok_data.segmenters import Evidence, PendingInference

__all__ = ["BatchInProgress", "SampleInProgress"]

_ABOUT_ONE_IMAGE = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    ArithmeticError,
    MemoryError,
)
"""What a partitioner may raise over an image; anything else is no fault of the sample."""


@dataclass(kw_only=True)
class SampleInProgress:
    """A raw sample with its pixels, and what was made of them so far.

    Attributes
    ----------
    raw : RawSample
        Index, sizes, prompts, text.
    images : list of (H, W, 3) uint8 arrays
        At the size that is segmented; none for a sample that could not be decoded.
    encoder_images : list of (H, W, 3) uint8 arrays
        At the encoder's size.
    token_maps : list of (H, W) integer arrays or None
        Tokens of each image that are known already: stored, or found in a cache.
    evidence : list of Evidence
        One per image, between inference and the pool.
    futures : list of Future
        One per image, once they are in the pool.
    segmented : list of Segmented
        One per image, once they are collected without a failure.
    error : SampleError or None
        The first failure.
    """

    raw: RawSample
    images: list[NDArray[np.uint8]]
    encoder_images: list[NDArray[np.uint8]] = field(default_factory=list[NDArray[np.uint8]])
    token_maps: list[NDArray[Any]] | None = None
    evidence: list[Evidence] = field(default_factory=list[Evidence])
    futures: list[Future[Segmented]] = field(default_factory=list[Future[Segmented]])
    segmented: list[Segmented] = field(default_factory=list[Segmented])
    error: SampleError | None = None

    def fail(self, error: BaseException, stage: str) -> None:
        """Remember the first failure, with the sample's name on it."""
        if self.error is None:
            raw = self.raw
            self.error = SampleError.of(error, index=raw.index, path=raw.path, stage=stage)

    def take_stored_tokens(self) -> None:
        """Take tokens that are known already in place of what a segmenter would find."""
        fields = self.raw.token_fields or [{} for _ in self.images]
        self.evidence = [
            {"token_map": token_map, **{f"field_{name}": own[name] for name in own}}
            for token_map, own in zip(self.token_maps or [], fields, strict=True)
        ]

    def submit(self, task: SegmentTask, pool: SegmentPool) -> None:
        """Hand every image with its evidence to the pool, unless the sample failed."""
        evidence, self.evidence = self.evidence, []
        if self.error is not None:
            return
        prompts = self.raw.prompts
        for place, (image, found) in enumerate(zip(self.images, evidence, strict=True)):
            if prompts is not None:
                found = add_prompts(found, prompts[place])
            self.futures.append(pool.submit(SegmentJob(task, found, image_size(image), image)))

    def collect(self) -> None:
        """Wait for the pool, and check that the tokens leave room for the text."""
        for future in self.futures:
            try:
                self.segmented.append(future.result())
            except SampleError as error:
                self.fail(error, error.stage or "segment")
            except _ABOUT_ONE_IMAGE as error:
                self.fail(error, "segment")
        if self.error is None and self.raw.text is not None and not self.raw.awaits_tokens:
            try:
                self.raw.text.check_fits([one.num_tokens for one in self.segmented])
            except ValueError as error:
                self.fail(SubtokError(str(error)), "finish")


@dataclass(kw_only=True)
class BatchInProgress:
    """Samples that go through the stages together, and what of the batch is made already.

    Attributes
    ----------
    samples : list of SampleInProgress
        In batch order.
    columns : dict
        Collated columns that pass through.
    many : bool
        Whether samples hold lists of images.
    replaced : list of Replacement
        Samples that were replaced so far.
    position : StreamPosition or None
        Position of a stream after the batch.
    nbytes : int
        Bytes of the raw pixel and map buffers.
    inference : PendingInference or None
        Inference under way on a device.
    finished : dict or None
        The batch, once it is padded.
    sent : torch.cuda.Event or None
        Comes when the finished batch is on its device.
    text_tokens : int
        Places of ``input_ids`` that are no padding; 0 without text.
    """

    samples: list[SampleInProgress]
    columns: dict[str, Any] = field(default_factory=dict[str, Any])
    many: bool = False
    replaced: list[Replacement] = field(default_factory=list[Replacement])
    position: StreamPosition | None = None
    nbytes: int = 0
    inference: PendingInference | None = None
    finished: dict[str, Any] | None = None
    sent: torch.cuda.Event | None = None
    text_tokens: int = 0

    @classmethod
    def of(cls, raw: RawBatch) -> BatchInProgress:
        """Give each raw sample its pixels, as views of the buffers of the batch."""
        images = iter(raw.images.unpack())
        encoder = None if raw.encoder_images is None else iter(raw.encoder_images.unpack())
        maps = iter([] if raw.token_maps is None else raw.token_maps.unpack())
        samples: list[SampleInProgress] = []
        for sample in raw.samples:
            count = sample.num_images
            own = list(islice(images, count))
            samples.append(
                SampleInProgress(
                    raw=sample,
                    images=own,
                    encoder_images=own if encoder is None else list(islice(encoder, count)),
                    token_maps=None if sample.tokens == "model" else list(islice(maps, count)),
                )
            )
        return cls(
            samples=samples,
            columns=raw.columns,
            many=raw.many,
            replaced=list(raw.replaced),
            position=raw.position,
            nbytes=raw.nbytes,
        )

    @property
    def to_infer(self) -> list[SampleInProgress]:
        """Samples whose tokens are not known already."""
        return [sample for sample in self.samples if sample.token_maps is None]

    @property
    def has_failures(self) -> bool:
        """Whether a sample failed."""
        return any(sample.error is not None for sample in self.samples)

    @property
    def is_settled(self) -> bool:
        """Whether it can be padded as it is: no sample failed or is to be loaded again."""
        return not self.has_failures and not any(s.raw.awaits_tokens for s in self.samples)

    def take_evidence(self, evidence: Sequence[Evidence | Exception]) -> None:
        """Share out what was inferred for the images of :attr:`to_infer`, in order.

        An exception in place of evidence is the failure of its sample.
        """
        each = iter(evidence)
        for sample in self.to_infer:
            sample.evidence = []
            for found in islice(each, len(sample.images)):
                if isinstance(found, Exception):
                    sample.fail(found, "infer")
                else:
                    sample.evidence.append(found)

    def wait(self) -> None:
        """Wait until the pool is done with all images, failures included.

        This thread wakes up once, not once for each image: every time it takes the interpreter lock
        from the threads that launch and train.
        """
        futures = [future for sample in self.samples for future in sample.futures]
        pending = [future for future in futures if not future.done()]
        left, lock, all_done = len(pending), threading.Lock(), threading.Event()

        def count_down(future: Future[Segmented]) -> None:
            nonlocal left
            del future
            with lock:
                left -= 1
                if left == 0:
                    all_done.set()

        # Not concurrent.futures.wait, which never hears of a future that was cancelled.
        for future in pending:
            future.add_done_callback(count_down)
        if pending:
            all_done.wait()

    def cancel(self) -> None:
        """Take back what waits for a segment worker."""
        for sample in self.samples:
            for future in sample.futures:
                future.cancel()
