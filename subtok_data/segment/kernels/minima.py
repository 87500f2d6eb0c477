"""Regional minima, their depth, and the smoothing that comes before."""

from __future__ import annotations

import numpy as np

from subtok_data.segment.kernels.components import find_root, label_runs
from subtok_data.segment.kernels.jit import Bytes, Ints, Longs, kernel

__all__ = ["depths", "regional_minima", "smooth"]


@kernel
def smooth(levels: Bytes) -> Bytes:
    """Smooth with the 5 x 5 binomial filter, edges repeated, rounded half up.

    In integers, so that every machine gets the same minima.
    """
    height, width = levels.shape
    smoothed = np.empty((height, width), np.uint8)
    column = np.empty(width + 4, np.int32)
    for y in range(height):
        a, b = levels[max(y - 2, 0)], levels[max(y - 1, 0)]
        d, e = levels[min(y + 1, height - 1)], levels[min(y + 2, height - 1)]
        c = levels[y]
        for x in range(width):
            outer = np.int32(a[x]) + np.int32(e[x])
            inner = np.int32(b[x]) + np.int32(d[x])
            column[x + 2] = outer + 4 * inner + 6 * np.int32(c[x])
        column[0] = column[1] = column[2]
        column[width + 2] = column[width + 3] = column[width + 1]
        for x in range(width):
            outer = column[x] + column[x + 4]
            inner = column[x + 1] + column[x + 3]
            smoothed[y, x] = (outer + 4 * inner + 6 * column[x + 2] + 128) >> 8
    return smoothed


@kernel
def not_lowest(levels: Bytes) -> Bytes:
    """Mark the pixels with a lower 4-neighbour by 1, the others by 0."""
    height, width = levels.shape
    has_lower = np.empty((height, width), np.uint8)
    for y in range(height):
        above, here, below = levels[max(y - 1, 0)], levels[y], levels[min(y + 1, height - 1)]
        row = has_lower[y]
        for x in range(width):
            row[x] = (above[x] < here[x]) | (below[x] < here[x])
        for x in range(1, width):
            row[x] |= here[x - 1] < here[x]
        for x in range(width - 1):
            row[x] |= here[x + 1] < here[x]
    return has_lower


@kernel
def regional_minima(levels: Bytes, scratch: Ints) -> tuple[Ints, Ints, Ints, int]:
    """Find the plateaus without a lower 4-neighbour, as labelled runs.

    Takes the same ``scratch`` and returns the same four as
    :func:`~subtok_data.segment.kernels.components.label_runs`; runs with the label -1 belong to no
    minimum.
    """
    height, width = levels.shape
    has_lower = not_lowest(levels)
    # Two neighbours without lower neighbours are equal, so a component is a part of one plateau.
    runs, first_run, labels, count = label_runs(has_lower, np.int64(1), scratch)
    flows_out = np.zeros(count, np.bool_)
    for y in range(height):
        for i in range(first_run[y], first_run[y + 1]):
            left, right = runs[i, 0], runs[i, 1]
            value = levels[y, left]
            # Pixels beside that are equal have a lower neighbour, or they would be in the run.
            out = left > 0 and levels[y, left - 1] == value
            out = out or (right < width and levels[y, right] == value)
            for side in (y - 1, y + 1):
                if out or side < 0 or side >= height:
                    continue
                for x in range(left, right):
                    if has_lower[side, x] and levels[side, x] == value:
                        out = True
                        break
            if out:
                flows_out[labels[i]] = True
    renamed = np.full(count, -1, np.int32)
    kept = 0
    for label in range(count):
        if not flows_out[label]:
            renamed[label] = kept
            kept += 1
    for i in range(labels.size):
        labels[i] = renamed[labels[i]]
    return runs, first_run, labels, kept


@kernel
def depths(floors: Longs, pairs: Ints, passes: Longs) -> Longs:
    """Compute how far the water in each minimum rises before it flows over into a lower one.

    Parameters
    ----------
    floors : (K,) int64
        Level of each minimum. Of two equal ones the first counts as the lower.
    pairs : (E, 2) int32
        Neighbouring basins, sorted by ``passes``.
    passes : (E,) int64
        Lowest level at which the two connect.

    Returns
    -------
    (K,) int64
        Depth of each minimum; 256 for the lowest, which never flows over.
    """
    depth = np.full(floors.size, 256, np.int64)
    parent = np.arange(floors.size).astype(np.int32)
    for i in range(pairs.shape[0]):
        a = find_root(parent, pairs[i, 0])
        b = find_root(parent, pairs[i, 1])
        if a == b:
            continue
        if floors[b] < floors[a] or (floors[b] == floors[a] and b < a):
            a, b = b, a
        parent[b] = a
        depth[b] = passes[i] - floors[b]
    return depth
