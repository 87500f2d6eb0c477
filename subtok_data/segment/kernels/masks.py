"""Painting of run-length masks, and connected parts of equal labels, row run by row run."""

from __future__ import annotations

import numpy as np

from subtok_data.segment.kernels.components import number_sets, unite
from subtok_data.segment.kernels.jit import Flags, Ints, Longs, Scalar, allocating_kernel

__all__ = ["label_parts", "paint_masks"]


@allocating_kernel
def paint_masks(counts: Ints, offsets: Longs, order: Longs, canvas: Ints) -> None:
    """Paint masks over one another; a pixel keeps the number of the last one that covers it.

    Parameters
    ----------
    counts : (R,) int32
        Runs of all masks, column by column, outside first (COCO's order).
    offsets : (M + 1,) int64
        Where the runs of each mask begin.
    order : (M,) int64
        Masks, the lowest first.
    canvas : (W * H,) int32
        Column by column; pixels without a mask are left as they are.
    """
    for place in range(order.size):
        mask = order[place]
        start = np.int64(0)
        inside = False
        for run in range(offsets[mask], offsets[mask + 1]):
            end = start + counts[run]
            if inside:
                for pixel in range(start, end):
                    canvas[pixel] = mask
            inside = not inside
            start = end


@allocating_kernel
def find_parts(painted: Ints, num_runs: Scalar, runs: Ints, values: Ints, first_run: Ints) -> None:
    """Split every row into its maximal runs of one value; ``num_runs`` is their number."""
    height, width = painted.shape
    run = -1
    for y in range(height):
        row = painted[y]
        first_run[y] = run + 1
        for x in range(width):
            if x == 0 or row[x] != row[x - 1]:
                if x > 0:
                    runs[run, 1] = x
                run += 1
                runs[run, 0] = x
                values[run] = row[x]
        runs[run, 1] = width
    first_run[height] = num_runs


@allocating_kernel
def join_parts(runs: Ints, values: Ints, first_run: Ints, labels: Ints) -> int:
    """Number the 4-connected parts of equal value in raster order; return how many there are."""
    size = runs.shape[0]
    for i in range(size):
        labels[i] = i
    for y in range(first_run.size - 1):
        # Two runs side by side have one value where a small part was dropped between passes.
        for i in range(first_run[y] + 1, first_run[y + 1]):
            if values[i] == values[i - 1]:
                unite(labels, i - 1, i)
        if y == 0:
            continue
        above, here = first_run[y - 1], first_run[y]
        end_above, end_here = here, first_run[y + 1]
        # The runs of a row leave no gap, so each pair that is looked at shares a column.
        while above < end_above and here < end_here:
            if values[above] == values[here]:
                unite(labels, above, here)
            ends_above, ends_here = runs[above, 1], runs[here, 1]
            if ends_above <= ends_here:
                above += 1
            if ends_here <= ends_above:
                here += 1
    return number_sets(labels)


@allocating_kernel
def measure_parts(runs: Ints, values: Ints, labels: Ints, areas: Longs, of: Ints) -> None:
    """Add up the area of each part, and note its value."""
    for i in range(runs.shape[0]):
        areas[labels[i]] += runs[i, 1] - runs[i, 0]
        of[labels[i]] = values[i]


@allocating_kernel
def spare_parts(areas: Longs, of: Ints, spared: Longs) -> Flags:
    """Mark the parts that stay however small; see :func:`label_parts`."""
    stays = np.zeros(areas.size, np.bool_)
    largest = np.full(spared.size, -1, np.int32)
    for part in range(areas.size):
        label = of[part]
        if label < 0 or label >= spared.size:
            continue
        if spared[label] > 0:
            stays[part] = areas[part] >= spared[label]
        elif largest[label] < 0 or areas[part] > areas[largest[label]]:
            largest[label] = part
    for label in range(spared.size):
        if largest[label] >= 0:
            stays[largest[label]] = True
    return stays


@allocating_kernel
def label_parts(
    painted: Ints,
    num_runs: Scalar,
    min_area: Scalar,
    gap_area: Scalar,
    spared: Longs,
) -> tuple[Ints, Ints, Ints, Ints, Scalar]:
    """Label the connected parts that are large enough to be tokens.

    Parameters
    ----------
    painted : (H, W) int32
        Label of each pixel; −1 for a gap.
    num_runs : int
        Row runs of equal value in it.
    min_area : int
        Smaller parts of a label count as gap.
    gap_area : int
        Smaller parts of the gap are no tokens.
    spared : (V,) int64
        Pixels from which on a part of each label stays, whatever ``min_area`` says; 0: the largest
        part, the first of equals. No part is spared of labels from V on.

    Returns
    -------
    runs : (R, 2) int32
        First column and column after the last of each run, in raster order.
    first_run : (H + 1,) int32
        Where the runs of each row begin.
    labels : (R,) int32
        Part of each run, 0..K-1 in raster order; −1 for what no part takes.
    values : (K,) int32
        Label of each part, −1 for gaps.
    left : int
        Pixels that no part takes.
    """
    runs = np.empty((num_runs, 2), np.int32)
    values = np.empty(num_runs, np.int32)
    labels = np.empty(num_runs, np.int32)
    first_run = np.empty(painted.shape[0] + 1, np.int32)
    find_parts(painted, num_runs, runs, values, first_run)
    count = join_parts(runs, values, first_run, labels)
    areas = np.zeros(count, np.int64)
    of = np.empty(count, np.int32)
    measure_parts(runs, values, labels, areas, of)
    stays = spare_parts(areas, of, spared)
    dropped = False
    for i in range(num_runs):
        if values[i] >= 0 and areas[labels[i]] < min_area and not stays[labels[i]]:
            values[i] = -1
            dropped = True
    if dropped:  # gaps have grown, and may have grown together
        count = join_parts(runs, values, first_run, labels)
        areas = np.zeros(count, np.int64)
        of = np.empty(count, np.int32)
        measure_parts(runs, values, labels, areas, of)
    kept = np.empty(count, np.int32)
    number = 0
    left = np.int64(0)
    for part in range(count):
        if of[part] >= 0 or areas[part] >= gap_area:
            kept[part] = number
            of[number] = of[part]
            number += 1
        else:
            kept[part] = -1
            left += areas[part]
    for i in range(num_runs):
        labels[i] = kept[labels[i]]
    return runs, first_run, labels, of[:number].copy(), left
