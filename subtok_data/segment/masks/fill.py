"""Tokens from labels with gaps: connected parts, large gaps, and the flood of the other pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from subtok_data.arguments import check_choice, check_count
from subtok_data.segment.partition import Evidence, TokenMap, token_dtype
from subtok_data.segment.watershed import Seeds, flood_from

__all__ = ["Fill", "FillRules", "fill_parts", "pick", "read_cost_map"]

Fill = Literal["nearest", "boundary"]


@dataclass(frozen=True)
class FillRules:
    """Rules for turning connected parts of labels into tokens, and for filling the rest.

    Parameters
    ----------
    min_area : int
        Parts of a label with fewer pixels are no tokens: they count as gap.
    gap_area : int or None
        Parts of the gap, the pixels without a label, become tokens from this many pixels on. None:
        never, unless the image has no label at all.
    fill : {"nearest", "boundary"}
        Give the other pixels to the nearest token (city-block distance), or flood them along
        ``evidence["boundary_map"]``.

    Raises
    ------
    ConfigError
        A value out of range.

    Examples
    --------
    >>> FillRules(min_area=100).fill
    'nearest'
    """

    min_area: int = 16
    gap_area: int | None = 64
    fill: Fill = "nearest"

    def __post_init__(self) -> None:
        check_count("min_area", self.min_area, least=0, optional=False)
        check_count("gap_area", self.gap_area)
        check_choice("fill", self.fill, get_args(Fill))

    @property
    def has_cost_map(self) -> bool:
        """Whether partitions made by these rules have a boundary map."""
        return self.fill == "boundary"


def read_cost_map(
    evidence: Evidence, size: tuple[int, int], rules: FillRules
) -> NDArray[np.uint8] | None:
    """Read the boundary map from evidence; None where the rules need none.

    Parameters
    ----------
    evidence : mapping of str to array
        ``boundary_map`` (H, W) uint8 where ``rules.fill`` is ``"boundary"``.
    size : (H, W)
        Size of the image in pixels.
    rules : FillRules
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
    >>> read_cost_map({}, (2, 2), FillRules()) is None
    True
    """
    if rules.fill == "nearest":
        return None
    boundary_map = evidence.get("boundary_map")
    if boundary_map is None:
        raise ValueError(
            'fill="boundary" floods along evidence["boundary_map"], which is missing; use '
            'fill="nearest", or a segmenter that gives a boundary map'
        )
    if boundary_map.shape != tuple(size) or boundary_map.dtype != np.uint8:
        raise ValueError(
            f"boundary_map of shape {boundary_map.shape}, dtype {boundary_map.dtype}: expected "
            f"{tuple(size)} uint8, as the image"
        )
    return np.ascontiguousarray(boundary_map)


def fill_parts(
    painted: NDArray[np.int32],
    rules: FillRules,
    cost_map: NDArray[np.uint8] | None = None,
    spared: NDArray[np.int64] | None = None,
) -> tuple[TokenMap, NDArray[np.int32]]:
    """Make tokens of the connected parts of labels, and give every other pixel to one of them.

    Parameters
    ----------
    painted : (H, W) int32
        Label of each pixel, −1 for a gap.
    rules : FillRules
        Which parts become tokens.
    cost_map : (H, W) uint8, optional
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
    >>> fill_parts(painted, FillRules(min_area=0))
    (array([[0, 0, 0, 1, 2]], dtype=int16), array([0, 7, 0], dtype=int32))
    """
    from subtok_data.segment.kernels import label_parts, paint_runs

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
    if cost_map is None:  # on a flat map the flood is a breadth-first search from all tokens
        cost_map = np.zeros(painted.shape, np.uint8)
    token_map, _ = flood_from(cost_map, Seeds(runs, first_run, parts, count, imposed=True))
    return token_map, labels


def pick(values: NDArray[Any], labels: NDArray[np.int32], name: str) -> NDArray[Any]:
    """Look up the value of each token's label; for gaps 0 if the value is a score, else −1.

    Examples
    --------
    >>> pick(np.array([7, 3]), np.array([1, -1], np.int32), "class")
    array([ 3, -1])
    """
    none = values.dtype.type(0 if name == "score" else -1)
    return np.append(values, none)[labels]  # the index −1 is the value appended
