"""Where mask generation looks: grids of points, and overlapping crops of a picture."""

from __future__ import annotations

from itertools import product
from math import ceil

import numpy as np
from numpy.typing import NDArray

__all__ = ["crop_boxes", "point_grid"]


def point_grid(points_per_side: int) -> NDArray[np.float64]:
    """Centres (x, y) of n × n cells of the unit square, row by row; (n², 2).

    Examples
    --------
    >>> point_grid(2).tolist()
    [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    """
    centers = (np.arange(points_per_side) + 0.5) / points_per_side
    x, y = np.meshgrid(centers, centers)
    return np.stack([x.ravel(), y.ravel()], axis=1)


def crop_boxes(
    size: tuple[int, int], layers: int, overlap: float
) -> list[tuple[int, tuple[int, int, int, int]]]:
    """Layer and box (x0, y0, x1, y1; half-open) of the whole picture and of every crop.

    Parameters
    ----------
    size : (H, W)
        Of the picture.
    layers : int
        Layers of crops; 0 for the picture alone.
    overlap : float
        Overlap of the crops of layer 1, as a share of the shorter side; of layer l, 2^(1−l) times
        that.

    Examples
    --------
    >>> crop_boxes((100, 100), 1, 0.2)[1:3]
    [(1, (0, 0, 60, 60)), (1, (0, 40, 60, 100))]
    """
    height, width = size
    boxes = [(0, (0, 0, width, height))]
    for layer in range(1, layers + 1):
        count = 2**layer
        shared = int(overlap * min(size) * (2 / count))
        across = ceil((shared * (count - 1) + width) / count)
        down = ceil((shared * (count - 1) + height) / count)
        for column, row in product(range(count), range(count)):
            x, y = (across - shared) * column, (down - shared) * row
            box = (x, y, min(x + across, width), min(y + down, height))
            if box[0] < box[2] and box[1] < box[3]:  # a tiny picture has fewer crops
                boxes.append((layer, box))
    return boxes
