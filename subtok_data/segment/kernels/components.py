"""4-connected components of the low pixels of a map, row run by row run."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from subtok_data.segment.kernels.compiled import kernel

__all__ = ["label_runs", "paint_runs"]

Ints = NDArray[np.int32]


@kernel
def find_root(parent: Ints, item: int) -> int:
    """Root of an item; halves the path on the way."""
    while parent[item] != item:
        parent[item] = parent[parent[item]]
        item = parent[item]
    return item


@kernel
def find_runs(levels: NDArray[np.uint8], limit: int, runs: Ints, first_run: Ints) -> int:
    """Cut every row into its maximal runs of pixels below ``limit``.

    ``runs[i]`` becomes (first column, column after the last); the runs of row y are
    ``first_run[y]`` to ``first_run[y + 1]``. Returns the number of runs.
    """
    height, width = levels.shape
    count = 0
    for y in range(height):
        first_run[y] = count
        inside = False
        for x in range(width):
            low = levels[y, x] < limit
            if low != inside:
                if low:
                    runs[count, 0] = x
                else:
                    runs[count, 1] = x
                    count += 1
                inside = low
        if inside:
            runs[count, 1] = width
            count += 1
    first_run[height] = count
    return count


@kernel
def join_rows(runs: Ints, first_run: Ints, parent: Ints) -> None:
    """Unite the runs of neighbouring rows that share a column; the smaller index is the root."""
    for i in range(first_run[-1]):
        parent[i] = i
    for y in range(1, first_run.size - 1):
        above, here = first_run[y - 1], first_run[y]
        end_above, end_here = here, first_run[y + 1]
        while above < end_above and here < end_here:
            if runs[above, 0] < runs[here, 1] and runs[here, 0] < runs[above, 1]:
                a = find_root(parent, above)
                b = find_root(parent, here)
                if a < b:
                    parent[b] = a
                else:
                    parent[a] = b
            if runs[above, 1] < runs[here, 1]:
                above += 1
            else:
                here += 1


@kernel
def label_runs(levels: NDArray[np.uint8], limit: int) -> tuple[Ints, Ints, Ints, int]:
    """Label the 4-connected components of the pixels below a limit.

    Parameters
    ----------
    levels : (H, W) uint8
        Map; its pixels below ``limit`` are labelled.
    limit : int
        0 (none) to 256 (all).

    Returns
    -------
    runs : (R, 2) int32
        Row runs in raster order: first column, column after the last.
    first_run : (H + 1,) int32
        Where the runs of each row begin.
    labels : (R,) int32
        Component of each run, 0..K-1 in raster order of the components' first pixels.
    count : int
        K.
    """
    height, width = levels.shape
    # As many as a checkerboard has; pages that are never written cost nothing.
    runs = np.empty((height * ((width + 1) // 2), 2), np.int32)
    first_run = np.empty(height + 1, np.int32)
    size = find_runs(levels, limit, runs, first_run)
    labels = np.empty(size, np.int32)
    join_rows(runs, first_run, labels)
    count = 0
    for i in range(size):
        # A parent comes before its children, so it has its final label already.
        if labels[i] == i:
            labels[i] = count
            count += 1
        else:
            labels[i] = labels[labels[i]]
    return runs[:size], first_run, labels, count


@kernel
def paint_runs(runs: Ints, first_run: Ints, labels: Ints, image: NDArray[np.signedinteger]) -> None:
    """Write each run's label to its pixels; runs with a negative label are left out."""
    for y in range(first_run.size - 1):
        for i in range(first_run[y], first_run[y + 1]):
            if labels[i] >= 0:
                for x in range(runs[i, 0], runs[i, 1]):
                    image[y, x] = labels[i]
