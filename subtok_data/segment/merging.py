"""Neighbouring tokens: their common borders, and the order in which they merge."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from subtok_data.arguments import check_choice
from subtok_data.errors import ConfigError
from subtok_data.segment.geometry import check_labels
from subtok_data.segment.partition import FieldRule, Partition, TokenMap, token_dtype

if TYPE_CHECKING:
    from subtok_data.segment.kernels import Cost

__all__ = [
    "Adjacency",
    "Hierarchy",
    "MergeCost",
    "check_merge",
    "merge_hierarchy",
    "region_adjacency",
]

MergeCost = Literal["balanced", "boundary"]

# Colour distances, 0 to 442, are rounded to sixteenths: sums stay integers.
_COLOUR_STEPS = 16

# Strength is the mean probability along the border of two tokens whose h is this share of an image
# of so many tokens.
_TYPICAL_SHARE = 0.01
_TYPICAL_TOKENS = 64.0

# Areas count as pixels of an image of 256 x 256, so that an image has no more tokens when it is
# larger. More units than that weigh areas less: at equal mean counts the tokens of BSDS500 then
# cover more and are less accurate (docs/watershed.md).
_UNITS = 65_536


def check_merge(merge: str) -> None:
    """Raise ConfigError for a merge cost that is unknown."""
    check_choice("merge", merge, get_args(MergeCost))


@dataclass(frozen=True, eq=False)
class Hierarchy:
    """A partition and the order in which its tokens merge.

    Parameters
    ----------
    partition : Partition
        The finest level, N tokens.
    areas : (N,) int64
        Pixels per token.
    merges : (M, 2) int64
        Nodes that merge: tokens are nodes 0..N-1, merge k makes node N + k.
    costs : (M,) float64
        Highest cost up to each merge; 0 where tokens were too small, infinity for the merges of
        protected tokens.
    forced : int
        So many of the first merges are part of every cut, because tokens were too small.
    """

    partition: Partition
    areas: NDArray[np.int64]
    merges: NDArray[np.int64]
    costs: NDArray[np.float64]
    forced: int

    def cut(self, num_tokens: int, strength: float | None = None) -> Partition:
        """Cut the hierarchy at a number of tokens; cuts of one hierarchy are nested.

        Parameters
        ----------
        num_tokens : int
            Tokens wanted.
        strength : float, optional
            At most the tokens whose borders are stronger; no more than the hierarchy was made with.

        Returns
        -------
        Partition
            So many tokens, or the nearest number that the hierarchy has. Tokens are numbered in the
            order of their first parts.
        """
        from subtok_data.segment.kernels import cut_merges, relabel

        finest = self.partition
        protected = finest.protected
        count = min(max(finest.num_tokens - num_tokens, self.forced), len(self.merges))
        if strength is not None:
            count = max(count, int(np.searchsorted(self.costs, strength, side="right")))
        if count == 0:
            return finest
        groups, used = cut_merges(finest.num_tokens, self.merges[:count])
        source = np.require(finest.token_map, requirements=["C", "W"])
        token_map: TokenMap = np.empty(source.shape, token_dtype(used))
        relabel(source, groups, token_map)
        fields = {
            name: _merge_field(
                values, groups, used, self.areas, finest.field_rules.get(name, "largest"), protected
            )
            for name, values in finest.token_fields.items()
        }
        if protected is not None:
            protected = _merge_field(protected, groups, used, self.areas, "max")
        return Partition(token_map, used, finest.cost_map, fields, finest.field_rules, protected)


def merge_hierarchy(
    partition: Partition,
    *,
    merge: MergeCost = "balanced",
    min_area: int = 0,
    num_tokens: int = 1,
    strength: float | None = None,
    image: NDArray[np.uint8] | None = None,
) -> Hierarchy:
    """Merge neighbouring tokens by ascending cost.

    The cost of a pair is the mean boundary value along the common border (``"boundary"``), or that
    times log(1 + area of the smaller token) (``"balanced"``). Equal costs: the pair whose tokens
    have the smaller numbers. A partition without a cost map uses, in place of boundary values, the
    distance between the tokens' mean colours; without an image too, the smallest token merges with
    the neighbour of the longest common border. Pairs without a protected token go before pairs with
    one, and these before pairs of two.

    With ``strength``, costs are probabilities: the mean boundary probability m of the border.
    Balanced merging then makes it m * log(1 + 65536 h) / log(1 + 655.36) * sqrt(64 / n), where h is
    a b / (a + b) of the two areas a and b as shares of the image, and n the number of tokens there
    still are. So it is m if h is one hundredth and n is 64, and the same at any resolution.

    Parameters
    ----------
    partition : Partition
        What to merge.
    merge : {"balanced", "boundary"}
        Cost of a pair.
    min_area : int
        Tokens of fewer pixels merge first, below ``num_tokens`` too.
    num_tokens : int
        Stop at so many tokens.
    strength : float, optional
        Then go on while a merge costs this or less. Protected tokens never merge for that.
    image : (H, W, 3) uint8, optional
        Needed for colour distances only.

    Returns
    -------
    Hierarchy
        Time grows almost linearly with pixels and pairs, also where one token touches thousands.

    Raises
    ------
    ConfigError
        ``strength`` for a partition without a cost map.

    Examples
    --------
    >>> partition = Partition(
    ...     np.array([[0, 1, 2]], np.int16), 3, cost_map=np.array([[10, 90, 10]], np.uint8)
    ... )
    >>> merge_hierarchy(partition).cut(2).token_map
    array([[0, 0, 1]], dtype=int16)
    """
    from subtok_data.segment.kernels import AREA, BALANCED, BOUNDARY, merge_neighbours

    check_merge(merge)
    if strength is not None and partition.cost_map is None:
        raise ConfigError(
            f"strength={strength}: the partition has no boundary map to measure borders on; "
            "give num_tokens or max_tokens"
        )
    areas = np.zeros(partition.num_tokens, np.int64)
    borders, within = _measure_borders(partition.token_map, partition.cost_map, areas)
    check_labels(partition.token_map, areas, within)
    rule = BALANCED if merge == "balanced" else BOUNDARY
    sums = borders.sums
    if partition.cost_map is None:
        if image is None:
            rule = AREA
        else:
            distance = _colour_distance(partition, areas, image, borders)
            sums = np.rint(_COLOUR_STEPS * distance).astype(np.int64) * borders.lengths
    protected = partition.protected
    if protected is None:
        protected = np.zeros(partition.num_tokens, np.bool_)
    cost = _cost(rule, None if strength is None else partition.token_map.size)
    limit = -1.0 if strength is None else float(strength)
    merges, costs, forced = merge_neighbours(
        borders.pairs,
        borders.lengths,
        sums,
        areas,
        protected,
        cost,
        min_area,
        num_tokens,
        limit,
    )
    return Hierarchy(partition, areas, merges, costs, forced)


def _cost(rule: int, pixels: int | None) -> Cost:
    """Return the cost that orders merges, or the probability for an image of so many pixels."""
    from subtok_data.segment.kernels import BALANCED, SHARE, Cost

    if pixels is None:
        return Cost(rule, 1.0, 1.0, 1.0)
    if rule != BALANCED:
        return Cost(rule, 1.0, 255.0, 1.0)
    scale = 255.0 * math.log1p(_TYPICAL_SHARE * _UNITS)
    return Cost(SHARE, pixels / _UNITS, scale, _TYPICAL_TOKENS)


def _colour_distance(
    partition: Partition,
    areas: NDArray[np.int64],
    image: NDArray[np.uint8],
    borders: Adjacency,
) -> NDArray[np.float64]:
    if image.shape != (*partition.token_map.shape, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"image of shape {image.shape}, dtype {image.dtype}: expected "
            f"{(*partition.token_map.shape, 3)} uint8, as the token map"
        )
    tokens = partition.token_map.ravel()
    inside = tokens >= 0
    # Sums of whole numbers are exact in float64, whatever the order.
    sums = [
        np.bincount(tokens[inside], image[..., channel].ravel()[inside], partition.num_tokens)
        for channel in range(3)
    ]
    means = np.stack(sums, axis=1) / areas[:, None]
    return np.linalg.norm(means[borders.pairs[:, 0]] - means[borders.pairs[:, 1]], axis=1)


def _merge_field(
    values: NDArray[Any],
    groups: NDArray[np.int64],
    num_groups: int,
    areas: NDArray[np.int64],
    rule: FieldRule,
    protected: NDArray[np.bool_] | None = None,
) -> NDArray[Any]:
    if rule in ("largest", "mean"):
        # Sorted by group, then by protection and area from the largest, then by token.
        first = np.zeros_like(groups) if protected is None else ~protected
        order = np.lexsort((-areas, first, groups))
    else:
        order = np.argsort(groups, kind="stable")
    starts = np.searchsorted(groups[order], np.arange(num_groups))
    if rule == "largest":
        return values[order[starts]]
    if rule == "max":
        return np.maximum.reduceat(values[order], starts, axis=0)
    if rule == "min":
        return np.minimum.reduceat(values[order], starts, axis=0)
    weights = areas.reshape(-1, *(1,) * (values.ndim - 1))
    totals = np.add.reduceat((values * weights)[order].astype(np.float64), starts, axis=0)
    means = totals / np.add.reduceat(weights[order], starts, axis=0)
    kind = values.dtype if np.issubdtype(values.dtype, np.floating) else np.float32
    return means.astype(kind)


@dataclass(frozen=True, eq=False)
class Adjacency:
    """Region adjacency graph: pairs of touching tokens and their borders.

    A border is made of cracks, one between each two 4-neighbours of different tokens; a crack is as
    strong as the stronger of its two pixels.

    Parameters
    ----------
    pairs : (E, 2) int32
        Smaller token, larger token; in lexicographic order.
    lengths : (E,) int64
        Cracks along the common border, at least 1.
    sums : (E,) int64
        Sum of their values.
    lowest : (E,) uint8
        Lowest of their values.
    """

    pairs: NDArray[np.int32]
    lengths: NDArray[np.int64]
    sums: NDArray[np.int64]
    lowest: NDArray[np.uint8]

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean crack value, (E,) float64 from 0 to 255."""
        return self.sums / self.lengths


