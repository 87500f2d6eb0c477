"""Binary heap of (key, item), smallest first."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from subtok_data.segment.kernels.compiled import Scalar, kernel

__all__ = ["Heap", "empty_heap", "pop", "push"]


class Heap(NamedTuple):
    """Entries in heap order; ``size[0]`` of them are in use."""

    keys: NDArray[np.float64]
    items: NDArray[np.int32]
    size: NDArray[np.int64]


@kernel
def empty_heap(capacity: Scalar) -> Heap:
    """Heap with room for ``capacity`` entries."""
    return Heap(np.empty(capacity, np.float64), np.empty(capacity, np.int32), np.zeros(1, np.int64))


@kernel
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


@kernel
def pop(heap: Heap) -> tuple[float, int]:
    """Remove and return the entry with the least (key, item); the heap must not be empty."""
    keys, items, size = heap
    least_key, least_item = keys[0], items[0]
    size[0] -= 1
    end = size[0]
    key, item = keys[end], items[end]
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
    return float(least_key), int(least_item)
