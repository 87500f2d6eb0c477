"""The half of collation that runs in DataLoader workers: decode, resize, encode text, pack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtok_data.arguments import check_count, check_flag, check_text, check_type
from subtok_data.batch import PixelConfig, collate_columns
from subtok_data.data.cache import CacheReader
from subtok_data.data.collation.pending_batch import PendingBatch, RawBatch, RawImages, RawSample
from subtok_data.data.datasets import PromptColumns, Sample, decode_row
from subtok_data.data.position import STREAM_PLACEHOLDER
from subtok_data.data.replacement import Replacement, check_on_error, next_good
from subtok_data.errors import ConfigError, SampleError, SubtokError
from subtok_data.images import DEFAULT_MAX_PIXELS, Canvas, decode_whole, image_size
from subtok_data.segment import Prompts
from subtok_data.text import RegionRow, RegionText, TextEncoder

__all__ = ["BatchOptions", "WorkerCollator"]


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How batches look, and what bad samples do; fields as in :class:`SubobjectCollator`.

    Parameters
    ----------
    encoder : TextEncoder or None
        Makes the text keys.

    Raises
    ------
    ConfigError
        If an option is out of range, or ``packing`` is set without text.
    """

    image_column: str = "image"
    encoder: TextEncoder | None = None
    packing: bool = False
    columns: tuple[str, ...] | None = None
    pixels: PixelConfig = field(default_factory=PixelConfig)
    pad_to_multiple_of: int = 1
    shape_size: int | None = None
    on_error: str = "raise"
    max_pixels: int = DEFAULT_MAX_PIXELS
    prompts: PromptColumns | None = None
    region_text: RegionText | None = None

    def __post_init__(self) -> None:
        check_on_error(self.on_error)
        check_flag("packing", self.packing)
        check_text("image_column", self.image_column, "the key of the image in dict rows")
        check_count("pad_to_multiple_of", self.pad_to_multiple_of, optional=False)
        check_count("shape_size", self.shape_size)
        check_count("max_pixels", self.max_pixels, unit="pixels")
        check_type("pixels", self.pixels, PixelConfig, "give pixels=PixelConfig(size=…)")
        if self.prompts is not None:
            check_type("prompts", self.prompts, PromptColumns, 'give PromptColumns(boxes="…")')
        if self.region_text is not None:
            check_type("region_text", self.region_text, RegionText, "give RegionText(…)")
        if self.packing and self.encoder is None:
            raise ConfigError("packing=True packs rows of text: give text=TextConfig(…) too")


