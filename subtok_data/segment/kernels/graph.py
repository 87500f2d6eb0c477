"""Region adjacency graph: gathered from a token map, built, and contracted edge by edge.

Neighbour lists are merged small into large, and the edge between two tokens is found in a hash
table: a token that touches thousands of others costs no more to merge than those others do.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from subtok_data.segment.kernels.jit import (
    Bytes,
    Flags,
    Ints,
    Labels,
    Longs,
    Scalar,
    inner_kernel,
    kernel,
)
from subtok_data.segment.kernels.marks import Marks, empty_marks, list_marks

__all__ = ["Graph", "build_graph", "contract", "find_slot", "free_slot", "gather_cracks"]

EMPTY = -1

# 2^64 / golden ratio as a signed number: spreads neighbouring keys over the whole table.
SPREAD = -7046029254386353131


@inner_kernel
def add_areas(row: Labels, ends: Ints, count: Scalar, areas: Longs) -> bool:
    """Add the runs of a row, which end at some pixels and at the last; False for a wrong label."""
    start = np.int64(0)
    for i in range(count + 1):
        end = np.int64(ends[i]) + 1 if i < count else row.size
        token = np.int64(row[start])
        if token >= areas.size:
            return False
        if token >= 0:
            areas[token] += end - start
        start = end
    return True


@inner_kernel
def add_cracks(
    places: Ints,
    count: Scalar,
    row: Labels,
    beside: Labels,
    costs: Bytes,
    costs_beside: Bytes,
    num_tokens: Scalar,
    table: Table,
    used: Scalar,
) -> int:
    """Add the cracks between two rows of pixels at some places; return the keys in use.

    The table has room for a key of each.
    """
    keys, values = table.keys, table.values
    # Along a border the next crack mostly belongs to the pair of the last one.
    last_key = np.int64(EMPTY)
    slot = np.int64(0)
    for i in range(count):
        x = np.uint64(places[i])
        here, there = np.int64(row[x]), np.int64(beside[x])
        if here < 0 or there < 0:
            continue
        key = min(here, there) * num_tokens + max(here, there)
        if key != last_key:
            slot = np.int64(find_slot(keys, key))
            last_key = key
            if keys[slot] == EMPTY:
                keys[slot] = key
                values[slot, 0] = 0
                values[slot, 1] = 0
                values[slot, 2] = 255
                used += 1
        value = np.int64(max(costs[x], costs_beside[x]))
        values[slot, 0] += 1
        values[slot, 1] += value
        values[slot, 2] = min(values[slot, 2], value)
    return int(used)


@kernel
def gather_rows(
    token_map: Labels,
    cost_map: Bytes,
    start: Scalar,
    beside: Marks,
    below: Marks,
    table: Table,
    used: Longs,
    areas: Longs,
) -> int:
    """Add areas and cracks of the rows from ``start`` on, while the table has room for them.

    Half of its slots stay free. ``used`` counts its keys. Returns the first row that was left out,
    or -1 for a wrong label.
    """
    height, width = token_map.shape
    num_tokens = areas.size
    right, under = beside.flags, below.flags
    for y in range(start, height):
        row, costs = token_map[y], cost_map[y]
        for x in range(width - 1):
            right[x] = row[x] != row[x + 1]
        count = list_marks(beside)
        count_below = 0
        if y + 1 < height:
            row_below = token_map[y + 1]
            for x in range(width):
                under[x] = row[x] != row_below[x]
            count_below = list_marks(below)
        if 2 * (used[0] + count + count_below) > table.keys.size:
            return y
        if not add_areas(row, beside.places, count, areas):
            return -1
        used[0] = add_cracks(
            beside.places, count, row, row[1:], costs, costs[1:], num_tokens, table, used[0]
        )
        if count_below > 0:
            used[0] = add_cracks(
                below.places,
                count_below,
                row,
                token_map[y + 1],
                costs,
                cost_map[y + 1],
                num_tokens,
                table,
                used[0],
            )
    return height


def gather_cracks(token_map: Labels, cost_map: Bytes, areas: Longs) -> tuple[Longs, Longs, bool]:
    """Measure border length, sum and lowest crack value of every pair of touching tokens.

    The crack between two 4-neighbours has the higher of their two values.

    Parameters
    ----------
    token_map : (H, W) int16 or int32
        Labels below 0 are no token.
    cost_map : (H, W) uint8
        Boundary strength.
    areas : (N,) int64
        Comes zeroed; the pixels of each token are added.

    Returns
    -------
    keys : (E,) int64
        ``low * N + high`` of each pair, in no particular order.
    values : (E, 3) int64
        Length, sum, lowest.
    whole : bool
        False where a label of N or more ended the search.
    """
    height, width = token_map.shape
    beside, below = empty_marks(width), empty_marks(width)
    # Room for the pairs of N tokens that are connected, fewer than 3 N, and for a row.
    table = empty_table(6 * areas.size + 4 * width)
    used = np.zeros(1, np.int64)
    row = 0
    while row < height:
        row = gather_rows(token_map, cost_map, row, beside, below, table, used, areas)
        if row < 0:
            return table.keys[:0], table.values[:0], False
        if row < height:
            larger = empty_table(table.keys.size + 1)
            move_entries(table, larger)
            table = larger
    taken = np.flatnonzero(table.keys != EMPTY)
    return table.keys[taken], table.values[taken], True


class Graph(NamedTuple):
    """N tokens and E edges.

    Neighbour lists are chains of entries; entry ``2 * e + s`` stands for edge ``e`` at its end
    ``s``. Dead edges stay in the lists until they are read.
    """

    areas: Longs  # (N,) pixels
    protected: Flags  # (N,)
    ends: Ints  # (E, 2) tokens
    lengths: Longs  # (E,) border length
    sums: Longs  # (E,) sum of the values along the border
    alive: Flags  # (E,)
    following: Ints  # (2E,) next entry, -1 at the end
    first: Ints  # (N,)
    last: Ints  # (N,)
    degree: Ints  # (N,) entries in the list, dead ones included
    keys: Longs  # hash table: token pair ...
    edges: Ints  # ... -> edge


@inner_kernel
def pair_key(graph: Graph, a: Scalar, b: Scalar) -> int:
    """Compute the key of a token pair, in any order."""
    return int(np.int64(min(a, b)) * graph.areas.size + max(a, b))


@inner_kernel
def append(graph: Graph, token: Scalar, entry: Scalar) -> None:
    """Add an entry to the end of a token's neighbour list."""
    graph.following[entry] = -1
    if graph.first[token] < 0:
        graph.first[token] = entry
    else:
        graph.following[graph.last[token]] = entry
    graph.last[token] = entry
    graph.degree[token] += 1


