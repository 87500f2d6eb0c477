"""Conversion of boxes to whole pixels and to run lengths."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["box_runs", "pixel_box"]


def pixel_box(box: NDArray[np.float32], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Round a box to whole pixels.

    Parameters
    ----------
    box : (4,) float32
        x0, y0, x1, y1.
    size : (H, W)
        Size of the image in pixels.

    Returns
    -------
    (int, int, int, int)
        x0, y0, x1, y1, half-open, inside the image, one pixel at least.

    Examples
    --------
    >>> pixel_box(np.array([0.4, 0.6, 2.4, 0.9], np.float32), (4, 4))
    (0, 0, 2, 1)
    """
    x0, y0, x1, y1 = (float(side) for side in box)
    left, right = _pixels(x0, x1, size[1])
    top, bottom = _pixels(y0, y1, size[0])
    return left, top, right, bottom


def _pixels(low: float, high: float, limit: int) -> tuple[int, int]:
    begin, end = round(low), round(high)
    if end <= begin:  # thinner than a pixel: the one its middle is in
        begin = int((low + high) / 2)
    begin = min(max(begin, 0), limit - 1)
    return begin, min(max(end, begin + 1), limit)


def box_runs(box: tuple[int, int, int, int], size: tuple[int, int]) -> NDArray[np.int32]:
    """Encode a box of whole pixels as run lengths, in COCO's order.

    Parameters
    ----------
    box : (int, int, int, int)
        x0, y0, x1, y1, half-open, not empty.
    size : (H, W)
        Size of the image in pixels.

    Returns
    -------
    (R,) int32
        Column by column, the outside first.

    Examples
    --------
    >>> box_runs((1, 0, 3, 1), (2, 4)).tolist()
    [2, 1, 1, 1, 3]
    """
    x0, y0, x1, y1 = box
    height, width = size
    inside = y1 - y0
    if inside == height:
        runs = [x0 * height, (x1 - x0) * height]
    else:
        runs = [x0 * height + y0, *[inside, height - inside] * (x1 - x0 - 1), inside]
    rest = height * width - sum(runs)
    return np.array([*runs, rest] if rest else runs, np.int32)
