"""Passes over a token map: measuring, relabelling, sampling shapes."""

from __future__ import annotations

import numpy as np

from subtok_data.segment.kernels.jit import Flags, Ints, Labels, Longs, kernel
from subtok_data.segment.kernels.marks import Marks, empty_marks, list_marks

__all__ = ["measure_tokens", "relabel", "sample_shapes"]


def measure_tokens(
    token_map: Labels,
    areas: Longs,
    boxes: Ints,
    sums: Longs,
    first: Longs,
) -> bool:
    """Measure area, box, twice the sums of (y + 1/2, x + 1/2), and first pixel of each token.

    The arrays come zeroed. Returns False for a map with a label out of range; labels below 0 are
    no token.
    """
    marks = empty_marks(token_map.shape[1])
    return bool(measure_rows(token_map, marks, areas, boxes, sums, first))


@kernel
def measure_rows(
    token_map: Labels, marks: Marks, areas: Longs, boxes: Ints, sums: Longs, first: Longs
) -> bool:
    """Measure the tokens of all rows: see :func:`measure_tokens`."""
    height, width = token_map.shape
    flags, ends = marks.flags, marks.places
    for y in range(height):
        row = token_map[y]
        for x in range(width - 1):
            flags[x] = row[x] != row[x + 1]
        flags[width - 1] = 1
        start = np.int64(0)
        for i in range(list_marks(marks)):
            end = np.int64(ends[i]) + 1
            token = np.int64(row[start])
            if token >= areas.size:
                return False
            if token >= 0:
                length = end - start
                if areas[token] == 0:
                    first[token] = y * width + start
                    boxes[token, 0] = start
                    boxes[token, 1] = y
                boxes[token, 0] = min(boxes[token, 0], start)
                boxes[token, 2] = max(boxes[token, 2], end)
                boxes[token, 3] = y + 1
                areas[token] += length
                sums[token, 0] += length * (2 * y + 1)
                sums[token, 1] += length * (start + end)
            start = end
    return True


def relabel(token_map: Labels, labels: Longs, renamed: Labels) -> None:
    """Write ``labels[token]`` for every token, and −1 for labels below 0; they may be one array."""
    look_up(token_map, np.concatenate([[-1], labels]).astype(np.int32), renamed)


@kernel
def look_up(token_map: Labels, table: Ints, renamed: Labels) -> None:
    """Write ``table[token + 1]`` for every token of 0 and above, else ``table[0]``."""
    height, width = token_map.shape
    for y in range(height):
        row, target = token_map[y], renamed[y]
        for x in range(width):
            token = np.int64(row[x])
            target[x] = table[np.uint64(token + 1 if token >= 0 else 0)]


@kernel
def sample_shapes(token_map: Labels, boxes: Ints, shapes: Flags) -> None:
    """Sample each token inside its box at the centres of a grid of r x r cells."""
    side = shapes.shape[1]
    for token in range(boxes.shape[0]):
        left, top = np.int64(boxes[token, 0]), np.int64(boxes[token, 1])
        width = np.int64(boxes[token, 2]) - left
        height = np.int64(boxes[token, 3]) - top
        empty = True
        for i in range(side):
            y = top + (2 * i + 1) * height // (2 * side)
            for j in range(side):
                inside = token_map[y, left + (2 * j + 1) * width // (2 * side)] == token
                shapes[token, i, j] = inside
                empty = empty and not inside
        if empty:
            # All samples missed a thin token. Its box begins with a row that holds some of it.
            for x in range(left, left + width):
                if token_map[top, x] == token:
                    shapes[token, 0, (x - left) * side // width] = True
                    break
