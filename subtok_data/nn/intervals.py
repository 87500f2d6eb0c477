"""Along one axis: where the borders of map pixels and of feature cells divide an image.

Both kinds of borders are given as integers of a common unit, so that no interval is rounding noise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from subtok_data.errors import ConfigError

__all__ = ["Intervals", "area_intervals", "bilinear_intervals", "cell_size"]

Intervals = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]
"""Map pixel, cell and weight of each interval, as three arrays."""


def cell_size(pixels: int, cells: int, stride: int | None, axis: str) -> tuple[int, int]:
    """Size of a feature cell along one axis, in pixels, as a fraction (numerator, denominator)."""
    if stride is not None:
        # Off by a cell is what patches that do not divide the image leave; more is another stride.
        if not pixels - stride < cells * stride < pixels + stride:
            raise ConfigError(
                f"feature map has {cells} cells for {pixels} pixels along its {axis}, which is no "
                f"stride of {stride}: give the encoder's pixels per cell as stride=, about "
                f"{round(pixels / cells)}"
            )
        return stride, 1
    if pixels % cells and cells % pixels:
        raise ConfigError(
            f"feature map has {cells} cells for {pixels} pixels along its {axis}: cells of "
            f"{pixels / cells:.3f} pixels would stretch the features. Give stride= (pixels per "
            f"cell, for example the patch size of the encoder)"
        )
    return pixels, cells


def area_intervals(pixels: int, valid: int, cells: int, size: tuple[int, int]) -> Intervals:
    """Intervals that lie inside one map pixel and one cell, with their lengths in pixels.

    Parameters
    ----------
    pixels, valid : int
        Side of the image in the token map and in the encoder input.
    cells : int
        Cells of the feature map.
    size : tuple of int
        From :func:`cell_size`.
    """
    # Integer coordinates in which both kinds of borders are exact: no interval of rounding noise.
    num, den = size
    pixel_step, cell_step = valid * den, num * pixels
    inner = np.arange(1, cells, dtype=np.int64) * cell_step
    end = pixels * pixel_step
    cuts = np.concatenate([np.arange(pixels + 1, dtype=np.int64) * pixel_step, inner[inner < end]])
    cuts = np.unique(cuts)
    start = cuts[:-1]
    # What the features do not reach (the rest of a side that patches do not divide) is read from
    # the last cell, so that no token there is without content.
    cell = np.minimum(start // cell_step, cells - 1)
    return start // pixel_step, cell, np.diff(cuts) / pixel_step


def bilinear_intervals(pixels: int, valid: int, cells: int, size: tuple[int, int]) -> Intervals:
    """Two taps per map pixel of a linear interpolation between cell centres.

    Parameters as for :func:`area_intervals`.
    """
    num, den = size
    pixel = np.arange(pixels, dtype=np.int64)
    # Cells of nothing but canvas padding are never read: the last one of the image repeats.
    last = min(cells, -(-valid * den // num)) - 1
    position = np.clip((pixel + 0.5) * valid * den / (pixels * num) - 0.5, 0, last)
    low = np.floor(position).astype(np.int64)
    high = np.minimum(low + 1, last)
    fraction = position - low
    return (
        np.concatenate([pixel, pixel]),
        np.concatenate([low, high]),
        np.concatenate([1 - fraction, fraction]),
    )