def build_graph(pairs: Ints, lengths: Longs, sums: Longs, areas: Longs, protected: Flags) -> Graph:
    """Build the graph of some edges; the arrays are copied."""
    num_tokens, num_edges = areas.size, lengths.size
    size = slots_for(2 * num_edges)
    graph = Graph(
        areas.copy(),
        protected.copy(),
        pairs.copy(),
        lengths.copy(),
        sums.copy(),
        np.ones(num_edges, np.bool_),
        np.empty(2 * num_edges, np.int32),
        np.full(num_tokens, -1, np.int32),
        np.full(num_tokens, -1, np.int32),
        np.zeros(num_tokens, np.int32),
        np.full(size, EMPTY, np.int64),
        np.empty(size, np.int32),
    )
    enter_edges(graph)
    return graph


@kernel
def enter_edges(graph: Graph) -> None:
    """Enter all edges into the hash table and the neighbour lists of a new graph."""
    for edge in range(graph.lengths.size):
        a, b = np.int64(graph.ends[edge, 0]), np.int64(graph.ends[edge, 1])
        key = pair_key(graph, a, b)
        slot = find_slot(graph.keys, key)
        graph.keys[slot] = key
        graph.edges[slot] = edge
        append(graph, a, 2 * edge)
        append(graph, b, 2 * edge + 1)


