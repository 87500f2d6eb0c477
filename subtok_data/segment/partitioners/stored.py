"""Token maps that are there already: stored tokens after a crop, maps made without an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtok_data.segment.partition import Evidence, Partition, token_dtype

__all__ = ["StoredPartitioner"]


@dataclass(frozen=True)
class StoredPartitioner:
    """Take ``evidence["token_map"]`` as the partition, numbered anew without gaps.

    A crop or a flip of a token map leaves numbers out and areas changed; the order of the task then
    puts what is left in order. Entries ``field_<name>`` are values per old token and follow along.

    A label beyond these values, such as the padding of a picture, has the value −1.

    Examples
    --------
    >>> token_map = np.array([[5, 5, 2]], np.int32)
    >>> StoredPartitioner()({"token_map": token_map}, (1, 3)).token_map.tolist()
    [[1, 1, 0]]
    """

    def __call__(self, evidence: Evidence, size: tuple[int, int]) -> Partition:
        """Number the labels of a map anew.

        Parameters
        ----------
        evidence : mapping
            ``token_map`` (H, W) integers, −1 for pixels without a token; ``field_<name>`` (n, …).
        size : (int, int)
            Height and width the map must have.

        Raises
        ------
        ValueError
            If the map has another size, or no token.
        """
        token_map = evidence["token_map"]
        if token_map.shape != size:
            raise ValueError(f"a token map of {token_map.shape} pixels for an image of {size}")
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
    """At least ``count`` values: −1 where there is none."""
    missing = max(0, count - len(values))
    return np.concatenate([values, np.full((missing, *values.shape[1:]), -1, values.dtype)])
