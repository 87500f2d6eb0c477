"""Smoothing, and regional minima with their depths.

Neither needs a flood. Each row is split at its peaks into *valleys*: stretches that fall to a
bottom and rise from it. From every pixel of a valley water runs to the bottom, so how high one must
climb from one minimum to another is told by the lowest cracks between touching valleys. Of these
there are far fewer than pixels, and the lowest crack of two is found without looking at the rest.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from subtok_data.segment.kernels.components import find_root
from subtok_data.segment.kernels.jit import Bytes, Ints, Scalar, inner_kernel, kernel
from subtok_data.segment.kernels.marks import Marks, empty_marks, list_marks
from subtok_data.segment.kernels.scratch import borrow

__all__ = ["regional_minima", "smooth"]


def smooth(levels: Bytes) -> Bytes:
    """Smooth with the 5 x 5 binomial filter, edges repeated, rounded half up.

    In integers, so that every machine gets the same minima.
    """
    smoothed = np.empty_like(levels)
    smooth_rows(levels, np.empty(levels.shape[1] + 4, np.int32), smoothed)
    return smoothed


@kernel
def smooth_rows(levels: Bytes, column: Ints, smoothed: Bytes) -> None:
    """Smooth all rows; ``column`` is scratch memory for a row and two pixels on either side."""
    height, width = levels.shape
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


@inner_kernel
def split_row(row: Bytes, starts: Ints, bottoms: Ints, marks: Marks) -> int:
    """Split a row behind its peaks; return the number of valleys.

    Receives the first column of each, with the row's width behind the last one, and the first
    column of each one's lowest pixels. ``marks`` is scratch memory.
    """
    flags, places = marks.flags, marks.places
    for x in range(1, row.size):
        flags[x] = row[x] != row[x - 1]
    one = np.uint64(1)
    last, bottom = np.uint64(0), np.uint64(0)
    rising = False
    starts[0] = 0
    bottoms[0] = 0
    for i in range(list_marks(marks)):
        x = np.uint64(places[i])
        falls = row[x] < row[x - one]
        # Written at every change, and kept where a valley begins: a test would be guessed wrong.
        starts[last + one] = x
        last += np.uint64(rising & falls)
        bottom = x if falls else bottom
        bottoms[last] = bottom
        rising = not falls
    starts[last + one] = row.size
    return int(last) + 1


@inner_kernel
def lowest_crack(
    above: Bytes, here: Bytes, left: Scalar, right: Scalar, bottom: Scalar, other: Scalar
) -> int:
    """Find the lowest crack between two valleys over their common columns.

    ``left`` and ``right`` are the first and the last of these, ``bottom`` and ``other`` the bottoms
    of the valley above and of the one below it.
    """
    x = np.uint64(min(max(bottom, left), right))
    end = np.uint64(min(max(other, left), right))
    # Left of both bottoms both fall, right of both both rise; between, only one of them falls.
    if above[x] >= here[x] or here[end] >= above[end]:
        return int(min(max(above[x], here[x]), max(above[end], here[end])))
    if x > end:
        above, here, x, end = here, above, end, x
    # They cross: at ``x`` the falling one is the higher, at ``end`` the rising one.
    while end - x > np.uint64(1):
        middle = (x + end) >> np.uint64(1)
        if above[middle] < here[middle]:
            x = middle
        else:
            end = middle
    return int(min(above[end], here[x]))


class Valleys(NamedTuple):
    """Valleys of all rows, in raster order; united in sets."""

    parent: Ints  # (V,)
    floors: Bytes  # (V,) level of the bottom
    bottoms: Ints  # (V,) first column of the bottom


class Passes(NamedTuple):
    """Cracks between valleys, chained by level."""

    ends: Ints  # (P, 2) valleys
    before: Ints  # (P,) the one before in the chain, -1 at its end
    last: Ints  # (256,) where the chain of each level begins, -1 for none


@inner_kernel
def add_pass(passes: Passes, size: Scalar, one: Scalar, other: Scalar, level: Scalar) -> None:
    """Write the pass number ``size``."""
    passes.ends[size, 0] = one
    passes.ends[size, 1] = other
    passes.before[size] = passes.last[level]
    passes.last[level] = size


@inner_kernel
def unite_under_lower(valleys: Valleys, one: Scalar, other: Scalar) -> int:
    """Unite two sets under the lower root, of equals the first; return the root that lost."""
    floors = valleys.floors
    if floors[other] < floors[one] or (floors[other] == floors[one] and other < one):
        one, other = other, one
    valleys.parent[other] = one
    return int(other)


@inner_kernel
def join_with_row_above(
    levels: Bytes,
    y: Scalar,
    starts: Ints,
    first: Ints,
    deep: Scalar,
    valleys: Valleys,
    passes: Passes,
    size: Scalar,
) -> int:
    """Unite the valleys of a row with those above it, or note the pass between them."""
    floors, bottoms, parent = valleys.floors, valleys.bottoms, valleys.parent
    above_row, row = levels[y - 1], levels[y]
    above_starts, starts_here = starts[(y - 1) & 1], starts[y & 1]
    one = np.uint64(1)
    begin, end = np.uint64(first[y]), np.uint64(first[y + 1])
    above, here = np.uint64(first[y - 1]), begin
    i, j = np.uint64(0), np.uint64(0)
    while above < begin and here < end:
        left = np.int64(max(above_starts[i], starts_here[j]))
        right_above, right_here = above_starts[i + one], starts_here[j + one]
        right = np.int64(min(right_above, right_here))
        level = lowest_crack(
            above_row, row, left, right - 1, np.int64(bottoms[above]), np.int64(bottoms[here])
        )
        highest = np.int64(max(floors[above], floors[here]))
        united = False
        if level == highest:
            root, other = find_root(parent, above), find_root(parent, here)
            united = root == other
            if not united and level == max(floors[root], floors[other]):
                unite_under_lower(valleys, root, other)
                united = True
        if level < highest + deep and not united:
            add_pass(passes, size, above, here, level)
            size += 1
        ends_above, ends_here = np.uint64(right_above == right), np.uint64(right_here == right)
        above += ends_above
        i += ends_above
        here += ends_here
        j += ends_here
    return int(size)


@kernel
def join_valleys(
    levels: Bytes,
    deep: Scalar,
    valleys: Valleys,
    passes: Passes,
    first: Ints,
    starts: Ints,
    marks: Marks,
) -> int:
    """Split all rows into valleys, and unite those between which nothing has to be climbed.

    Afterwards every set is the surroundings of one regional minimum, and its root the first valley
    that holds some of it. Receives the passes between two valleys, of those less than ``deep``
    above the higher bottom, and returns their number; ``first[y]`` becomes the first valley of row
    y. ``starts`` is scratch memory for the columns at which two rows' valleys start.
    """
    size = np.int64(0)
    begin = np.int64(0)
    first[0] = 0
    for y in range(levels.shape[0]):
        row, start = levels[y], starts[y & 1]
        count = split_row(row, start, valleys.bottoms[begin:], marks)
        first[y + 1] = begin + count
        for i in range(count):
            here = begin + i
            valleys.parent[here] = here
            valleys.floors[here] = row[valleys.bottoms[here]]
            if deep > 0 and i > 0:
                level = np.int64(row[start[i] - 1])
                if level < np.int64(max(valleys.floors[here - 1], valleys.floors[here])) + deep:
                    add_pass(passes, size, here - 1, here, level)
                    size += 1
        if y > 0:
            size = np.int64(
                join_with_row_above(levels, y, starts, first, deep, valleys, passes, size)
            )
        begin += count
    return int(size)


class Minima(NamedTuple):
    """Room for the minima of a map, as row runs."""

    runs: Ints  # (V, 2)
    labels: Ints  # (V,) minimum of each run
    names: Ints  # (V,) minimum that each root stands for
    first_run: Ints  # (H + 1,)
    sizes: Ints  # (2,) numbers of runs and of minima


@kernel
def list_minima(levels: Bytes, valleys: Valleys, first: Ints, minima: Minima) -> None:
    """List the bottoms of the valleys that are as low as their set's."""
    height, width = levels.shape
    parent, floors, bottoms = valleys
    runs, labels, names, first_run, sizes = minima
    size, count = 0, 0
    for y in range(height):
        first_run[y] = size
        for valley in range(first[y], first[y + 1]):
            root = find_root(parent, valley)
            if floors[root] != floors[valley]:
                continue
            if root == valley:
                names[root] = count
                count += 1
            left = bottoms[valley]
            right = left + 1
            while right < width and levels[y, right] == floors[valley]:
                right += 1
            runs[size, 0] = left
            runs[size, 1] = right
            labels[size] = names[root]
            size += 1
    first_run[height] = size
    sizes[0] = size
    sizes[1] = count


