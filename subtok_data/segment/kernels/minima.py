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
from subtok_data.segment.kernels.jit import Bytes, Ints, Scalar, kernel, leaf_kernel
from subtok_data.segment.kernels.marks import empty_marks, list_marks

__all__ = ["regional_minima", "smooth"]


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


@leaf_kernel
def split_row(row: Bytes, starts: Ints, bottoms: Ints, marks: Bytes, places: Ints) -> int:
    """Split a row behind its peaks; return the number of valleys.

    Receives the first column of each, with the row's width behind the last one, and the first
    column of each one's lowest pixels. ``marks`` and ``places`` are scratch memory.
    """
    for x in range(1, row.size):
        marks[x] = row[x] != row[x - 1]
    one = np.uint64(1)
    last, bottom = np.uint64(0), np.uint64(0)
    rising = False
    starts[0] = 0
    bottoms[0] = 0
    for i in range(list_marks(marks, places)):
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


@leaf_kernel
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


@kernel
def make_room(passes: Passes, size: Scalar) -> Passes:
    """Return passes with room for ``size`` of them at least."""
    ends, before, last = passes
    while size > before.size:
        ends = np.concatenate((ends, np.empty_like(ends)))
        before = np.concatenate((before, np.empty_like(before)))
    return Passes(ends, before, last)


@leaf_kernel
def add_pass(passes: Passes, size: Scalar, one: Scalar, other: Scalar, level: Scalar) -> None:
    """Write the pass number ``size``."""
    passes.ends[size, 0] = one
    passes.ends[size, 1] = other
    passes.before[size] = passes.last[level]
    passes.last[level] = size


@leaf_kernel
def unite_under_lower(valleys: Valleys, one: Scalar, other: Scalar) -> int:
    """Unite two sets under the lower root, of equals the first; return the root that lost."""
    floors = valleys.floors
    if floors[other] < floors[one] or (floors[other] == floors[one] and other < one):
        one, other = other, one
    valleys.parent[other] = one
    return int(other)


@leaf_kernel
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
        if level < highest + deep:
            united = False
            if level == highest:
                root, other = find_root(parent, above), find_root(parent, here)
                united = root == other
                if not united and level == max(floors[root], floors[other]):
                    unite_under_lower(valleys, root, other)
                    united = True
            if not united:
                add_pass(passes, size, above, here, level)
                size += 1
        ends_above, ends_here = np.uint64(right_above == right), np.uint64(right_here == right)
        above += ends_above
        i += ends_above
        here += ends_here
        j += ends_here
    return int(size)


@kernel
def join_valleys(levels: Bytes, deep: Scalar, valleys: Valleys, first: Ints) -> Passes:
    """Split all rows into valleys, and unite those between which nothing has to be climbed.

    Afterwards every set is the surroundings of one regional minimum, and its root the first valley
    that holds some of it. Returns the passes between two valleys, of those less than ``deep`` above
    the higher bottom; ``first[y]`` becomes the first valley of row y.
    """
    height, width = levels.shape
    starts = np.empty((2, width // 2 + 3), np.int32)  # of this row and the one above it, in turn
    passes = Passes(
        np.empty((1024, 2), np.int32), np.empty(1024, np.int32), np.full(256, -1, np.int32)
    )
    marks, places = empty_marks(width)
    size = np.int64(0)
    begin = np.int64(0)
    first[0] = 0
    for y in range(height):
        row, start = levels[y], starts[y & 1]
        count = split_row(row, start, valleys.bottoms[begin:], marks, places)
        first[y + 1] = begin + count
        passes = make_room(passes, size + 2 * count + begin - first[max(y - 1, 0)])
        for i in range(count):
            here = begin + i
            valleys.parent[here] = here
            valleys.floors[here] = row[valleys.bottoms[here]]
            if i > 0:
                level = np.int64(row[start[i] - 1])
                if level < np.int64(max(valleys.floors[here - 1], valleys.floors[here])) + deep:
                    add_pass(passes, size, here - 1, here, level)
                    size += 1
        if y > 0:
            size = np.int64(
                join_with_row_above(levels, y, starts, first, deep, valleys, passes, size)
            )
        begin += count
    return passes


@kernel
def regional_minima(
    levels: Bytes, deep: Scalar, parent: Ints, floors: Bytes, bottoms: Ints
) -> tuple[Ints, Ints, Ints, Bytes]:
    """Find the plateaus without a lower 4-neighbour, and how deep they are.

    The depth of a minimum is how far the water in it rises before it flows over into a lower one;
    of two equally low ones the first in raster order counts as the lower.

    Parameters
    ----------
    levels : (H, W) uint8
        Map.
    deep : int
        Depths from this one on, 1 to 255, are not told apart.
    parent, bottoms : (H * ceil(W / 2),) int32
        Scratch memory; a row has no more valleys than every second pixel.
    floors : (H * ceil(W / 2),) uint8
        Scratch memory.

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
    valleys = Valleys(parent, floors, bottoms)
    first = np.empty(height + 1, np.int32)
    passes = join_valleys(levels, deep, valleys, first)
    runs = np.empty((first[height], 2), np.int32)
    labels = np.empty(first[height], np.int32)
    names = np.empty(first[height], np.int32)  # of the minimum that a root stands for
    first_run = np.empty(height + 1, np.int32)
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
    # Kruskal's algorithm. A pass that was left out would end no life of less than ``deep``: on the
    # way from a minimum to a lower one, the bottoms before the last are as high as its own.
    depths = np.full(count, deep, np.uint8)
    for level in range(256):
        item = passes.last[level]
        while item >= 0:
            one = find_root(parent, passes.ends[item, 0])
            other = find_root(parent, passes.ends[item, 1])
            if one != other:
                lost = unite_under_lower(valleys, one, other)
                depths[names[lost]] = min(level - np.int64(floors[lost]), deep)
            item = passes.before[item]
    return runs[:size], first_run, labels[:size], depths
