"""Memory of large arrays, used again when the batch that held it is gone."""

from __future__ import annotations

import math
import weakref
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["RecycledArrays"]

_KEPT = 4
"""Blocks of memory that wait for their next array; a loader has few batches under way."""


class RecycledArrays:
    """Make arrays in memory that earlier arrays gave back.

    The system clears every page that it hands out, which costs as much as filling it: a fifth of a
    millisecond for the pixels of an image. Memory comes back when its array is gone, and with it
    every tensor that was made of it, in whatever thread that is; so nothing that anyone can still
    see is overwritten. What the system of memory does not get back ends with this object.

    Examples
    --------
    >>> arrays = RecycledArrays()
    >>> array = arrays.empty((2, 3), np.float32)
    >>> place = array.ctypes.data
    >>> del array
    >>> arrays.empty((3, 1), np.float32).ctypes.data == place
    True
    """

    def __init__(self) -> None:
        # Appending and popping need no lock, which an array that dies meanwhile would wait for.
        self._free: deque[NDArray[np.uint8]] = deque(maxlen=_KEPT)

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return an array of any content.

        Hand it on as a whole: numpy's views of it do not keep its memory, tensors do.
        """
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        block = self._fitting(size)
        array = block[:size].view(kind).reshape(shape)
        weakref.finalize(array, self._free.append, block).atexit = False
        return array

    def _fitting(self, size: int) -> NDArray[np.uint8]:
        """A free block that is large enough, and not far too large, or else a new one."""
        for _ in range(len(self._free)):
            try:
                block = self._free.popleft()
            except IndexError:
                break
            if size <= block.size <= 2 * size:
                return block
            self._free.append(block)
        return np.empty(size, np.uint8)
