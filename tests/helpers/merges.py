"""Merging by its definition, for the tests: slow, and without any data structure."""

from __future__ import annotations

import math

from subtok_data.segment.kernels.merging import AREA, BALANCED


def merges_by_hand(
    pairs: list[tuple[int, int]],
    lengths: list[int],
    sums: list[int],
    areas: list[int],
    protected: list[bool],
    rule: int,
    min_area: int,
    stop: int,
    limit: float = -1,
    unit: float = 1,
    scale: float = 1,
) -> tuple[list[tuple[int, int]], list[float], int]:
    """The definition: look at every pair before every merge."""
    edges = {
        frozenset(p): [i, n, s]
        for i, (p, n, s) in enumerate(zip(pairs, lengths, sums, strict=True))
    }
    area = dict(enumerate(areas))
    shielded = {token for token, shield in enumerate(protected) if shield}
    merges: list[tuple[int, int]] = []
    costs: list[float] = []
    forced = 0
    free = 0.0

    def cost(pair: frozenset[int]) -> tuple[int, float, int]:
        rank, length, total = edges[pair]
        smaller = min(area[token] for token in pair)
        shields = len(pair & shielded)
        if rule == AREA:
            return shields, smaller + 1 - length * 2.0**-27, rank
        weight = math.log1p(smaller / unit) if rule == BALANCED else 1
        return shields, total / length * weight / scale, rank

    def is_crumb(token: int) -> bool:
        return area[token] < min_area and token not in shielded

    while edges:
        small = [pair for pair in edges if any(map(is_crumb, pair))]
        best = min(small or edges, key=cost)
        shields, price, _ = cost(best)
        if small:
            forced += 1
            costs.append(0)
        else:
            free = math.inf if shields else max(free, price)
            if len(area) <= stop and free > limit:
                break
            costs.append(free)
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