def region_adjacency(token_map: TokenMap, cost_map: NDArray[np.uint8] | None = None) -> Adjacency:
    """Find the pairs of touching tokens, and measure their common borders.

    Parameters
    ----------
    token_map : (H, W) int16 or int32
        Labels of 0 and above; −1 where there is no token.
    cost_map : (H, W) uint8, optional
        Boundary strength; without it all values are 0.

    Returns
    -------
    Adjacency
        E pairs; time grows with the pixels, not with the tokens.

    Raises
    ------
    ValueError
        Shapes that differ.

    Examples
    --------
    >>> cost_map = np.array([[9, 4], [3, 5]], np.uint8)
    >>> borders = region_adjacency(np.array([[0, 1], [0, 1]], np.int16), cost_map)
    >>> borders.pairs, borders.lengths, borders.mean, borders.lowest
    (array([[0, 1]], dtype=int32), array([2]), array([7.]), array([5], dtype=uint8))
    """
    if cost_map is not None and cost_map.shape != token_map.shape:
        raise ValueError(
            f"cost_map is {cost_map.shape}, token_map {token_map.shape}: must be equal"
        )
    areas = np.zeros(int(token_map.max()) + 1, np.int64)
    return _measure_borders(token_map, cost_map, areas)[0]


def _measure_borders(
    token_map: TokenMap, cost_map: NDArray[np.uint8] | None, areas: NDArray[np.int64]
) -> tuple[Adjacency, bool]:
    """Measure borders, and in the same pass areas, which come zeroed; False for a wrong label."""
    from subtok_data.segment.kernels import gather_cracks

    if cost_map is None:
        cost_map = np.zeros(token_map.shape, np.uint8)
    keys, values, within = gather_cracks(
        np.require(token_map, requirements=["C", "W"]),
        np.require(cost_map, np.uint8, ["C", "W"]),
        areas,
    )
    order = np.argsort(keys)
    pairs = np.stack(np.divmod(keys[order], max(len(areas), 1)), axis=1).astype(np.int32)
    lengths, sums, lowest = np.ascontiguousarray(values[order].T)
    return Adjacency(pairs, lengths, sums, lowest.astype(np.uint8)), within
