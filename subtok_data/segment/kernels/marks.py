"""Lists of the few marked pixels of a row."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from subtok_data.segment.kernels.jit import Bytes, Ints, Words, inner_kernel

__all__ = ["Marks", "empty_marks", "list_marks"]


class Marks(NamedTuple):
    """Marks of a row, and room for the list of their places."""

    flags: Bytes  # 0 or 1 for each pixel, whole words of them
    words: Words  # the same memory, eight at a time
    places: Ints


def empty_marks(width: int) -> Marks:
    """Allocate the marks of a row, all 0."""
    words = np.zeros((width + 7) // 8, np.uint64)
    return Marks(words.view(np.uint8), words, np.empty(8 * words.size + 1, np.int32))


@inner_kernel
def list_marks(marks: Marks) -> int:
    """List where the marks are 1 and not 0; return how many they are.

    Eight marks are tested at a time. Of eight that are not all 0, each is written, and kept if it
    is 1: to test them one by one takes three times as long, because no test can be guessed.
    """
    flags, words, places = marks
    count = np.uint64(0)
    for word in range(words.size):
        if words[word] == 0:
            continue
        for x in range(8 * word, 8 * word + 8):
            places[count] = x
            count += np.uint64(flags[x])
    return int(count)
