"""Samples in the main process, on their way from images to tokens."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtok_data.data.collation.pending_batch import RawBatch
from subtok_data.data.pool import SegmentPool
from subtok_data.data.replacement import Replacement
from subtok_data.errors import SampleError, SubtokError
from subtok_data.images import image_size
from subtok_data.segment import Prompts, Segmented, SegmentTask, add_prompts
from subtok_data.segmenters import Evidence
from subtok_data.text import EncodedText, RegionRow

__all__ = ["BatchInProgress", "BatchSample", "SampleInProgress"]
_ABOUT_ONE_IMAGE = (ValueError, TypeError, KeyError, IndexError, ArithmeticError)
"""What cutting may raise over an image; anything else is no fault of the sample."""


@dataclass(kw_only=True)
class SampleInProgress:
    """The images of one sample, what they are cut into, or why they are not.

    Attributes
    ----------
    index : int
        Of the sample in its dataset; −1 where it has none.
    path : str or None
        File of the first image, where it is known.
    images : list of (H, W, 3) uint8 arrays
        At the size that is cut; none for a sample that failed before.
    prompts : list of Prompts or None
        Prompts of each image.
    futures : list of Future
        One an image, once they are submitted.
    cut : list of Segmented
        One an image, once they are collected without a failure.
    error : SampleError or None
        The first failure.
    """

    index: int
    path: str | None
    images: list[NDArray[np.uint8]]
    prompts: list[Prompts] | None = None
    futures: list[Future[Segmented]] = field(default_factory=list[Future[Segmented]])
    cut: list[Segmented] = field(default_factory=list[Segmented])
    error: SampleError | None = None

    def fail(self, error: BaseException, stage: str) -> None:
        """Remember the first failure, with the sample's name on it."""
        if self.error is None:
            self.error = SampleError.of(error, index=self.index, path=self.path, stage=stage)

    def submit(self, task: SegmentTask, evidence: Sequence[Evidence], pool: SegmentPool) -> None:
        """Hand every image with its evidence to the pool, unless the sample failed."""
        if self.error is not None:
            return
        for place, (image, found) in enumerate(zip(self.images, evidence, strict=True)):
            if self.prompts is not None:
                found = add_prompts(found, self.prompts[place])
            self.futures.append(pool.submit(task, found, image_size(image), image))

    def collect(self) -> None:
        """Wait for the pool; a failure stays with the sample."""
        for future in self.futures:
            try:
                self.cut.append(future.result())
            except SampleError as error:
                self.fail(error, error.stage or "segment")
            except _ABOUT_ONE_IMAGE as error:
                self.fail(error, "segment")


@dataclass(kw_only=True)
class BatchSample(SampleInProgress):
    """One sample of a batch, with what the batch needs beside its tokens.

    ``encoder_images`` and ``source_sizes`` have an entry for each image, and so have ``token_maps``
    and ``token_fields`` where tokens were stored. ``region_texts`` has a row for each prompt.
    """

    encoder_images: list[NDArray[np.uint8]]
    source_sizes: list[tuple[int, int]]
    token_maps: list[NDArray[Any]] | None
    token_fields: list[dict[str, NDArray[Any]]] | None
    text: EncodedText | None
    region_texts: list[RegionRow] | None

    def stored_evidence(self) -> list[Evidence] | None:
        """Stored tokens of each image in place of what a segmenter finds; None without any."""
        if self.token_maps is None or self.token_fields is None:
            return None
        return [
            {"token_map": token_map, **{f"field_{name}": fields[name] for name in fields}}
            for token_map, fields in zip(self.token_maps, self.token_fields, strict=True)
        ]

    def collect(self) -> None:
        """Wait for the pool, and see that the tokens leave room for the text."""
        super().collect()
        if self.error is None and self.text is not None:
            try:
                self.text.check_fits([cut.num_tokens for cut in self.cut])
            except ValueError as error:
                self.fail(SubtokError(str(error)), "finish")


@dataclass
class BatchInProgress:
    """A batch under way: its samples, and what is collated already."""

    samples: list[BatchSample]
    columns: dict[str, Any]
    many: bool
    has_stored_tokens: bool
    replaced: list[Replacement]

    @classmethod
    def of(cls, raw: RawBatch) -> BatchInProgress:
        """Lay out a raw batch sample by sample; images are views of its buffer."""
        images = iter(raw.images.unpack())
        encoder = None if raw.encoder_images is None else iter(raw.encoder_images.unpack())
        maps = None if raw.token_maps is None else iter(raw.token_maps.unpack())
        fields = None if raw.token_fields is None else iter(raw.token_fields)
        prompts = None if raw.prompts is None else iter(raw.prompts)
        sizes = iter(raw.source_sizes)
        samples: list[BatchSample] = []
        for place, count in enumerate(raw.images_per_sample):
            own = [next(images) for _ in range(count)]
            samples.append(
                BatchSample(
                    index=raw.sample_index[place],
                    path=raw.paths[place],
                    images=own,
                    encoder_images=own
                    if encoder is None
                    else [next(encoder) for _ in range(count)],
                    source_sizes=[next(sizes) for _ in range(count)],
                    token_maps=None if maps is None else [next(maps) for _ in range(count)],
                    token_fields=None if fields is None else [next(fields) for _ in range(count)],
                    text=None if raw.texts is None else raw.texts[place],
                    prompts=None if prompts is None else [next(prompts) for _ in range(count)],
                    region_texts=None if raw.region_texts is None else raw.region_texts[place],
                )
            )
        return cls(samples, raw.columns, raw.many, raw.tokens_hash is not None, list(raw.replaced))

    @property
    def has_failures(self) -> bool:
        """Whether a sample failed."""
        return any(sample.error is not None for sample in self.samples)
