"""Hash table from token pairs to slots: open addressing, linear probing, power-of-two size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from subtok_data.segment.kernels.compiled import Scalar, kernel

__all__ = ["find_slot", "free_slot", "gather_cracks"]

Longs = NDArray[np.int64]

EMPTY = -1
# 2^64 / golden ratio as a signed number: spreads neighbouring keys over the whole table.
SPREAD = -7046029254386353131


@kernel
def first_slot(keys: Longs, key: Scalar) -> int:
    """Where the search for a key begins."""
    spread = np.int64(key) * np.int64(SPREAD)
    return int((spread ^ (spread >> 32)) & (keys.size - 1))


@kernel
def find_slot(keys: Longs, key: Scalar) -> int:
    """Slot that holds a key, or the empty slot where it belongs."""
    slot = first_slot(keys, key)
    while keys[slot] != key and keys[slot] != EMPTY:
        slot = (slot + 1) & (keys.size - 1)
    return slot


@kernel
def free_slot(keys: Longs, values: NDArray[np.int32], slot: int) -> None:
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


@kernel
def grow(keys: Longs, values: Longs) -> tuple[Longs, Longs]:
    """Move a table to one of twice the size."""
    new_keys = np.full(2 * keys.size, EMPTY, np.int64)
    new_values = np.empty((2 * keys.size, values.shape[1]), np.int64)
    for slot in range(keys.size):
        if keys[slot] != EMPTY:
            new_slot = find_slot(new_keys, keys[slot])
            new_keys[new_slot] = keys[slot]
            new_values[new_slot] = values[slot]
    return new_keys, new_values


@kernel
def gather_cracks(
    token_map: NDArray[np.signedinteger], cost_map: NDArray[np.uint8], num_tokens: int
) -> tuple[Longs, Longs]:
    """Border length, sum and lowest crack value of every pair of touching tokens.

    The crack between two 4-neighbours has the higher of their two values.

    Parameters
    ----------
    token_map : (H, W) int16 or int32
        Labels below 0 are no token.
    cost_map : (H, W) uint8
        Boundary strength.
    num_tokens : int
        N.

    Returns
    -------
    keys : (E,) int64
        ``low * N + high`` of each pair, in no particular order.
    values : (E, 3) int64
        Length, sum, lowest.
    """
    height, width = token_map.shape
    keys = np.full(64, EMPTY, np.int64)
    values = np.empty((64, 3), np.int64)
    used = 0
    # Along a border the next crack mostly belongs to the pair of the last one.
    last_key = np.array([EMPTY, EMPTY], np.int64)
    last_slot = np.zeros(2, np.int64)
    for y in range(height):
        for x in range(width):
            here = np.int64(token_map[y, x])
            for down in range(2):
                if down:
                    if y + 1 == height:
                        continue
                    there = np.int64(token_map[y + 1, x])
                    other = cost_map[min(y + 1, height - 1), x]
                else:
                    if x + 1 == width:
                        continue
                    there = np.int64(token_map[y, x + 1])
                    other = cost_map[y, min(x + 1, width - 1)]
                if here == there or here < 0 or there < 0:
                    continue
                value = np.int64(max(cost_map[y, x], other))
                key = min(here, there) * num_tokens + max(here, there)
                if key == last_key[down]:
                    slot = last_slot[down]
                else:
                    slot = find_slot(keys, key)
                    if keys[slot] == EMPTY:
                        if 2 * (used + 1) > keys.size:
                            keys, values = grow(keys, values)
                            slot = find_slot(keys, key)
                            last_key[:] = EMPTY
                        keys[slot] = key
                        values[slot, 0] = 0
                        values[slot, 1] = 0
                        values[slot, 2] = 255
                        used += 1
                    last_key[down] = key
                    last_slot[down] = slot
                values[slot, 0] += 1
                values[slot, 1] += value
                values[slot, 2] = min(values[slot, 2], value)
    taken = np.flatnonzero(keys != EMPTY)
    return keys[taken], values[taken]
