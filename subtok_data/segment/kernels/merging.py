"""Merging of neighbouring tokens by ascending cost.

A lazy heap holds the edges. The cost of an edge that no merge has joined with another only grows,
so an old entry is a lower bound: it is checked when it comes up, and put back if its cost has
grown. Joined edges may get cheaper and are entered anew.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from subtok_data.segment.kernels.graph import Graph, build_graph, contract
from subtok_data.segment.kernels.jit import Flags, Floats, Ints, Longs, Scalar, inner_kernel, kernel

__all__ = [
    "AREA",
    "BALANCED",
    "BOUNDARY",
    "SHARE",
    "Cost",
    "cut_merges",
    "merge_neighbours",
]


BOUNDARY, BALANCED, AREA, SHARE = 0, 1, 2, 3

ANY = np.iinfo(np.int64).max  # more than any area


class Cost(NamedTuple):
    """What merging the two tokens of an edge costs."""

    rule: int  # BOUNDARY, BALANCED, AREA or SHARE
    unit: float  # SHARE: area that counts as 1, in pixels
    scale: float  # not AREA: what costs are divided by
    typical: float  # SHARE: number of tokens at which a merge costs that; of fewer, more


@inner_kernel
def smaller_area(graph: Graph, edge: Scalar) -> int:
    """Return the area of the smaller token of an edge."""
    return int(min(graph.areas[graph.ends[edge, 0]], graph.areas[graph.ends[edge, 1]]))


@inner_kernel
def edge_cost(graph: Graph, edge: Scalar, cost: Cost) -> float:
    """Compute the cost of merging the two tokens of an edge."""
    length = graph.lengths[edge]
    if cost.rule == AREA:
        # Smallest token first, then longest border: 26 + 27 bits fit a float64 exactly.
        return float(smaller_area(graph, edge) + 1.0 - length * 2.0**-27)
    mean = graph.sums[edge] / length
    if cost.rule == BALANCED:
        mean *= math.log1p(smaller_area(graph, edge))
    elif cost.rule == SHARE:
        a = float(graph.areas[graph.ends[edge, 0]])
        b = float(graph.areas[graph.ends[edge, 1]])
        mean *= math.log1p(a * b / (a + b) / cost.unit)
    return float(mean / cost.scale)


@inner_kernel
def price(highest: Scalar, cost: Cost, num_tokens: Scalar) -> float:
    """Compute what a merge costs among so many tokens, if pairs up to it cost ``highest``."""
    if cost.rule != SHARE:
        return float(highest)
    return float(highest * math.sqrt(cost.typical / num_tokens))


@inner_kernel
def spares(graph: Graph, edge: Scalar, below: Scalar, most: Scalar) -> bool:
    """Test for more than ``most`` protected tokens, or no other of an area ``below``.

    Kept out of the way of images without protected tokens (``most`` 2 throughout): asked inside a
    function of its own together with the area, it would take a third of the time of all merging.
    """
    a, b = graph.ends[edge, 0], graph.ends[edge, 1]
    if int(graph.protected[a]) + int(graph.protected[b]) > most:
        return True
    if graph.areas[a] < below and not graph.protected[a]:
        return False
    return bool(graph.areas[b] >= below or graph.protected[b])


@inner_kernel
def enter(graph: Graph, heap: Heap, queued: Floats, edge: Scalar, cost: Cost) -> None:
    """Enter an edge at its cost, unless it has an entry at that cost or below."""
    key = edge_cost(graph, edge, cost)
    if key < queued[edge]:
        queued[edge] = key
        push(heap, key, edge)


@inner_kernel
def cheapest(
    graph: Graph, heap: Heap, queued: Floats, cost: Cost, below: Scalar, most: Scalar
) -> int:
    """Take the cheapest edge that merging is open to; -1 if there is none."""
    while heap.size[0] > 0:
        key, edge = heap.keys[0], np.int64(heap.items[0])
        # An edge entered again leaves its older entries behind.
        if not graph.alive[edge] or key != queued[edge]:
            drop_first(heap)
            continue
        if smaller_area(graph, edge) >= below or (most < 2 and spares(graph, edge, below, most)):
            queued[edge] = np.inf
            drop_first(heap)
            continue
        grown = edge_cost(graph, edge, cost)
        if grown == key:
            queued[edge] = np.inf
            drop_first(heap)
            return int(edge)
        queued[edge] = grown
        sink(heap, grown, edge)
    return -1


@kernel
def merge_phase(
    graph: Graph,
    node: Longs,
    merges: Longs,
    costs: Floats,
    done: Scalar,
    room: Room,
    cost: Cost,
    below: Scalar,
    most: Scalar,
    num_tokens: Scalar,
    limit: Scalar,
) -> int:
    """Merge pairs until few enough are left and the next costs too much, or none is open to it.

    Open are those with a token of an area ``below``, and ``most`` protected ones at most; protected
    tokens do not count as one of that area. With ``most`` 2, protection is not looked at. Few
    enough are ``num_tokens``; too much is more than ``limit``, by this merge or an earlier one.

    ``node[t]`` is the number of the node that token ``t`` stands for; ``room`` is scratch memory.
    Returns the number of merges done so far.
    """
    finest, num_edges = node.size, graph.lengths.size
    heap, queued, joined = room
    heap.size[0] = 0
    for edge in range(num_edges):
        queued[edge] = np.inf
        if not graph.alive[edge] or smaller_area(graph, edge) >= below:
            continue
        if most == 2 or not spares(graph, edge, below, most):
            enter(graph, heap, queued, edge, cost)
    highest = 0.0
    while finest - done > num_tokens or price(highest, cost, finest - done) <= limit:
        edge = cheapest(graph, heap, queued, cost, below, most)
        if edge < 0:
            break
        highest = max(highest, edge_cost(graph, edge, cost))
        paid = price(highest, cost, finest - done)
        if finest - done <= num_tokens and paid > limit:
            break
        a, b = node[graph.ends[edge, 0]], node[graph.ends[edge, 1]]
        merges[done, 0] = min(a, b)
        merges[done, 1] = max(a, b)
        costs[done] = paid
        token, count = contract(graph, edge, joined)
        node[token] = finest + done
        done += 1
        for i in range(count):
            edge = int(joined[i])
            if smaller_area(graph, edge) >= below:
                continue
            if most == 2 or not spares(graph, edge, below, most):
                enter(graph, heap, queued, edge, cost)
    return int(done)


def merge_neighbours(
    pairs: Ints,
    lengths: Longs,
    sums: Longs,
    areas: Longs,
    protected: Flags,
    cost: Cost,
    min_area: Scalar,
    num_tokens: Scalar,
    limit: Scalar,
) -> tuple[Longs, Floats, int]:
    """Merge the cheapest pair until few enough tokens are left, and the next costs too much.

    First only pairs with a token below ``min_area``, until there is none; then all pairs, until
    ``num_tokens`` tokens are left and no pair costs ``limit`` or less. Equal costs: the pair that
    comes first in ``pairs`` goes first; two pairs that a merge joins count as the earlier one.

    Protected tokens are never below ``min_area``, and never merge because they cost ``limit`` or
    less. In both steps pairs without a protected token go first; then, when there is none left,
    pairs with one; then, in the second step, pairs of two.

    Parameters
    ----------
    pairs : (E, 2) int32
        Touching tokens, each pair once, sorted.
    lengths, sums : (E,) int64
        Length of the border, and sum of the values along it.
    areas : (N,) int64
        Pixels per token.
    protected : (N,) bool
        Tokens that are to be kept apart as long as possible.
    cost : Cost
        Cost of a pair.
    min_area, num_tokens : int
        See above.
    limit : float
        See above; below 0 for none.

    Returns
    -------
    merges : (M, 2) int64
        Nodes merged; tokens are nodes 0..N-1, merge k makes node N + k.
    costs : (M,) float64
        Highest cost up to each merge: it never falls. 0 for those that ``min_area`` made
        necessary, infinity for those of protected tokens.
    forced : int
        How many of the merges ``min_area`` made necessary.
    """
    graph = build_graph(pairs, lengths, sums, areas, protected)
    room = empty_room(lengths.size)
    node = np.arange(areas.size)
    merges = np.empty((areas.size, 2), np.int64)
    costs = np.empty(areas.size, np.float64)

    def merge(done: int, below: int, most: int, num_tokens: int, limit: float) -> int:
        return merge_phase(
            graph, node, merges, costs, done, room, cost, below, most, num_tokens, limit
        )

    # Without protected tokens, nothing is to be asked about them.
    phases = range(3) if protected.any() else range(2, 3)
    forced = 0
    if min_area > 1:
        for most in phases[:2]:
            forced = merge(forced, int(min_area), most, 1, -1.0)
        costs[:forced] = 0
    done = forced
    for most in phases:
        before = done
        at_most = float(limit) if most == phases[0] else -1.0
        done = merge(done, ANY, most, int(num_tokens), at_most)
        if most != phases[0]:
            costs[before:done] = np.inf
    return merges[:done], costs[:done], forced


def cut_merges(num_tokens: int, merges: Longs) -> tuple[Longs, int]:
    """Compute the group of each token after some merges, numbered by their first tokens.

    Returns (N,) int64 groups, and how many there are.
    """
    nodes = num_tokens + len(merges)
    top, names = np.arange(nodes), np.full(nodes, -1, np.int64)
    groups = np.empty(num_tokens, np.int64)
    return groups, name_groups(merges, top, names, groups)


@kernel
def name_groups(merges: Longs, top: Longs, names: Longs, groups: Longs) -> int:
    """Number the groups that merges leave; ``top`` comes as 0, 1, …, and ``names`` as -1."""
    num_tokens, count = groups.size, merges.shape[0]
    # Later merges come first, so the node that a merge made has its final group already.
    for i in range(count - 1, -1, -1):
        for side in range(2):
            top[merges[i, side]] = top[num_tokens + i]
    used = 0
    for token in range(num_tokens):
        if names[top[token]] < 0:
            names[top[token]] = used
            used += 1
        groups[token] = names[top[token]]
    return used


class Heap(NamedTuple):
    """Entries in heap order; ``size[0]`` of them are in use."""

    keys: Floats
    items: Ints
    size: Longs


class Room(NamedTuple):
    """Scratch memory of merging, for E edges."""

    heap: Heap
    queued: Floats  # (E,) cost at which each edge is in the heap, infinity where it is not
    joined: Ints  # (E,)


def empty_room(num_edges: int) -> Room:
    """Allocate the scratch memory."""
    # Every edge once, and once more for each time that two edges become one.
    capacity = 2 * num_edges + 1
    heap = Heap(np.empty(capacity), np.empty(capacity, np.int32), np.zeros(1, np.int64))
    return Room(heap, np.empty(num_edges), np.empty(num_edges, np.int32))


@inner_kernel
def push(heap: Heap, key: Scalar, item: Scalar) -> None:
    """Add an entry."""
    keys, items, size = heap
    at = size[0]
    size[0] += 1
    while at > 0:
        up = (at - 1) >> 1
        if keys[up] < key or (keys[up] == key and items[up] <= item):
            break
        keys[at] = keys[up]
        items[at] = items[up]
        at = up
    keys[at] = key
    items[at] = item


@inner_kernel
def drop_first(heap: Heap) -> None:
    """Remove the entry with the least (key, item); the heap must not be empty."""
    heap.size[0] -= 1
    end = heap.size[0]
    sink(heap, heap.keys[end], np.int64(heap.items[end]))


@inner_kernel
def sink(heap: Heap, key: Scalar, item: Scalar) -> None:
    """Write an entry in place of the first one, and move it to where it belongs."""
    keys, items, size = heap
    end = size[0]
    at = 0
    while True:
        down = 2 * at + 1
        if down >= end:
            break
        right = down + 1
        if right < end and (
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
