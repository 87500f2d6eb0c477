"""Scratch memory that a thread keeps from one image to the next.

Fresh memory is handed out page by page as it is written, which takes as long as a third of the
whole flood; memory that was used before is there at once.
"""

from __future__ import annotations

import threading
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["borrow"]

Number = TypeVar("Number", bound=np.generic)

# Larger arrays are allocated per image. Images of 4096 x 4096 need no more than this; pages that no
# image has written to take no memory.
_LARGEST = 80 << 20


class _Scratch(threading.local):
    def __init__(self) -> None:
        self.arrays: dict[str, NDArray[Any]] = {}


_scratch = _Scratch()


def borrow(purpose: str, size: int, dtype: type[Number]) -> NDArray[Number]:
    """Return an array of any content, valid until the thread borrows for the same purpose again.

    Parameters
    ----------
    purpose : str
        Arrays for different purposes never overlap.
    size : int
        Elements.
    dtype : type
        Type of the elements.

    Returns
    -------
    (size,) array
        Never to be returned to a caller of the library.

    Examples
    --------
    >>> borrow("example", 3, np.int32).shape
    (3,)
    """
    needed = size * np.dtype(dtype).itemsize
    if needed > _LARGEST:
        return np.empty(size, dtype)
    held = _scratch.arrays.get(purpose)
    if held is None or held.size < needed:
        held = _scratch.arrays[purpose] = np.empty(needed, np.uint8)
    return held[:needed].view(dtype)
