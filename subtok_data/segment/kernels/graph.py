"""Graph of touching tokens, in which two neighbours can become one.

Neighbour lists are merged small into large, and the edge between two tokens is found by hashing: a
token that touches thousands of others costs no more to merge than those others do.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from subtok_data.segment.kernels.compiled import Scalar, kernel
from subtok_data.segment.kernels.pairs import find_slot, free_slot

__all__ = ["Graph", "build_graph", "contract"]

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Flags = NDArray[np.bool_]


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


@kernel
def pair_key(graph: Graph, a: Scalar, b: Scalar) -> int:
    """Key of a token pair, in any order."""
    return int(np.int64(min(a, b)) * graph.areas.size + max(a, b))


@kernel
def append(graph: Graph, token: Scalar, entry: Scalar) -> None:
    """Add an entry to the end of a token's neighbour list."""
    graph.following[entry] = -1
    if graph.first[token] < 0:
        graph.first[token] = entry
    else:
        graph.following[graph.last[token]] = entry
    graph.last[token] = entry
    graph.degree[token] += 1


@kernel
def build_graph(pairs: Ints, lengths: Longs, sums: Longs, areas: Longs, protected: Flags) -> Graph:
    """Graph of the given edges; the arrays are copied."""
    num_tokens, num_edges = areas.size, lengths.size
    size = 64
    while size < 2 * num_edges:
        size *= 2
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
        np.full(size, -1, np.int64),
        np.empty(size, np.int32),
    )
    for edge in range(num_edges):
        a, b = np.int64(pairs[edge, 0]), np.int64(pairs[edge, 1])
        key = pair_key(graph, a, b)
        slot = find_slot(graph.keys, key)
        graph.keys[slot] = key
        graph.edges[slot] = edge
        append(graph, a, 2 * edge)
        append(graph, b, 2 * edge + 1)
    return graph


@kernel
def join_edges(graph: Graph, a: Scalar, b: Scalar) -> int:
    """Make one edge of two between the same tokens: the earlier one, which is returned."""
    kept, dead = min(a, b), max(a, b)
    graph.alive[dead] = False
    graph.lengths[kept] += graph.lengths[dead]
    graph.sums[kept] += graph.sums[dead]
    return int(kept)


@kernel
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
