"""Masks as run lengths, COCO's uncompressed ``counts``: the one codec of the package."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from subtok_data.segment.masks.spans import find_spans, join_spans, resize_spans
from subtok_data.segment.partition import Evidence

__all__ = ["RLEMasks", "encode_mask", "mask_box"]


@dataclass(frozen=True, eq=False)
class RLEMasks:
    """Masks of one image as run lengths: as much memory as their outlines, not their area.

    Runs are COCO's: column by column, the first run is outside (and may be empty).

    Parameters
    ----------
    size : (H, W)
        Size of the image in pixels.
    counts : (R,) int32
        Run lengths of all masks, one after the other; those of a mask sum to H · W.
    offsets : (M + 1,) int64
        Where the runs of each mask begin in ``counts``.
    scores : (M,) float32
        Quality of each mask, finite.
    fields : mapping of str to (M,) array
        More about each mask: its class, its prompt, its stability.

    Raises
    ------
    ValueError
        Runs that are not masks of that size, scores that are not finite, or lengths that do not
        fit together.

    Examples
    --------
    >>> masks = RLEMasks.from_masks([np.eye(2, dtype=bool), np.ones((2, 2), bool)])
    >>> masks.counts.tolist(), masks.areas.tolist()
    ([0, 1, 2, 1, 0, 4], [2, 4])
    """

    size: tuple[int, int]
    counts: NDArray[np.int32]
    offsets: NDArray[np.int64]
    scores: NDArray[np.float32]
    fields: Mapping[str, NDArray[Any]] = field(default_factory=dict[str, "NDArray[Any]"])

    def __post_init__(self) -> None:
        lengths = np.diff(self.offsets)
        fits = (
            self.offsets.ndim == self.counts.ndim == 1
            and len(self.offsets) > 0
            and self.offsets[0] == 0
            and self.offsets[-1] == len(self.counts)
            and bool((lengths > 0).all())
        )
        if not fits:
            raise ValueError(
                f"offsets of {len(self.offsets)} entries do not divide {len(self.counts)} runs "
                "into masks: expected 0, then the end of each mask's runs, each with one or more"
            )
        pixels = self.size[0] * self.size[1]
        if len(self) and (
            self.counts.min() < 0
            or (np.add.reduceat(self.counts.astype(np.int64), self.offsets[:-1]) != pixels).any()
        ):
            raise ValueError(
                f"runs that are not masks of {self.size[0]} × {self.size[1]} pixels: the runs of "
                f"each mask are at least 0 and sum to {pixels}; were they made for another size?"
            )
        for name, values in {"scores": self.scores, **self.fields}.items():
            if values.shape != (len(self),):
                raise ValueError(
                    f"{name} of shape {values.shape}: expected ({len(self)},), one per mask"
                )
        if not np.isfinite(self.scores).all():
            raise ValueError("scores with NaN or infinite values: expected finite numbers")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def areas(self) -> NDArray[np.int64]:
        """Pixels of each mask, (M,)."""
        if len(self) == 0:
            return np.zeros(0, np.int64)
        starts = np.repeat(self.offsets[:-1], np.diff(self.offsets))
        inside = (np.arange(len(self.counts)) - starts) % 2
        return np.add.reduceat(self.counts.astype(np.int64) * inside, self.offsets[:-1])

    @property
    def boxes(self) -> NDArray[np.int64]:
        """Box of each mask, (M, 4): x0, y0, x1, y1, half-open; zeros for an empty mask.

        Examples
        --------
        >>> RLEMasks.from_masks([np.array([[0, 0, 1], [0, 1, 0]], bool)]).boxes.tolist()
        [[1, 0, 3, 2]]
        """
        height = self.size[0]
        owner, starts, ends = find_spans(self.counts, self.offsets)
        left, right = starts // height, (ends - 1) // height
        # What runs on into the next column covers the last row of one and the first of another.
        top = np.where(left == right, starts % height, 0)
        bottom = np.where(left == right, (ends - 1) % height + 1, height)
        boxes = np.zeros((len(self), 4), np.int64)
        filled, first = np.unique(owner, return_index=True)
        if len(filled):
            for side, values in enumerate((left, top)):
                boxes[filled, side] = np.minimum.reduceat(values, first)
            for side, values in enumerate((right + 1, bottom), start=2):
                boxes[filled, side] = np.maximum.reduceat(values, first)
        return boxes

    def runs(self, index: int) -> NDArray[np.int32]:
        """Return the run lengths of one mask."""
        return self.counts[self.offsets[index] : self.offsets[index + 1]]

    def mask(self, index: int) -> NDArray[np.bool_]:
        """Return one mask as (H, W) bool."""
        counts = self.runs(index)
        flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        return np.ascontiguousarray(flat.reshape(self.size[1], self.size[0]).T)

    def take(self, indices: ArrayLike) -> RLEMasks:
        """Return some of the masks, in the order given.

        Examples
        --------
        >>> masks = RLEMasks.from_masks([np.eye(2, dtype=bool), np.ones((2, 2), bool)])
        >>> masks.take([1]).areas
        array([4])
        """
        kept = np.asarray(indices, np.int64)
        fields = {name: values[kept] for name, values in self.fields.items()}
        runs = [self.runs(index) for index in kept]
        return RLEMasks.from_runs(runs, self.size, self.scores[kept], fields)

    def resized(self, size: tuple[int, int]) -> RLEMasks:
        """Return the masks at another size; each new pixel is what lies under its centre.

        A mask that no centre falls into keeps one pixel, that of the middle one of its pixels;
        empty masks stay empty.

        Examples
        --------
        >>> masks = RLEMasks.from_masks([np.eye(4, dtype=bool)])
        >>> masks.resized((2, 2)).mask(0).tolist()
        [[True, False], [False, True]]
        """
        if tuple(size) == tuple(self.size):
            return self
        height, width = (int(side) for side in size)
        spans = find_spans(self.counts, self.offsets)
        resized = resize_spans(spans, self.size, (height, width))
        counts, offsets = join_spans(resized, len(self), height * width)
        return RLEMasks((height, width), counts, offsets, self.scores, self.fields)

    @classmethod
    def from_runs(
        cls,
        runs: Sequence[NDArray[Any] | Sequence[int]],
        size: tuple[int, int],
        scores: Sequence[float] | NDArray[Any] | None = None,
        fields: Mapping[str, NDArray[Any]] | None = None,
    ) -> RLEMasks:
        """Join the run lengths of single masks, as in COCO's uncompressed ``"counts"``.

        Parameters
        ----------
        runs : sequence of int sequences
            One per mask.
        size : (H, W)
            Of all masks.
        scores : sequence of float, optional
            One per mask; 0 if not given.
        fields : mapping, optional
            More about each mask.
        """
        arrays = [np.asarray(one, np.int32) for one in runs]
        return cls(
            size,
            np.concatenate([np.zeros(0, np.int32), *arrays]),
            np.cumsum([0, *(len(one) for one in arrays)], dtype=np.int64),
            np.zeros(len(arrays), np.float32) if scores is None else np.asarray(scores, np.float32),
            fields or {},
        )

    @classmethod
    def from_masks(
        cls,
        masks: Iterable[NDArray[np.bool_]],
        scores: Sequence[float] | NDArray[Any] | None = None,
        fields: Mapping[str, NDArray[Any]] | None = None,
        *,
        size: tuple[int, int] | None = None,
    ) -> RLEMasks:
        """Encode masks one at a time; an iterator is never held as a whole.

        Parameters
        ----------
        masks : iterable of (H, W) bool arrays
            All of one size.
        scores, fields
            See :meth:`from_runs`.
        size : (H, W), optional
            Needed where there may be no mask at all.

        Raises
        ------
        ValueError
            Masks that differ in size, or none without ``size``.
        """
        runs: list[NDArray[np.int32]] = []
        for index, mask in enumerate(masks):
            size = size or (mask.shape[0], mask.shape[1])
            if mask.shape != tuple(size):
                raise ValueError(f"mask {index} of shape {mask.shape}: expected {tuple(size)}")
            runs.append(encode_mask(mask))
        if size is None:
            raise ValueError("no masks: give size=(height, width)")
        return cls.from_runs(runs, size, scores, fields)

    @classmethod
    def from_bits(
        cls,
        bits: NDArray[np.uint8],
        size: tuple[int, int],
        scores: Sequence[float] | NDArray[Any] | None = None,
        fields: Mapping[str, NDArray[Any]] | None = None,
    ) -> RLEMasks:
        """Encode masks that are bits, as ``numpy.packbits(masks, axis=-1)`` gives them.

        Parameters
        ----------
        bits : (M, H, ceil(W / 8)) uint8
            Eight pixels of a row in each byte, the first in the highest bit.
        size : (H, W)
            Of the masks.
        scores, fields
            See :meth:`from_runs`.

        Raises
        ------
        ValueError
            Bits of another shape or type.
        """
        height, width = size
        if bits.shape[1:] != (height, -(-width // 8)) or bits.dtype != np.uint8:
            raise ValueError(
                f"bits of shape {bits.shape}, dtype {bits.dtype}: expected "
                f"(M, {height}, {-(-width // 8)}) uint8 for masks of {height} × {width} pixels"
            )
        unpacked = (np.unpackbits(one, axis=-1, count=width).view(np.bool_) for one in bits)
        return cls.from_masks(unpacked, scores, fields, size=size)

    def to_evidence(self) -> dict[str, NDArray[Any]]:
        """Convert to named arrays, for the way to a segment worker."""
        return {
            "mask_size": np.array(self.size, np.int64),
            "mask_counts": self.counts,
            "mask_offsets": self.offsets,
            "mask_scores": self.scores,
            **{f"mask_field_{name}": values for name, values in self.fields.items()},
        }

    @classmethod
    def from_evidence(cls, evidence: Evidence) -> RLEMasks:
        """Read what :meth:`to_evidence` wrote."""
        height, width = (int(side) for side in evidence["mask_size"])
        return cls(
            (height, width),
            evidence["mask_counts"],
            evidence["mask_offsets"],
            evidence["mask_scores"],
            {
                name.removeprefix("mask_field_"): values
                for name, values in evidence.items()
                if name.startswith("mask_field_")
            },
        )


def encode_mask(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Encode a mask as run lengths, column by column, the outside first.

    Parameters
    ----------
    mask : (H, W) bool

    Returns
    -------
    (R,) int32
        Lengths; they sum to H · W.

    Examples
    --------
    >>> encode_mask(np.array([[True, False], [True, False]])).tolist()
    [0, 2, 2]
    """
    flat = mask.T.ravel()
    turns = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = [0, 0] if flat.size and flat[0] else [0]
    return np.diff(np.concatenate([starts, turns, [flat.size]])).astype(np.int32)


def mask_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Find the box of a mask that is not encoded; see :attr:`RLEMasks.boxes`.

    Parameters
    ----------
    mask : (H, W) bool

    Returns
    -------
    tuple of int
        x0, y0, x1, y1, half-open; zeros for an empty mask.

    Examples
    --------
    >>> mask_box(np.array([[0, 0, 1], [0, 1, 0]], bool))
    (1, 0, 3, 2)
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if rows.size == 0:
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
