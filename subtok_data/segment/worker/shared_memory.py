"""Shared memory between the main process and segment workers.

A slot is anonymous memory that both sides map: it has no name, so nothing is left behind in
``/dev/shm`` even if every process is killed, and the size limit that containers put on ``/dev/shm``
does not apply. The main process writes the evidence into it, the worker puts the token map behind.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ArrayPlace", "Slot", "allocate_slot"]

_ALIGNMENT = 64


@dataclass(frozen=True)
class ArrayPlace:
    """Where an array lies in a slot."""

    offset: int
    dtype: str
    shape: tuple[int, ...]


def allocate_slot() -> int:
    """Allocate anonymous, growable memory and return its file descriptor."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("subtok-slot")
    with tempfile.TemporaryFile() as file:  # systems without memfd: a file that has no name either
        return os.dup(file.fileno())


class Slot:
    """One side's view of a slot; grows when an image needs more.

    Parameters
    ----------
    descriptor : int
        From :func:`allocate_slot`, inherited by the worker.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._map: mmap.mmap | None = None

    def memory(self, size: int) -> mmap.mmap:
        """Return a mapping of at least ``size`` bytes.

        Raises
        ------
        MemoryError
            If the system has not as many.
        """
        if self._map is None or len(self._map) < size:
            try:
                if os.fstat(self.descriptor).st_size < size:
                    # A quarter more than asked, so that slowly growing images do not remap each
                    # time.
                    os.ftruncate(self.descriptor, size + size // 4)
                # Views of the old mapping may be alive: it goes when they go.
                self._map = mmap.mmap(self.descriptor, os.fstat(self.descriptor).st_size)
            except OSError as error:
                raise MemoryError(f"no {size} bytes of shared memory: {error}") from error
        return self._map

    def view(self, place: ArrayPlace) -> NDArray[Any]:
        """Return the array at a place."""
        dtype = np.dtype(place.dtype)
        count = math.prod(place.shape)
        memory = self.memory(place.offset + count * dtype.itemsize)
        return np.frombuffer(memory, dtype, count, place.offset).reshape(place.shape)

    def put(self, arrays: Mapping[str, NDArray[Any]]) -> tuple[dict[str, ArrayPlace], int]:
        """Copy arrays in, one after the other; return their places and the first free byte."""
        places: dict[str, ArrayPlace] = {}
        offset = 0
        for name, array in arrays.items():
            places[name] = ArrayPlace(offset, array.dtype.str, array.shape)
            offset += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        if offset:
            self.memory(offset)
        for name, array in arrays.items():
            self.view(places[name])[...] = array
        return places, offset

    def close(self) -> None:
        """Give the memory back."""
        self._map = None
        os.close(self.descriptor)
