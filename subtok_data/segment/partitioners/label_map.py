"""Partition from a label map with gaps, such as a panoptic segmentation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from subtok_data.segment.masks import FillRules, fill_parts, pick, read_cost_map
from subtok_data.segment.partition import Evidence, Partition, Partitioner

__all__ = ["LabelMapPartitioner"]


_GAPS_JOIN = FillRules(gap_area=None)


@dataclass(frozen=True)
class LabelMapPartitioner(Partitioner):
    """Partitions an image into the connected parts of a label map.

    Reads ``label_map`` (H, W) integers, −1 where nothing was found, and, where they are there,
    ``label_class`` (M,) and ``label_score`` (M,): class and score of each label. With
    ``rules.fill="boundary"`` it also reads ``boundary_map`` (H, W) uint8.

    Parameters
    ----------
    rules : FillRules
        Which parts become tokens. By default all of the gap joins a neighbour.

    Examples
    --------
    >>> label_map = np.array([[0, 0, 1, -1]])
    >>> evidence = {"label_map": label_map, "label_class": np.array([7, 3])}
    >>> partition = LabelMapPartitioner(FillRules(min_area=0, gap_area=None))(evidence, (1, 4))
    >>> partition.token_map, partition.token_fields["class"]
    (array([[0, 0, 1, 1]], dtype=int16), array([7, 3]))
    """

    rules: FillRules = _GAPS_JOIN

    @property
    def has_cost_map(self) -> bool:
        """Whether the rules fill along a boundary map."""
        return self.rules.has_cost_map

    def __call__(self, evidence: Evidence, size: tuple[int, int]) -> Partition:
        """Partition an image.

        Token fields: ``source`` (0 for a label, 1 for a gap), and ``class`` (−1 for a gap) and
        ``score`` (0 for a gap) if the evidence has them. ValueError for labels below −1, or without
        a class or score.
        """
        label_map = evidence["label_map"]
        if label_map.shape != tuple(size) or label_map.dtype.kind not in "iu":
            raise ValueError(
                f"label_map of shape {label_map.shape}, dtype {label_map.dtype}: expected "
                f"{tuple(size)} integers, as the image"
            )
        lowest, highest = int(label_map.min()), int(label_map.max())
        tables = {
            name: evidence[f"label_{name}"]
            for name in ("class", "score")
            if f"label_{name}" in evidence
        }
        limit = min((len(values) for values in tables.values()), default=np.iinfo(np.int32).max)
        if lowest < -1 or highest >= limit:
            raise ValueError(
                f"label_map has labels {lowest}…{highest}: expected −1 for none, or 0 to "
                f"{limit - 1}, which is as far as the labels are described"
            )
        cost_map = read_cost_map(evidence, size, self.rules)
        token_map, labels = fill_parts(label_map.astype(np.int32), self.rules, cost_map)
        fields = {"source": (labels < 0).astype(np.int64)}
        fields |= {name: pick(values, labels, name) for name, values in tables.items()}
        return Partition(token_map, len(labels), cost_map, fields)
