"""Merging by its definition, for the tests: slow, and without any data structure."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from subtok_data.segment.kernels.merging import AREA, BALANCED, SHARE, Cost
from subtok_data.segment.merging import Adjacency


def merges_by_hand(
    borders: Adjacency,
    areas: NDArray[np.int64],
    protected: NDArray[np.bool_],
    formula: Cost,
    min_area: int,
    stop: int,
    limit: float = -1,
) -> tuple[list[tuple[int, int]], list[float], int]:
    """The definition: look at every pair before every merge."""
    rows = zip(borders.pairs, borders.lengths, borders.sums, strict=True)
    edges = {frozenset(p.tolist()): [i, int(n), int(s)] for i, (p, n, s) in enumerate(rows)}
    area = dict(enumerate(areas.tolist()))
    shielded = {token for token, shield in enumerate(protected.tolist()) if shield}
    merges: list[tuple[int, int]] = []
    costs: list[float] = []
    forced = 0
    highest = 0.0

    def cost(pair: frozenset[int]) -> tuple[int, float, int]:
        rank, length, total = edges[pair]
        a, b = (area[token] for token in pair)
        shields = len(pair & shielded)
        if formula.rule == AREA:
            return shields, min(a, b) + 1 - length * 2.0**-27, rank
        weight = {
            BALANCED: math.log1p(min(a, b)),
            SHARE: math.log1p(a * b / (a + b) / formula.unit),
        }.get(formula.rule, 1)
        return shields, total / length * weight / formula.scale, rank

    def is_crumb(token: int) -> bool:
        return area[token] < min_area and token not in shielded

    while edges:
        small = [pair for pair in edges if any(map(is_crumb, pair))]
        best = min(small or edges, key=cost)
        shields, value, _ = cost(best)
        if small:
            forced += 1
            costs.append(0)
        else:
            highest = math.inf if shields else max(highest, value)
            few = math.sqrt(formula.typical / len(area)) if formula.rule == SHARE else 1
            if len(area) <= stop and highest * few > limit:
                break
            costs.append(highest * few)
        made = len(areas) + len(merges)
        merges.append((min(best), max(best)))
        area[made] = sum(area.pop(token) for token in best)
        if best & shielded:
            shielded.add(made)
        del edges[best]
        for pair in [pair for pair in edges if pair & best]:
            rank, length, total = edges.pop(pair)
            new = frozenset({made}) | (pair - best)
            old = edges.get(new, [rank, 0, 0])
            edges[new] = [min(rank, old[0]), length + old[1], total + old[2]]
    return merges, costs, forced