@inner_kernel
def join_edges(graph: Graph, a: Scalar, b: Scalar) -> int:
    """Join two edges between the same tokens into the earlier one, and return it."""
    kept, dead = min(a, b), max(a, b)
    graph.alive[dead] = False
    graph.lengths[kept] += graph.lengths[dead]
    graph.sums[kept] += graph.sums[dead]
    return int(kept)


@inner_kernel
def contract(graph: Graph, edge: Scalar, joined: Ints) -> tuple[int, int]:
    """Merge the two tokens of an edge into the one with the longer neighbour list.

    Returns that token, and how many edges were joined of two; ``joined`` receives them.
    """
    keep, gone = np.int64(graph.ends[edge, 0]), np.int64(graph.ends[edge, 1])
    if graph.degree[keep] < graph.degree[gone]:
        keep, gone = gone, keep
    graph.areas[keep] += graph.areas[gone]
    graph.protected[keep] |= graph.protected[gone]
    graph.alive[edge] = False
    free_slot(graph.keys, graph.edges, find_slot(graph.keys, pair_key(graph, keep, gone)))
    count = 0
    entry = graph.first[gone]
    while entry >= 0:
        following = graph.following[entry]
        moved, side = np.int64(entry >> 1), entry & 1
        if graph.alive[moved]:
            other = np.int64(graph.ends[moved, 1 - side])
            free_slot(graph.keys, graph.edges, find_slot(graph.keys, pair_key(graph, gone, other)))
            key = pair_key(graph, keep, other)
            slot = find_slot(graph.keys, key)
            survivor = moved
            if graph.keys[slot] == key:
                survivor = np.int64(join_edges(graph, moved, np.int64(graph.edges[slot])))
                joined[count] = survivor
                count += 1
            if survivor == moved:
                graph.keys[slot] = key
                graph.edges[slot] = moved
                graph.ends[moved, side] = keep
                append(graph, keep, np.int64(entry))
        entry = following
    return int(keep), count


@inner_kernel
def first_slot(keys: Longs, key: Scalar) -> int:
    """Compute the slot at which the search for a key begins."""
    spread = np.int64(key) * np.int64(SPREAD)
    return int((spread ^ (spread >> 32)) & (keys.size - 1))


@inner_kernel
def find_slot(keys: Longs, key: Scalar) -> int:
    """Find the slot of a key, or the empty slot where it belongs."""
    slot = first_slot(keys, key)
    while keys[slot] != key and keys[slot] != EMPTY:
        slot = (slot + 1) & (keys.size - 1)
    return slot


@inner_kernel
def free_slot(keys: Longs, values: Ints, slot: int) -> None:
    """Empty a slot and close the gap in its chain, so that no markers of removed keys pile up."""
    mask = keys.size - 1
    gap = slot
    probe = slot
    while True:
        probe = (probe + 1) & mask
        if keys[probe] == EMPTY:
            break
        # The entry may move back to the gap unless its own search begins behind the gap.
        if ((probe - first_slot(keys, keys[probe])) & mask) >= ((probe - gap) & mask):
            keys[gap] = keys[probe]
            values[gap] = values[probe]
            gap = probe
    keys[gap] = EMPTY


class Table(NamedTuple):
    """Hash table: of the pair in each slot, border length, sum and lowest value."""

    keys: Longs  # EMPTY where there is none
    values: Longs  # (slots, 3)


def slots_for(least: int) -> int:
    """Compute the slots of a hash table: a power of two, 64 or more."""
    return 1 << max(int(least - 1).bit_length(), 6)


def empty_table(least: int) -> Table:
    """Allocate a table of so many slots or more."""
    slots = slots_for(least)
    return Table(np.full(slots, EMPTY, np.int64), np.empty((slots, 3), np.int64))


@kernel
def move_entries(table: Table, larger: Table) -> None:
    """Enter all that is in a table into an empty one."""
    for slot in range(table.keys.size):
        if table.keys[slot] != EMPTY:
            new_slot = find_slot(larger.keys, table.keys[slot])
            larger.keys[new_slot] = table.keys[slot]
            for i in range(3):
                larger.values[new_slot, i] = table.values[slot, i]
