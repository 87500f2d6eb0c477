"""Partition from a token map: stored tokens after a crop, or a map made without an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtok_data.segment.partition import Evidence, Partition, Partitioner, token_dtype

__all__ = ["StoredPartitioner"]


@dataclass(frozen=True)
class StoredPartitioner(Partitioner):
    """Takes a token map as the partition, with its tokens renumbered without gaps.

    Reads ``token_map`` (H, W) integers, −1 for pixels without a token, and ``field_<name>`` (n, …):
    values per old token, −1 for a label beyond them, such as the padding of an image. A crop of a
    token map leaves numbers out and changes areas; the order of the task then sorts the rest.

    Examples
    --------
    >>> token_map = np.array([[5, 5, 2]], np.int32)
    >>> StoredPartitioner()({"token_map": token_map}, (1, 3)).token_map.tolist()
    [[1, 1, 0]]
    """

    def __call__(self, evidence: Evidence, size: tuple[int, int]) -> Partition:
        """Renumber the labels of a token map in ascending order."""
        token_map = evidence["token_map"]
        if token_map.shape != tuple(size):
            raise ValueError(
                f"token map of {token_map.shape} pixels for an image of {tuple(size)}: crop and "
                "resize both alike"
            )
        lowest, highest = int(token_map.min()), int(token_map.max())
        if highest < 0 or lowest < -1:
            raise ValueError(
                f"token map with labels {lowest}…{highest}: expected 0 and above, −1 for none"
            )
        # Labels are small and dense, so counting beats sorting.
        present = np.flatnonzero(np.bincount(token_map.reshape(-1) + 1, minlength=highest + 2)[1:])
        dtype = token_dtype(present.size)
        number = np.full(highest + 2, -1, dtype)  # the last entry is label −1
        number[present] = np.arange(present.size, dtype=dtype)
        fields = {
            name.removeprefix("field_"): _up_to(values, highest + 1)[present]
            for name, values in evidence.items()
            if name.startswith("field_")
        }
        return Partition(number[token_map], int(present.size), token_fields=fields)


def _up_to(values: NDArray[Any], count: int) -> NDArray[Any]:
    """Pad values with −1 to at least ``count``."""
    missing = max(0, count - len(values))
    return np.concatenate([values, np.full((missing, *values.shape[1:]), -1, values.dtype)])
