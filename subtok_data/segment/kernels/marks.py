"""Lists of the few marked pixels of a row."""

from __future__ import annotations

import numpy as np

from subtok_data.segment.kernels.jit import Bytes, Ints, kernel, leaf_kernel

__all__ = ["empty_marks", "list_marks"]


@kernel
def empty_marks(width: int) -> tuple[Bytes, Ints]:
    """Allocate the marks of a row, whole words of them, and room for the list of their places."""
    marks = np.zeros((width + 7) // 8 * 8, np.uint8)
    return marks, np.empty(marks.size + 1, np.int32)


@leaf_kernel
def list_marks(marks: Bytes, places: Ints) -> int:
    """List where the marks are 1 and not 0; return how many they are.

    Eight marks are tested at a time. Of eight that are not all 0, each is written, and kept if it
    is 1: to test them one by one takes three times as long, because no test can be guessed.
    """
    words = marks.view(np.uint64)
    count = np.uint64(0)
    for word in range(words.size):
        if words[word] == 0:
            continue
        for x in range(8 * word, 8 * word + 8):
            places[count] = x
            count += np.uint64(marks[x])
    return int(count)
