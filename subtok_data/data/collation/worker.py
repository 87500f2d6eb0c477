"""The half of collation that runs in DataLoader workers: decode, resize, encode text, pack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtok_data.batch import PixelConfig, collate_columns
from subtok_data.data.collation.pending_batch import PendingBatch, RawBatch, RawImages
from subtok_data.data.datasets import PromptColumns, Sample, decode_row
from subtok_data.data.position import STREAM_PLACEHOLDER
from subtok_data.data.replacement import Replacement
from subtok_data.errors import ConfigError, SampleError, SubtokError
from subtok_data.images import Canvas, image_size
from subtok_data.segment import Prompts
from subtok_data.text import EncodedText, RegionRow, RegionText, TextEncoder

__all__ = ["WorkerCollator"]


@dataclass(frozen=True, slots=True)
class _Encoded:
    """Texts of a sample as tokens: its own, and those of its regions."""

    text: EncodedText | None
    regions: list[RegionRow]


@dataclass(frozen=True)
class WorkerCollator:
    """The part of collation that runs in DataLoader workers: no model, small to pickle."""

    key: str
    canvas: Canvas
    pixels: PixelConfig
    image_column: str
    columns: tuple[str, ...] | None
    encoder: TextEncoder | None
    on_error: str
    max_pixels: int
    prompts: PromptColumns | None = None
    regions: RegionText | None = None

    def collate(self, rows: Sequence[Any]) -> PendingBatch:
        """Decode what is not decoded yet, resize, encode text, and pack one buffer."""
        if not rows:
            raise ValueError("cannot collate a batch of 0 samples")
        if rows[0] is STREAM_PLACEHOLDER:
            return PendingBatch(collator_key=self.key)
        samples, replaced = self._samples(rows)
        samples, encoded, more = self._encode(samples)
        images = [image for sample in samples for image in sample.images]
        maps = _token_maps(samples)
        fitted = images if maps is not None else [self.canvas.fit(image) for image in images]
        encoder_images = None
        if self.pixels.size is not None:
            encoder_images = RawImages.pack([self.pixels.fit(image) for image in images])
        raw = RawBatch(
            images=RawImages.pack(fitted),
            encoder_images=encoder_images,
            token_maps=None if maps is None else RawImages.pack(maps),
            token_fields=None
            if maps is None
            else [fields for s in samples for fields in s.token_fields or [{}] * len(s.images)],
            tokens_hash=samples[0].tokens_hash,
            source_sizes=[size for sample in samples for size in sample.source_sizes],
            images_per_sample=[len(sample.images) for sample in samples],
            many=any(sample.many for sample in samples),
            sample_index=[sample.index for sample in samples],
            paths=[sample.path for sample in samples],
            columns=collate_columns(
                [self._passing(sample.columns) for sample in samples], self.columns
            ),
            texts=None if self.encoder is None else [one.text for one in encoded],
            prompts=_prompts(samples, fitted),
            region_texts=None if self.regions is None else [one.regions for one in encoded],
            replaced=[*(r for s in samples for r in s.replaced), *replaced, *more],
            position=getattr(rows[-1], "position", None),
        )
        return PendingBatch(raw=raw, collator_key=self.key)

    def _passing(self, columns: dict[str, Any]) -> dict[str, Any]:
        """Columns without those that the text was made of."""
        if self.encoder is None or self.columns is not None:
            return columns
        used = self.encoder.columns
        return {name: value for name, value in columns.items() if name not in used}

    def _samples(self, rows: Sequence[Any]) -> tuple[list[Sample], list[Replacement]]:
        found: list[Sample | SampleError] = []
        for row in rows:
            if isinstance(row, Sample):
                found.append(row)
                continue
            try:
                found.append(
                    decode_row(
                        row,
                        image_column=self.image_column,
                        max_pixels=self.max_pixels,
                        prompts=self.prompts,
                    )
                )
            except SampleError as error:
                if self.on_error == "raise":
                    raise
                found.append(error)
        return _stand_in(found, rows)

    def _encode(
        self, samples: list[Sample]
    ) -> tuple[list[Sample], list[_Encoded], list[Replacement]]:
        """Texts of each sample as tokens; a sample whose text is bad is replaced."""
        if self.encoder is None and self.regions is None:
            return samples, [], []
        found: list[Sample | SampleError] = []
        encoded: dict[int, _Encoded] = {}
        for sample in samples:
            try:
                encoded[id(sample)] = self._encoded(sample)
            except (SampleError, ValueError) as error:
                failed = SampleError(
                    str(error),
                    index=sample.index,
                    path=sample.path,
                    stage="collate",
                )
                if self.on_error == "raise":
                    raise failed from error
                found.append(failed)
                continue
            found.append(sample)
        kept, replaced = _stand_in(found, samples)
        return kept, [encoded[id(sample)] for sample in kept], replaced

    def _encoded(self, sample: Sample) -> _Encoded:
        text = None
        if self.encoder is not None:
            text = self.encoder.encode(sample.columns, len(sample.images))
        if self.regions is None:
            return _Encoded(text, [])
        texts = [one.texts for one in sample.prompts or ()]
        if not texts or None in texts:
            raise ConfigError(
                "region_text= needs regions with texts: take a RegionDataset, or name the column "
                "in PromptColumns(texts=…)"
            )
        words = [text for own in texts for text in own or ()]
        return _Encoded(text, self.regions.encode(words, sample.columns))


def _stand_in(
    found: Sequence[Sample | SampleError], rows: Sequence[Any]
) -> tuple[list[Sample], list[Replacement]]:
    """Put the next good sample of the batch, cyclically, in place of each failure."""
    good = [sample for sample in found if isinstance(sample, Sample)]
    if not good:
        raise SubtokError(f"all {len(rows)} samples of a batch are bad; the first: {found[0]}")
    if len(good) == len(found):
        return good, []
    kept: list[Sample] = []
    replaced: list[Replacement] = []
    for place, sample in enumerate(found):
        if isinstance(sample, Sample):
            kept.append(sample)
            continue
        ring = [*found[place + 1 :], *found[:place]]
        other = next(s for s in ring if isinstance(s, Sample))
        kept.append(other)
        index = -1 if sample.index is None else sample.index
        replaced.append(Replacement(index, other.index, str(sample)))
    return kept, replaced


def _prompts(
    samples: Sequence[Sample], fitted: Sequence[NDArray[np.uint8]]
) -> list[Prompts] | None:
    """Prompts of all images, on the grid that is cut into tokens."""
    if not any(sample.prompts is not None for sample in samples):
        return None
    if any(sample.prompts is None for sample in samples):
        raise ConfigError(
            "a batch mixes samples with prompts and samples without: name columns of prompts for "
            "all datasets of a mixture"
        )
    prompts = [one for sample in samples for one in sample.prompts or []]
    return [one.resized(image_size(image)) for one, image in zip(prompts, fitted, strict=True)]


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
