"""4-connected components of the low pixels of a map, row run by row run."""

from __future__ import annotations

import numpy as np

from subtok_data.segment.kernels.jit import Bytes, Ints, Labels, Scalar, inner_kernel, kernel
from subtok_data.segment.kernels.marks import Marks, empty_marks, list_marks

__all__ = ["label_runs", "paint_runs"]


@inner_kernel
def find_root(parent: Ints, item: Scalar) -> int:
    """Find the root of an item; halve the path on the way."""
    at = np.uint64(item)
    above = np.uint64(parent[at])
    while above != at:
        next_above = parent[above]
        parent[at] = next_above
        at = np.uint64(next_above)
        above = np.uint64(parent[at])
    return int(at)


@inner_kernel
def unite(parent: Ints, one: int, other: int) -> None:
    """Unite the sets of two items; the smaller root becomes the root of both."""
    a = find_root(parent, one)
    b = find_root(parent, other)
    if a < b:
        parent[b] = a
    else:
        parent[a] = b


@inner_kernel
def number_sets(parent: Ints) -> int:
    """Number the sets in the order of their roots, in place; return how many there are."""
    count = 0
    for i in range(parent.size):
        # A parent comes before its children, so it has its final number already.
        if parent[i] == i:
            parent[i] = count
            count += 1
        else:
            parent[i] = parent[parent[i]]
    return count


@kernel
def find_runs(levels: Bytes, limit: Scalar, marks: Marks, runs: Ints, first_run: Ints) -> int:
    """Split every row into its maximal runs of pixels below ``limit``.

    ``runs[i]`` becomes (first column, column after the last); the runs of row y are
    ``first_run[y]`` to ``first_run[y + 1]``. Returns the number of runs. ``marks`` have room for a
    pixel more than a row.
    """
    height, width = levels.shape
    flags, places = marks.flags, marks.places
    turn = np.uint64(0)
    one = np.uint64(1)
    for y in range(height):
        first_run[y] = turn >> one
        row = levels[y]
        flags[0] = row[0] < limit
        for x in range(1, width):
            flags[x] = (row[x] < limit) != (row[x - 1] < limit)
        flags[width] = row[width - 1] < limit
        # Runs begin and end in turn, and none goes on into the next row.
        for i in range(list_marks(marks)):
            runs[turn >> one, turn & one] = places[i]
            turn += one
    first_run[height] = turn >> one
    return int(turn >> one)


@kernel
def join_rows(runs: Ints, first_run: Ints, parent: Ints) -> int:
    """Number the sets of runs that share columns of neighbouring rows; return how many they are."""
    for i in range(first_run[-1]):
        parent[i] = i
    for y in range(1, first_run.size - 1):
        above, here = first_run[y - 1], first_run[y]
        end_above, end_here = here, first_run[y + 1]
        while above < end_above and here < end_here:
            if runs[above, 0] < runs[here, 1] and runs[here, 0] < runs[above, 1]:
                unite(parent, above, here)
            if runs[above, 1] < runs[here, 1]:
                above += 1
            else:
                here += 1
    return int(number_sets(parent))


def label_runs(levels: Bytes, limit: Scalar, scratch: Ints) -> tuple[Ints, Ints, Ints, int]:
    """Label the 4-connected components of the pixels below a limit.

    Parameters
    ----------
    levels : (H, W) uint8
        Map; its pixels below ``limit`` are labelled.
    limit : int
        0 (none) to 256 (all).
    scratch : (H * ceil(W / 2), 2) int32
        Room for the runs of a checkerboard.

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
    first_run = np.empty(levels.shape[0] + 1, np.int32)
    size = find_runs(levels, limit, empty_marks(levels.shape[1] + 1), scratch, first_run)
    runs = scratch[:size].copy()
    labels = np.empty(size, np.int32)
    count = join_rows(runs, first_run, labels)
    return runs, first_run, labels, count


@kernel
def paint_runs(runs: Ints, first_run: Ints, labels: Ints, image: Labels) -> None:
    """Write each run's label to its pixels; runs with a negative label are left out."""
    for y in range(first_run.size - 1):
        for i in range(first_run[y], first_run[y + 1]):
            if labels[i] >= 0:
                for x in range(runs[i, 0], runs[i, 1]):
                    image[y, x] = labels[i]
