"""From incomplete labels to a partition: connected parts, gaps as tokens, the rest flooded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from subtok_data.errors import ConfigError
from subtok_data.segment.budget import check_count
from subtok_data.segment.flooding import flood_from
from subtok_data.segment.partition import Evidence, Partition, TokenMap, token_dtype
from subtok_data.segment.seeds import Seeds

__all__ = ["Fill", "LabelMapPartitioner", "PartRules", "edge_levels", "fill_parts"]

Fill = Literal["nearest", "boundary"]


@dataclass(frozen=True)
class PartRules:
    """Which connected parts of labels become tokens, and who gets the pixels of the others.

    Parameters
    ----------
    min_area : int
        Parts of a label with fewer pixels are no tokens: they count as gap.
    gap_area : int or None
        Parts of the gap, the pixels without a label, become tokens from this many pixels on. None:
        never, unless the picture has no label at all.
    fill : {"nearest", "boundary"}
        What is left joins the nearest token (city-block distance), or is flooded along
        ``evidence["boundary_map"]``.

    Raises
    ------
    ConfigError
        A value out of range.

    Examples
    --------
    >>> PartRules(min_area=100).fill
    'nearest'
    """

    min_area: int = 16
    gap_area: int | None = 64
    fill: Fill = "nearest"

    def __post_init__(self) -> None:
        check_count("min_area", self.min_area, least=0, optional=False)
        check_count("gap_area", self.gap_area)
        if self.fill not in get_args(Fill):
            raise ConfigError(f"fill={self.fill!r}: expected one of {get_args(Fill)}")

    @property
    def has_cost_map(self) -> bool:
        """Whether tokens merge along a boundary map."""
        return self.fill == "boundary"


def edge_levels(
    evidence: Evidence, size: tuple[int, int], rules: PartRules
) -> NDArray[np.uint8] | None:
    """Boundary map that the rules ask for; None for the nearest token.

    Parameters
    ----------
    evidence : mapping of str to array
        ``boundary_map`` (H, W) uint8 where ``rules.fill`` is ``"boundary"``.
    size : (H, W)
        Size of the picture.
    rules : PartRules
        Whether a map is needed.

    Returns
    -------
    (H, W) uint8 or None

    Raises
    ------
    ValueError
        The map is missing, or has another size or type.

    Examples
    --------
    >>> edge_levels({}, (2, 2), PartRules()) is None
    True
    """
    if rules.fill == "nearest":
        return None
    levels = evidence.get("boundary_map")
    if levels is None:
        raise ValueError(
            'fill="boundary" floods along evidence["boundary_map"], which is missing; use '
            'fill="nearest", or a segmenter that gives a boundary map'
        )
    if levels.shape != tuple(size) or levels.dtype != np.uint8:
        raise ValueError(
            f"boundary_map of shape {levels.shape}, dtype {levels.dtype}: expected {tuple(size)} "
            "uint8, as the picture"
        )
    return np.ascontiguousarray(levels)


def fill_parts(
    painted: NDArray[np.int32],
    rules: PartRules,
    levels: NDArray[np.uint8] | None = None,
    spared: NDArray[np.int64] | None = None,
) -> tuple[TokenMap, NDArray[np.int32]]:
    """Make tokens of the connected parts of labels, and give every other pixel to one of them.

    Parameters
    ----------
    painted : (H, W) int32
        Label of each pixel, −1 for a gap.
    rules : PartRules
        Which parts become tokens.
    levels : (H, W) uint8, optional
        Boundary map along which the rest is flooded, tokens being the minima. Without it the rest
        joins the nearest token; among equally near ones, the one that a breadth-first search in
        raster order reaches first.
    spared : (V,) int64, optional
        For each label from 0 on, the pixels from which on a part is a token even if it is smaller
        than ``rules.min_area``; 0: the largest part alone, the first of equals.

    Returns
    -------
    token_map : (H, W) int16, int32 above 32,767 tokens
        4-connected tokens 0..N-1, in raster order of the first pixels of the parts.
    labels : (N,) int32
        Label each token comes from, −1 for a gap.

    Examples
    --------
    >>> painted = np.array([[0, 0, -1, 7, 0]], np.int32)
    >>> fill_parts(painted, PartRules(min_area=0))
    (array([[0, 0, 0, 1, 2]], dtype=int16), array([0, 7, 0], dtype=int32))
    """
    from subtok_data.segment.kernels.components import paint_runs
    from subtok_data.segment.kernels.masks import label_parts

    painted = np.ascontiguousarray(painted)
    num_runs = painted.shape[0] + int(np.count_nonzero(painted[:, 1:] != painted[:, :-1]))
    gap_area = painted.size + 1 if rules.gap_area is None else rules.gap_area
    if spared is None:
        spared = np.zeros(0, np.int64)
    runs, first_run, parts, labels, left = label_parts(
        painted, num_runs, rules.min_area, gap_area, spared
    )
    count = len(labels)
    if count == 0:
        return np.zeros(painted.shape, np.int16), np.array([-1], np.int32)
    if left == 0:
        token_map: TokenMap = np.empty(painted.shape, token_dtype(count))
        paint_runs(runs, first_run, parts, token_map)
        return token_map, labels
    if levels is None:  # on a flat map the flood is a breadth-first search from all tokens
        levels = np.zeros(painted.shape, np.uint8)
    token_map, _ = flood_from(levels, Seeds(runs, first_run, parts, count, imposed=True))
    return token_map, labels


@dataclass(frozen=True)
class LabelMapPartitioner:
    """Cuts a label map, such as a panoptic segmentation, into connected tokens.

    Reads ``label_map`` (H, W) integers, −1 where nothing was found, and, where they are there,
    ``label_class`` (M,) and ``label_score`` (M,): class and score of each label. With
    ``rules.fill="boundary"`` it also reads ``boundary_map`` (H, W) uint8.

    Parameters
    ----------
    rules : PartRules
        Which parts become tokens. By default all of the gap joins a neighbour.

    Examples
    --------
    >>> label_map = np.array([[0, 0, 1, -1]])
    >>> evidence = {"label_map": label_map, "label_class": np.array([7, 3])}
    >>> partition = LabelMapPartitioner(PartRules(min_area=0, gap_area=None))(evidence, (1, 4))
    >>> partition.token_map, partition.token_fields["class"]
    (array([[0, 0, 1, 1]], dtype=int16), array([7, 3]))
    """

    rules: PartRules = PartRules(gap_area=None)

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
            Token fields ``source`` (0 for a label, 1 for a gap), ``class`` (−1 for a gap) and
            ``score`` (0 for a gap), the last two if the evidence has them.

        Raises
        ------
        ValueError
            The map has another size than the picture, labels below −1, or labels that no class or
            score belongs to.
        """
        label_map = evidence["label_map"]
        if label_map.shape != tuple(size) or label_map.dtype.kind not in "iu":
            raise ValueError(
                f"label_map of shape {label_map.shape}, dtype {label_map.dtype}: expected "
                f"{tuple(size)} integers, as the picture"
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
        levels = edge_levels(evidence, size, self.rules)
        token_map, labels = fill_parts(label_map.astype(np.int32), self.rules, levels)
        fields = {"source": (labels < 0).astype(np.int64)}
        fields |= {name: pick(values, labels, name) for name, values in tables.items()}
        return Partition(token_map, len(labels), levels, fields)


def pick(values: NDArray[Any], labels: NDArray[np.int32], name: str) -> NDArray[Any]:
    """Value of each token's label; for gaps 0 if the value is a score, else −1.

    Examples
    --------
    >>> pick(np.array([7, 3]), np.array([1, -1], np.int32), "class")
    array([ 3, -1])
    """
    none = values.dtype.type(0 if name == "score" else -1)
    return np.append(values, none)[labels]  # the index −1 is the value appended
