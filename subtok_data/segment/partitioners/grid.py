"""Partition into square patches, the fixed grid that adaptive tokens are compared with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subtok_data.arguments import check_count
from subtok_data.errors import ConfigError
from subtok_data.segment.partition import Evidence, Partition, Partitioner, token_dtype

__all__ = ["GridPartitioner"]


@dataclass(frozen=True)
class GridPartitioner(Partitioner):
    """Partitions an image into square patches; reads no evidence.

    Parameters
    ----------
    patch : int, optional
        Side of a patch in pixels. Where it does not divide the side of the image, the last row or
        column of patches is smaller: no pixel is left out.
    num_tokens : int, optional
        Exact number of nearly square patches instead (as many as pixels, at most). Rows may then
        differ by one patch.

    Raises
    ------
    ConfigError
        Neither of them, both, or a number below 1.

    Examples
    --------
    >>> GridPartitioner(patch=2)({}, (2, 5)).token_map
    array([[0, 0, 1, 1, 2],
           [0, 0, 1, 1, 2]], dtype=int16)
    >>> GridPartitioner(num_tokens=3)({}, (4, 4)).token_map
    array([[0, 0, 0, 0],
           [0, 0, 0, 0],
           [1, 1, 2, 2],
           [1, 1, 2, 2]], dtype=int16)
    """

    patch: int | None = None
    num_tokens: int | None = None

    def __post_init__(self) -> None:
        check_count("patch", self.patch)
        check_count("num_tokens", self.num_tokens)
        if (self.patch is None) == (self.num_tokens is None):
            raise ConfigError(
                f"patch={self.patch}, num_tokens={self.num_tokens}: give one of them, "
                "for example patch=16"
            )

    def for_num_tokens(self, num_tokens: int) -> GridPartitioner:
        """Return the grid of exactly so many patches, which need no merging."""
        return GridPartitioner(num_tokens=num_tokens)

    def __call__(self, evidence: Evidence, size: tuple[int, int]) -> Partition:  # noqa: ARG002
        """Partition an image into patches in raster order, without a cost map."""
        y, x = np.arange(size[0]), np.arange(size[1])
        if self.patch is not None:
            columns = -(-size[1] // self.patch)
            labels = (y // self.patch * columns)[:, None] + x // self.patch
        else:
            labels = _cells(size, min(self.num_tokens or 1, size[0] * size[1]))
        count = int(labels[-1, -1]) + 1
        return Partition(labels.astype(token_dtype(count)), count)


def _cells(size: tuple[int, int], count: int) -> NDArray[np.int64]:
    height, width = size
    # Square cells need rows / columns = height / width; no row may hold more cells than pixels.
    rows = round((count * height / width) ** 0.5)
    rows = min(max(rows, -(-count // width), 1), height, count)
    first = np.arange(rows + 1) * count // rows
    row = np.arange(height) * rows // height
    cells = np.diff(first)[row]
    return first[row][:, None] + np.arange(width) * cells[:, None] // width