@dataclass(frozen=True)
class WorkerCollator:
    """The collator that DataLoader workers get: no model, small to pickle.

    Parameters
    ----------
    canvas : Canvas
        Size of the images that are segmented.
    options : BatchOptions
        How batches look.
    key : str, optional
        The collator of the main process that finishes its pending batches.
    cache : CacheReader, optional
        Where images are looked up; what is found needs no model.
    """

    canvas: Canvas
    options: BatchOptions
    key: str = ""
    cache: CacheReader | None = None

    def __call__(self, rows: Sequence[Any]) -> PendingBatch:
        """Collate rows into a pending batch."""
        if rows and rows[0] is STREAM_PLACEHOLDER:
            return PendingBatch(collator_key=self.key)
        return PendingBatch(raw=self.collate(rows), collator_key=self.key)

    def collate(self, rows: Sequence[Any]) -> RawBatch:
        """Decode what is not decoded yet, resize, encode text, and pack the pixels.

        Raises
        ------
        SampleError
            If a sample is bad and ``on_error`` is ``"raise"``.
        SubtokError
            If all samples are bad.
        ConfigError
            If a column is missing, or samples do not go together.
        """
        if not rows:
            raise ValueError("cannot collate a batch of 0 samples")
        samples, replaced = self._samples(rows)
        samples, raws, more = self._raw_samples(samples)
        sources = [source for sample in samples for source in sample.sources]
        resized = [
            # Images with known tokens have the size of their maps.
            decode_whole(source) if sample.token_maps is not None else self.canvas.fit(source)
            for sample in samples
            for source in sample.sources
        ]
        prompts = iter(_prompts(samples, resized))
        for raw, sample in zip(raws, samples, strict=True):
            if sample.prompts is not None:
                raw.prompts = [next(prompts) for _ in sample.sources]
        if self.cache is None:
            maps = _token_maps(samples)
        else:
            maps = self._look_up(self.cache, raws, samples, resized)
        pixels = self.options.pixels
        encoder_images = None
        if pixels.size is not None:
            encoder_images = RawImages.pack(
                [pixels.fit(source, self.canvas.decoded_size(source)) for source in sources]
            )
        return RawBatch(
            samples=raws,
            images=RawImages.pack(resized),
            encoder_images=encoder_images,
            token_maps=None if maps is None else RawImages.pack(maps),
            tokens_hash=samples[0].tokens_hash,
            many=any(sample.many for sample in samples),
            columns=collate_columns(
                [self._passing(sample.columns) for sample in samples], self.options.columns
            ),
            replaced=[*(r for s in samples for r in s.replaced), *replaced, *more],
            position=getattr(rows[-1], "position", None),
            notices=[] if self.cache is None else self.cache.take_notices(),
        )

    def _look_up(
        self,
        cache: CacheReader,
        raws: Sequence[RawSample],
        samples: Sequence[Sample],
        resized: Sequence[NDArray[np.uint8]],
    ) -> list[Any] | None:
        """Take what the cache has of each sample; returns the maps of all, None if it has none."""
        maps: list[Any] = []
        each = iter(resized)
        for raw, sample in zip(raws, samples, strict=True):
            sizes = [image_size(next(each)) for _ in sample.sources]
            if sample.token_maps is not None:
                maps += [token_map.astype("int32") for token_map in sample.token_maps]
                continue
            key = sample.content_key()
            if key is None:  # no image
                continue
            raw.key = cache.key_of(key, raw.prompts)
            if sample.awaits_tokens:
                continue
            found = cache.read(raw.key, raw.room, sizes)
            if found is None:
                continue
            raw.tokens = "cache"
            raw.token_fields = [fields for _, fields in found]
            maps += [token_map.astype("int32") for token_map, _ in found]
        return maps or None

    def _passing(self, columns: dict[str, Any]) -> dict[str, Any]:
        """Columns without those that the text was made of."""
        encoder = self.options.encoder
        if encoder is None or self.options.columns is not None:
            return columns
        used = encoder.columns
        return {name: value for name, value in columns.items() if name not in used}

    def _samples(self, rows: Sequence[Any]) -> tuple[list[Sample], list[Replacement]]:
        found: list[Sample | SampleError] = []
        for row in rows:
            try:
                sample = row if isinstance(row, Sample) else self._open(row)
                sample.decoded(self.canvas.decode)  # so that broken pixels are found here
            except SampleError as error:
                if self.options.on_error == "raise":
                    raise
                found.append(error)
                continue
            found.append(sample)
        return _stand_in(found)

    def _open(self, row: Any) -> Sample:
        return decode_row(
            row,
            image_column=self.options.image_column,
            max_pixels=self.options.max_pixels,
            prompts=self.options.prompts,
            with_key=self.cache is not None,
        )

    def _raw_samples(
        self, samples: list[Sample]
    ) -> tuple[list[Sample], list[RawSample], list[Replacement]]:
        """Samples without pixels, texts as tokens; one whose text is bad is replaced."""
        found: list[Sample | SampleError] = []
        raws: dict[int, RawSample] = {}
        for sample in samples:
            try:
                raws[id(sample)] = self._raw_sample(sample)
            except (SampleError, ValueError) as error:
                failed = SampleError(
                    str(error), index=sample.index, path=sample.path, stage="collate"
                )
                if self.options.on_error == "raise":
                    raise failed from error
                found.append(failed)
                continue
            found.append(sample)
        kept, replaced = _stand_in(found)
        return kept, [raws[id(sample)] for sample in kept], replaced

    def _raw_sample(self, sample: Sample) -> RawSample:
        encoder = self.options.encoder
        text = None if encoder is None else encoder.encode(sample.columns, len(sample.sources))
        return RawSample(
            index=sample.index,
            path=sample.path,
            source_sizes=sample.source_sizes,
            dataset_key=sample.dataset_key,
            tokens="model" if sample.token_maps is None else "store",
            awaits_tokens=sample.awaits_tokens,
            token_fields=sample.token_fields,
            text=text,
            region_texts=self._region_texts(sample),
        )

    def _region_texts(self, sample: Sample) -> list[RegionRow]:
        region_text = self.options.region_text
        if region_text is None:
            return []
        texts = [one.texts for one in sample.prompts or ()]
        if not texts or None in texts:
            raise ConfigError(
                "region_text= needs regions with texts: take a RegionDataset, or name the column "
                "in PromptColumns(texts=…)"
            )
        words = [text for own in texts for text in own or ()]
        return region_text.encode(words, sample.columns)


def _stand_in(
    found: Sequence[Sample | SampleError],
) -> tuple[list[Sample], list[Replacement]]:
    """Put the next good sample of the batch, cyclically, in place of each failure."""
    good = {place: sample for place, sample in enumerate(found) if isinstance(sample, Sample)}
    usable = [place in good for place in range(len(found))]
    kept: list[Sample] = []
    replaced: list[Replacement] = []
    for place, sample in enumerate(found):
        if isinstance(sample, Sample):
            kept.append(sample)
            continue
        other = next_good(usable, place)
        if other is None:
            raise SubtokError(f"all {len(found)} samples of a batch are bad; the first: {found[0]}")
        kept.append(good[other])
        replaced.append(Replacement.of(sample, good[other].index))
    return kept, replaced


def _prompts(samples: Sequence[Sample], resized: Sequence[NDArray[np.uint8]]) -> list[Prompts]:
    """Prompts of all images, in pixels of the images that are segmented; none without any."""
    if not any(sample.prompts is not None for sample in samples):
        return []
    if any(sample.prompts is None for sample in samples):
        raise ConfigError(
            "a batch mixes samples with prompts and samples without: name columns of prompts for "
            "all datasets of a mixture"
        )
    prompts = [one for sample in samples for one in sample.prompts or []]
    return [one.resized(image_size(image)) for one, image in zip(prompts, resized, strict=True)]


def _token_maps(samples: Sequence[Sample]) -> list[Any] | None:
    stored = [sample.token_maps is not None for sample in samples]
    if not any(stored):
        return None
    if not all(stored) or len({sample.tokens_hash for sample in samples}) > 1:
        raise ConfigError(
            "a batch mixes samples with stored tokens and samples without, or of two "
            "configurations: tokenize all datasets of a mixture with the same configuration"
        )
    maps = [token_map for sample in samples for token_map in sample.token_maps or []]
    return [token_map.astype("int32") for token_map in maps]
