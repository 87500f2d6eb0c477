"""Merging of neighbours by ascending cost, on the graph of touching tokens.

A lazy binary heap holds the edges. Costs of edges that no merge has joined only grow, so an old
entry is a lower bound: it is checked when it comes up, and put back if its cost has grown. Edges
that a merge joins may get cheaper and are entered anew. Neighbour lists are merged small into large
and pairs are found by hashing, so a token with very many neighbours costs no more than the others.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from subtok_data.segment.kernels.compiled import Scalar, kernel
from subtok_data.segment.kernels.pairs import find_slot, free_slot

__all__ = ["cut_merges", "merge_neighbours"]

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Floats = NDArray[np.float64]

BOUNDARY, BALANCED, AREA = 0, 1, 2


@kernel
def edge_cost(rule: int, total: Scalar, length: Scalar, smaller: Scalar) -> float:
    """Cost of merging two tokens: border sum and length, area of the smaller one."""
    if rule == BOUNDARY:
        return total / length
    if rule == BALANCED:
        return total / length * math.log1p(smaller)
    # Smallest token first, then longest border: 26 + 27 bits fit a float64 exactly.
    return smaller + 1.0 - length * 2.0**-27


@kernel
def push(keys: Floats, items: Ints, size: int, key: Scalar, item: Scalar) -> int:
    """Add to a binary heap that is sorted by (key, item); returns its new size."""
    at = size
    while at > 0:
        up = (at - 1) >> 1
        if keys[up] < key or (keys[up] == key and items[up] <= item):
            break
        keys[at] = keys[up]
        items[at] = items[up]
        at = up
    keys[at] = key
    items[at] = item
    return size + 1


@kernel
def pop(keys: Floats, items: Ints, size: int) -> int:
    """Remove the least entry of a binary heap; returns its new size."""
    size -= 1
    key, item = keys[size], items[size]
    at = 0
    while True:
        down = 2 * at + 1
        if down >= size:
            break
        right = down + 1
        if right < size and (
            keys[right] < keys[down] or (keys[right] == keys[down] and items[right] < items[down])
        ):
            down = right
        if key < keys[down] or (key == keys[down] and item <= items[down]):
            break
        keys[at] = keys[down]
        items[at] = items[down]
        at = down
    keys[at] = key
    items[at] = item
    return size


@kernel
def merge_neighbours(
    pairs: Ints,
    lengths: Longs,
    sums: Longs,
    areas: Longs,
    rule: int,
    min_area: int,
    stop: int,
) -> tuple[Longs, int]:
    """Merge the cheapest pair, again and again.

    First only pairs with a token below ``min_area``, until there is none; then all pairs, until
    ``stop`` tokens are left. Equal costs: the pair that comes first in ``pairs`` goes first; two
    pairs that a merge joins count as the earlier one.

    Parameters
    ----------
    pairs : (E, 2) int32
        Touching tokens, each pair once, sorted.
    lengths, sums : (E,) int64
        Length of the border, and sum of the values along it.
    areas : (N,) int64
        Pixels per token.
    rule : int
        BOUNDARY, BALANCED or AREA.
    min_area, stop : int
        See above.

    Returns
    -------
    merges : (M, 2) int64
        Nodes merged; tokens are nodes 0..N-1, merge k makes node N + k.
    forced : int
        How many of the merges ``min_area`` asked for.
    """
    num_tokens, num_edges = areas.size, lengths.size
    ends, lengths, sums, areas = pairs.copy(), lengths.copy(), sums.copy(), areas.copy()
    alive = np.ones(num_edges, np.bool_)

    # Neighbour lists: entry 2e + s stands for edge e at its end s.
    following = np.full(2 * num_edges, -1, np.int32)
    first = np.full(num_tokens, -1, np.int32)
    last = np.full(num_tokens, -1, np.int32)
    degree = np.zeros(num_tokens, np.int32)
    table = 64
    while table < 2 * num_edges:
        table *= 2
    keys = np.full(table, -1, np.int64)
    edges = np.empty(table, np.int32)
    for edge in range(num_edges):
        slot = find_slot(keys, ends[edge, 0] * num_tokens + ends[edge, 1])
        keys[slot] = ends[edge, 0] * num_tokens + ends[edge, 1]
        edges[slot] = edge
        for side in range(2):
            append(ends[edge, side], 2 * edge + side, following, first, last, degree)

    node = np.arange(num_tokens)
    merges = np.empty((max(num_tokens - 1, 0), 2), np.int64)
    done = 0
    forced = 0
    # Every edge once, and once more for each time that two edges become one.
    heap_keys = np.empty(2 * num_edges + 1, np.float64)
    heap_items = np.empty(2 * num_edges + 1, np.int32)
    queued = np.empty(num_edges, np.float64)
    for phase in range(2):
        if phase == 0 and min_area <= 1:
            continue
        size = 0
        for edge in range(num_edges):
            queued[edge] = np.inf
            smaller = min(areas[ends[edge, 0]], areas[ends[edge, 1]])
            if alive[edge] and (phase == 1 or smaller < min_area):
                queued[edge] = edge_cost(rule, sums[edge], lengths[edge], smaller)
                size = push(heap_keys, heap_items, size, queued[edge], edge)
        while size > 0 and (phase == 0 or num_tokens - done > stop):
            key, edge = heap_keys[0], heap_items[0]
            size = pop(heap_keys, heap_items, size)
            if not alive[edge] or key != queued[edge]:
                continue
            smaller = min(areas[ends[edge, 0]], areas[ends[edge, 1]])
            if phase == 0 and smaller >= min_area:
                queued[edge] = np.inf
                continue
            cost = edge_cost(rule, sums[edge], lengths[edge], smaller)
            if cost > key:
                queued[edge] = cost
                size = push(heap_keys, heap_items, size, cost, edge)
                continue

            keep, gone = np.int64(ends[edge, 0]), np.int64(ends[edge, 1])
            if degree[keep] < degree[gone]:
                keep, gone = gone, keep
            merges[done, 0] = min(node[keep], node[gone])
            merges[done, 1] = max(node[keep], node[gone])
            node[keep] = num_tokens + done
            done += 1
            areas[keep] += areas[gone]
            alive[edge] = False
            slot = find_slot(keys, min(keep, gone) * num_tokens + max(keep, gone))
            free_slot(keys, edges, slot)

            entry = first[gone]
            while entry >= 0:
                after = following[entry]
                moved, side = entry >> 1, entry & 1
                if alive[moved]:
                    other = np.int64(ends[moved, 1 - side])
                    slot = find_slot(keys, min(gone, other) * num_tokens + max(gone, other))
                    free_slot(keys, edges, slot)
                    key_there = min(keep, other) * num_tokens + max(keep, other)
                    slot = find_slot(keys, key_there)
                    joined = keys[slot] == key_there
                    survivor = moved
                    if joined:
                        there = edges[slot]
                        survivor, dead = min(moved, there), max(moved, there)
                        alive[dead] = False
                        lengths[survivor] += lengths[dead]
                        sums[survivor] += sums[dead]
                    if survivor == moved:
                        keys[slot] = key_there
                        edges[slot] = moved
                        ends[moved, side] = keep
                        append(keep, entry, following, first, last, degree)
                    if joined:
                        smaller = min(areas[keep], areas[other])
                        cost = edge_cost(rule, sums[survivor], lengths[survivor], smaller)
                        if cost < queued[survivor] and (phase == 1 or smaller < min_area):
                            queued[survivor] = cost
                            size = push(heap_keys, heap_items, size, cost, survivor)
                entry = after
        if phase == 0:
            forced = done
    return merges[:done], forced


@kernel
def append(
    token: Scalar, entry: Scalar, following: Ints, first: Ints, last: Ints, degree: Ints
) -> None:
    """Add an entry to the end of a token's neighbour list."""
    following[entry] = -1
    if first[token] < 0:
        first[token] = entry
    else:
        following[last[token]] = entry
    last[token] = entry
    degree[token] += 1


@kernel
def cut_merges(num_tokens: int, merges: Longs) -> tuple[Longs, int]:
    """Group of each token after some merges, numbered in the order of their first tokens.

    Returns (N,) int64 groups, and how many there are.
    """
    count = merges.shape[0]
    top = np.arange(num_tokens + count)
    for i in range(count - 1, -1, -1):
        # Later merges come first here, so the node made has its final group already.
        for side in range(2):
            top[merges[i, side]] = top[num_tokens + i]
    names = np.full(num_tokens + count, -1, np.int64)
    groups = np.empty(num_tokens, np.int64)
    used = 0
    for token in range(num_tokens):
        if names[top[token]] < 0:
            names[top[token]] = used
            used += 1
        groups[token] = names[top[token]]
    return groups, used
