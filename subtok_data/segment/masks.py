"""Overlapping masks that leave gaps, as runs; and the partition that is made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from subtok_data.errors import ConfigError
from subtok_data.segment.budget import check_count
from subtok_data.segment.partition import Evidence, Partition
from subtok_data.segment.parts import PartRules, edge_levels, fill_parts, pick

__all__ = ["MaskPartitioner", "PackedMasks", "PaintOrder", "encode_mask"]

PaintOrder = Literal["area", "score"]


@dataclass(frozen=True, eq=False)
class PackedMasks:
    """Masks of one picture as run lengths: as much memory as their outlines, not their area.

    Runs are COCO's: column by column, the first run is outside (and may be empty).

    Parameters
    ----------
    size : (H, W)
        Size of the picture in pixels.
    counts : (R,) int32
        Run lengths of all masks, one after the other; those of a mask sum to H · W.
    offsets : (M + 1,) int64
        Where the runs of each mask begin in ``counts``.
    scores : (M,) float32
        Quality of each mask, finite.
    fields : mapping of str to (M,) integer array
        More about each mask: its class, its prompt.

    Raises
    ------
    ValueError
        Runs that are not masks of that size, scores that are not finite, or lengths that do not
        fit together.

    Examples
    --------
    >>> masks = PackedMasks.from_masks([np.eye(2, dtype=bool), np.ones((2, 2), bool)])
    >>> masks.counts.tolist(), masks.areas.tolist()
    ([0, 1, 2, 1, 0, 4], [2, 4])
    """

    size: tuple[int, int]
    counts: NDArray[np.int32]
    offsets: NDArray[np.int64]
    scores: NDArray[np.float32]
    fields: Mapping[str, NDArray[np.integer[Any]]] = field(
        default_factory=dict[str, "NDArray[np.integer[Any]]"]
    )

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
                f"offsets of {len(self.offsets)} entries do not cut {len(self.counts)} runs into "
                "masks: expected 0, then the end of each mask's runs, every mask with one or more"
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

    def mask(self, index: int) -> NDArray[np.bool_]:
        """Return one mask as (H, W) bool."""
        counts = self.counts[self.offsets[index] : self.offsets[index + 1]]
        flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        return np.ascontiguousarray(flat.reshape(self.size[1], self.size[0]).T)

    @classmethod
    def from_runs(
        cls,
        runs: Sequence[NDArray[Any] | Sequence[int]],
        size: tuple[int, int],
        scores: Sequence[float] | NDArray[Any] | None = None,
        fields: Mapping[str, NDArray[np.integer[Any]]] | None = None,
    ) -> PackedMasks:
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
        fields: Mapping[str, NDArray[np.integer[Any]]] | None = None,
        *,
        size: tuple[int, int] | None = None,
    ) -> PackedMasks:
        """Pack masks one at a time; an iterator is never held as a whole.

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
        fields: Mapping[str, NDArray[np.integer[Any]]] | None = None,
    ) -> PackedMasks:
        """Pack masks that are bits, as ``numpy.packbits(masks, axis=-1)`` gives them.

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
        """Named arrays, for the way to a segment worker."""
        return {
            "mask_size": np.array(self.size, np.int64),
            "mask_counts": self.counts,
            "mask_offsets": self.offsets,
            "mask_scores": self.scores,
            **{f"mask_field_{name}": values for name, values in self.fields.items()},
        }

    @classmethod
    def from_evidence(cls, evidence: Evidence) -> PackedMasks:
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
    """Run lengths of a mask, column by column, the outside first.

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


@dataclass(frozen=True)
class MaskPartitioner:
    """Makes a partition of masks that overlap and leave gaps (SAM's, or any model's).

    Masks are painted over one another, which makes them disjoint; their 4-connected parts become
    tokens, and large gaps between them; what is left is flooded from those. Reads the arrays of
    :meth:`PackedMasks.to_evidence`, and ``boundary_map`` where ``rules.fill`` is ``"boundary"``.

    Parameters
    ----------
    paint : {"area", "score"}
        What lies on top: the smaller mask, or the one of higher score. Of equals, what is higher in
        the other measure, then the earlier.
    rules : PartRules
        Which parts become tokens, and who gets the rest.
    min_region : int
        Holes and islands of masks below this many pixels are cleaned first, and duplicates that
        this makes left out (:func:`~subtok_data.segment.regions.clean_masks`); 0: masks as given.

    Raises
    ------
    ConfigError
        An unknown order, or a negative area.

    Examples
    --------
    >>> outer, inner = np.array([[1, 1, 1, 0]], bool), np.array([[0, 1, 0, 0]], bool)
    >>> masks = PackedMasks.from_masks([outer, inner])
    >>> partition = MaskPartitioner(rules=PartRules(0, 1))(masks.to_evidence(), (1, 4))
    >>> partition.token_map, partition.token_fields["source"]
    (array([[0, 1, 2, 3]], dtype=int16), array([0, 0, 0, 1]))
    """

    paint: PaintOrder = "area"
    rules: PartRules = field(default_factory=PartRules)
    min_region: int = 0

    def __post_init__(self) -> None:
        check_count("min_region", self.min_region, least=0, optional=False)
        if self.paint not in get_args(PaintOrder):
            raise ConfigError(f"paint={self.paint!r}: expected one of {get_args(PaintOrder)}")

    @property
    def has_cost_map(self) -> bool:
        """Whether tokens merge along a boundary map."""
        return self.rules.has_cost_map

    def __call__(self, evidence: Evidence, size: tuple[int, int]) -> Partition:
        """Cut a picture.

        Parameters
        ----------
        evidence : mapping of str to array
            See the class.
        size : (H, W)
            Size of the picture.

        Returns
        -------
        Partition
            Token fields ``source`` (0 for a mask, 1 for a gap), ``score`` (0 for a gap) and those
            of the masks (−1 for a gap).

        Raises
        ------
        ValueError
            Masks of another size than the picture.
        """
        from subtok_data.segment.kernels.masks import paint_masks
        from subtok_data.segment.regions import clean_masks  # which knows PackedMasks

        masks = PackedMasks.from_evidence(evidence)
        if masks.size != tuple(size):
            raise ValueError(
                f"masks of {masks.size[0]} × {masks.size[1]} pixels for a picture of "
                f"{size[0]} × {size[1]}: masks must have the size of the picture that is cut"
            )
        masks = clean_masks(masks, self.min_region)
        levels = edge_levels(evidence, size, self.rules)
        canvas = np.full((size[1], size[0]), -1, np.int32)
        paint_masks(masks.counts, masks.offsets, self._order(masks), canvas.reshape(-1))
        token_map, labels = fill_parts(canvas.T, self.rules, levels)
        fields: dict[str, NDArray[Any]] = {
            "source": (labels < 0).astype(np.int64),
            "score": pick(masks.scores, labels, "score"),
            **{name: pick(values, labels, name) for name, values in masks.fields.items()},
        }
        return Partition(token_map, len(labels), levels, fields)

    def _order(self, masks: PackedMasks) -> NDArray[np.int64]:
        """Masks, the lowest first."""
        late = -np.arange(len(masks))
        small, good = -masks.areas, masks.scores
        keys = (late, good, small) if self.paint == "area" else (late, small, good)
        return np.lexsort(keys).astype(np.int64)
