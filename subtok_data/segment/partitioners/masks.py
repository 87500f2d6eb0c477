"""Partition from masks that overlap and leave gaps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from subtok_data.arguments import check_choice, check_count, check_share
from subtok_data.segment.masks import (
    FillRules,
    RLEMasks,
    clean_masks,
    fill_parts,
    pick,
    read_cost_map,
)
from subtok_data.segment.partition import Evidence, Partition, Partitioner

__all__ = ["MaskPartitioner", "PaintOrder"]

PaintOrder = Literal["area", "score"]


@dataclass(frozen=True)
class MaskPartitioner(Partitioner):
    """Partitions an image by masks that may overlap and leave gaps (SAM's, or any model's).

    Masks are painted over one another, which makes them disjoint; their 4-connected parts, and
    large gaps between them, become tokens; the other pixels are flooded from those. Reads the
    arrays of :meth:`~subtok_data.segment.RLEMasks.to_evidence`, and ``boundary_map`` where
    ``rules.fill`` is ``"boundary"``.

    Parameters
    ----------
    paint : {"area", "score"}
        What lies on top: the smaller mask, or the one of higher score. Of equals, what is higher in
        the other measure, then the earlier.
    rules : FillRules
        Which parts become tokens, and who gets the rest.
    min_region : int
        Holes and islands of masks below this many pixels are cleaned first, and duplicates that
        this makes left out (``clean_masks``); 0: masks as given.
    max_overlap : float
        IoU of boxes above which one of two cleaned masks counts as a duplicate, 0 to 1.

    Raises
    ------
    ConfigError
        An unknown order, a negative area, or an overlap out of range.

    Examples
    --------
    >>> outer, inner = np.array([[1, 1, 1, 0]], bool), np.array([[0, 1, 0, 0]], bool)
    >>> masks = RLEMasks.from_masks([outer, inner])
    >>> partition = MaskPartitioner(rules=FillRules(0, 1))(masks.to_evidence(), (1, 4))
    >>> partition.token_map, partition.token_fields["source"]
    (array([[0, 1, 2, 3]], dtype=int16), array([0, 0, 0, 1]))
    """

    paint: PaintOrder = "area"
    rules: FillRules = field(default_factory=FillRules)
    min_region: int = 0
    max_overlap: float = 0.7

    def __post_init__(self) -> None:
        check_count("min_region", self.min_region, least=0, optional=False)
        check_share("max_overlap", self.max_overlap)
        check_choice("paint", self.paint, get_args(PaintOrder))

    @property
    def has_cost_map(self) -> bool:
        """Whether the rules fill along a boundary map."""
        return self.rules.has_cost_map

    def __call__(self, evidence: Evidence, size: tuple[int, int]) -> Partition:
        """Partition an image.

        Token fields: ``source`` (0 for a mask, 1 for a gap), ``score`` (0 for a gap) and those of
        the masks (−1 for a gap).
        """
        from subtok_data.segment.kernels import paint_masks

        masks = RLEMasks.from_evidence(evidence)
        if masks.size != tuple(size):
            raise ValueError(
                f"masks of {masks.size[0]} × {masks.size[1]} pixels for an image of "
                f"{size[0]} × {size[1]}: resize the masks to the image"
            )
        masks = clean_masks(masks, self.min_region, self.max_overlap)
        cost_map = read_cost_map(evidence, size, self.rules)
        canvas = np.full((size[1], size[0]), -1, np.int32)
        paint_masks(masks.counts, masks.offsets, self._order(masks), canvas.reshape(-1))
        token_map, labels = fill_parts(canvas.T, self.rules, cost_map)
        fields: dict[str, NDArray[Any]] = {
            "source": (labels < 0).astype(np.int64),
            "score": pick(masks.scores, labels, "score"),
            **{name: pick(values, labels, name) for name, values in masks.fields.items()},
        }
        return Partition(token_map, len(labels), cost_map, fields)

    def _order(self, masks: RLEMasks) -> NDArray[np.int64]:
        """Order the masks for painting, the lowest first."""
        late = -np.arange(len(masks))
        small, good = -masks.areas, masks.scores
        keys = (late, good, small) if self.paint == "area" else (late, small, good)
        return np.lexsort(keys).astype(np.int64)