@kernel
def end_minima(valleys: Valleys, passes: Passes, names: Ints, deep: Scalar, depths: Bytes) -> None:
    """Write how deep each minimum is, where that is less than ``deep``: Kruskal's algorithm.

    A pass that was left out would end no life of less than ``deep``: on the way from a minimum to a
    lower one, the bottoms before the last are as high as its own.
    """
    for level in range(256):
        item = passes.last[level]
        while item >= 0:
            one = find_root(valleys.parent, passes.ends[item, 0])
            other = find_root(valleys.parent, passes.ends[item, 1])
            if one != other:
                lost = unite_under_lower(valleys, one, other)
                depths[names[lost]] = min(level - np.int64(valleys.floors[lost]), deep)
            item = passes.before[item]


def regional_minima(levels: Bytes, deep: int) -> tuple[Ints, Ints, Ints, Bytes]:
    """Find the plateaus without a lower 4-neighbour, and how deep they are.

    The depth of a minimum is how far the water in it rises before it flows over into a lower one;
    of two equally low ones the first in raster order counts as the lower.

    Parameters
    ----------
    levels : (H, W) uint8
        Map.
    deep : int
        Depths from this one on, 1 to 255, are not told apart.

    Returns
    -------
    runs : (R, 2) int32
        Pixels of the minima as row runs, in raster order: first column, column after the last.
    first_run : (H + 1,) int32
        Where the runs of each row begin.
    labels : (R,) int32
        Minimum of each run, 0..K-1 in raster order of their first pixels.
    depths : (K,) uint8
        From 1 to ``deep``.
    """
    height, width = levels.shape
    # A row has no more valleys than every second pixel. Memory that is not written to is not used.
    most = height * ((width + 1) // 2)
    valleys = Valleys(
        borrow("parents", most, np.int32),
        borrow("floors", most, np.uint8),
        borrow("bottoms", most, np.int32),
    )
    # No minimum is less deep than 1: nothing is to be found out about that.
    below = deep if deep > 1 else 0
    # Between neighbours in a row, and fewer than both rows have between two rows.
    num_passes = 3 * most if below else 0
    passes = Passes(
        borrow("passes", 2 * num_passes, np.int32).reshape(-1, 2),
        borrow("chains", num_passes, np.int32),
        np.full(256, -1, np.int32),
    )
    first = np.empty(height + 1, np.int32)
    starts = np.empty((2, width // 2 + 3), np.int32)
    join_valleys(levels, below, valleys, passes, first, starts, empty_marks(width))
    minima = Minima(
        borrow("minima", 2 * most, np.int32).reshape(-1, 2),
        borrow("labels", most, np.int32),
        borrow("names", most, np.int32),
        np.empty(height + 1, np.int32),
        np.empty(2, np.int32),
    )
    list_minima(levels, valleys, first, minima)
    size, count = minima.sizes.tolist()
    depths = np.full(count, deep, np.uint8)
    if below:
        end_minima(valleys, passes, minima.names, below, depths)
    return minima.runs[:size].copy(), minima.first_run, minima.labels[:size].copy(), depths
