"""Kernels that take images apart into planes of one colour, as encoders read them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from subtok_data.segment.kernels.jit import Bytes, kernel

__all__ = ["normalise_planes", "split_planes"]

# A constant step of 3 through one flat row is what the compiler turns into vector instructions:
# eight times faster than an index for each axis.


@kernel
def normalise_planes(
    pixels: Bytes,
    width: int,
    scale: NDArray[np.float32],
    shift: NDArray[np.float32],
    planes: NDArray[np.float32],
) -> None:
    """Write byte · scale + shift of each colour into its plane, rounded after each of the two.

    Parameters
    ----------
    pixels : (H * width * 3,) uint8
        An RGB image, row by row.
    width : int
        Pixels of a row.
    scale, shift : (3,) float32
        Of each colour.
    planes : (3, H or more, width or more) float32
        Overwritten where the image is, at the top and left.

    Examples
    --------
    >>> image, planes = np.arange(12, dtype=np.uint8), np.zeros((3, 2, 2), np.float32)
    >>> normalise_planes(image, 2, np.full(3, 0.5, np.float32), np.ones(3, np.float32), planes)
    >>> planes[0]
    array([[1. , 2.5],
           [4. , 5.5]], dtype=float32)
    """
    for y in range(pixels.size // (3 * width)):
        for colour in range(3):
            row = pixels[3 * width * y + colour : 3 * width * (y + 1)]
            plane, factor, offset = planes[colour, y], scale[colour], shift[colour]
            for x in range(width):
                plane[x] = np.float32(row[3 * x]) * factor + offset


@kernel
def split_planes(pixels: Bytes, width: int, planes: Bytes) -> None:
    """Copy each colour into its plane; parameters as of :func:`normalise_planes`.

    Examples
    --------
    >>> image, planes = np.arange(12, dtype=np.uint8), np.zeros((3, 2, 2), np.uint8)
    >>> split_planes(image, 2, planes)
    >>> planes[1].tolist()
    [[1, 4], [7, 10]]
    """
    for y in range(pixels.size // (3 * width)):
        for colour in range(3):
            row = pixels[3 * width * y + colour : 3 * width * (y + 1)]
            plane = planes[colour, y]
            for x in range(width):
                plane[x] = row[3 * x]
