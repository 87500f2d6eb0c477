"""Regions without an image: label maps on any grid, resized as torch resizes them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtok_data.segment import TokenGeometry, TokenMap, measure, token_dtype

__all__ = ["DrawnRegions", "nearest_index", "resize_nearest"]


@lru_cache(maxsize=1024)
def nearest_index(source: int, target: int) -> NDArray[np.intp]:
    """Source row (or column) that each row of a nearest-neighbour resize shows.

    The rule of ``torch.nn.functional.interpolate(mode="nearest")`` and thus of torchvision's
    ``resize`` of a tensor: ``floor(i · source / target)``, in float32. So rows are sampled at their
    upper border, not at their center, and where ``source / target`` is not a binary fraction the
    rounding of float32 is part of the rule.

    Parameters
    ----------
    source, target : int
        Sides in pixels, at least 1.

    Returns
    -------
    (target,) intp
        Ascending; read-only, since it is kept.

    Examples
    --------
    >>> nearest_index(3, 8)
    array([0, 0, 0, 1, 1, 1, 2, 2])
    """
    scale = np.float32(source) / np.float32(target)
    places = np.floor(np.arange(target, dtype=np.float32) * scale).astype(np.intp)
    index = np.minimum(places, source - 1)
    index.flags.writeable = False
    return index


def resize_nearest(
    values: NDArray[Any], size: tuple[int, int], out: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Resize a map to the nearest pixel, bit for bit as torchvision resizes a tensor.

    Parameters
    ----------
    values : (h, w) array
        Any dtype.
    size : (int, int)
        Height and width wanted.
    out : (H, W) array of the same dtype, optional
        Where to write.

    Returns
    -------
    (H, W) array

    Examples
    --------
    >>> resize_nearest(np.array([[1, 2]]), (2, 3))
    array([[1, 1, 2],
           [1, 1, 2]])
    """
    rows, columns = (
        nearest_index(values.shape[0], size[0]),
        nearest_index(values.shape[1], size[1]),
    )
    # Columns first: then whole rows are copied, which is as fast as memory.
    wide = values.take(columns, axis=1)
    return wide.take(rows, axis=0, out=out, mode="clip" if out is not None else "raise")


@dataclass(frozen=True, eq=False)
class DrawnRegions:
    """Regions of one artificial label map.

    Parameters
    ----------
    labels : (h, w) int16 or int32 array
        Region of each cell, 0..count-1, all of them present. The grid may be coarser than the
        pixels: each cell then stands for a rectangle.
    count : int
        Number of regions.
    geometry : TokenGeometry, optional
        Of ``labels`` themselves, where it is known.

    Examples
    --------
    >>> DrawnRegions.grid(2, 3).labels
    array([[0, 1, 2],
           [3, 4, 5]], dtype=int16)
    """

    labels: TokenMap
    count: int
    geometry: TokenGeometry | None = None

    @classmethod
    def grid(cls, height: int, width: int) -> DrawnRegions:
        """Make one region per cell of a grid.

        Examples
        --------
        >>> DrawnRegions.grid(4, 8).count
        32
        """
        return _grid(height, width)

    def token_map(self, size: tuple[int, int]) -> TokenMap:
        """Draw the region of each pixel at ``size`` pixels, (H, W).

        Examples
        --------
        >>> DrawnRegions.grid(1, 2).token_map((2, 4))
        array([[0, 0, 1, 1],
               [0, 0, 1, 1]], dtype=int16)
        """
        if self.labels.shape == size:
            return self.labels
        return resize_nearest(self.labels, size)

    def measure(self, size: tuple[int, int]) -> TokenGeometry:
        """Measure the regions at ``size`` pixels.

        Raises
        ------
        ValueError
            If a region has no pixel at that size.

        Examples
        --------
        >>> DrawnRegions.grid(1, 2).measure((2, 4)).areas
        array([4, 4])
        """
        if self.labels.shape == size and self.geometry is not None:
            return self.geometry
        if self.count == self.labels.size:  # a grid: far quicker than to look at every pixel
            return _measure_grid(self.labels.shape, size)
        return measure(self.token_map(size), self.count)


@lru_cache(maxsize=1024)
def _grid(height: int, width: int) -> DrawnRegions:
    count = height * width
    labels = np.arange(count, dtype=token_dtype(count)).reshape(height, width)
    labels.flags.writeable = False
    return DrawnRegions(labels, count)


def _measure_grid(cells: tuple[int, ...], size: tuple[int, int]) -> TokenGeometry:
    rows, columns = (_borders(cells[axis], size[axis]) for axis in range(2))
    heights, widths = np.diff(rows), np.diff(columns)
    areas = (heights[:, None] * widths).reshape(-1)
    boxes = np.empty((*cells, 4), np.int32)
    boxes[..., 0], boxes[..., 1] = columns[:-1], rows[:-1, None]
    boxes[..., 2], boxes[..., 3] = columns[1:], rows[1:, None]
    centers = np.empty((*cells, 2), np.float32)
    centers[..., 0] = ((rows[:-1] + rows[1:]) / 2)[:, None]
    centers[..., 1] = (columns[:-1] + columns[1:]) / 2
    first = rows[:-1, None] * size[1] + columns[:-1]
    return TokenGeometry(areas, boxes.reshape(-1, 4), centers.reshape(-1, 2), first.reshape(-1))


@lru_cache(maxsize=1024)
def _borders(cells: int, side: int) -> NDArray[np.int64]:
    """First pixel of each cell, and the end."""
    borders = np.searchsorted(nearest_index(cells, side), np.arange(cells + 1))
    if (np.diff(borders) == 0).any():
        raise ValueError(f"{cells} cells do not fit into {side} pixels: some would be empty")
    return borders.astype(np.int64)
