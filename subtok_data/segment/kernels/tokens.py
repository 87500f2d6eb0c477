"""Passes over a token map: measuring, relabelling, sampling shapes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from subtok_data.segment.kernels.compiled import kernel

__all__ = ["measure_tokens", "relabel", "sample_shapes"]

TokenMap = NDArray[np.signedinteger]


@kernel
def measure_tokens(
    token_map: TokenMap,
    areas: NDArray[np.int64],
    boxes: NDArray[np.int32],
    sums: NDArray[np.int64],
    first: NDArray[np.int64],
) -> bool:
    """Area, box, twice the sums of (y + 1/2, x + 1/2), and first pixel of each token.

    The arrays come zeroed. Returns False for a map with a label out of range; labels below 0 are
    no token.
    """
    height, width = token_map.shape
    count = areas.size
    for y in range(height):
        row = token_map[y]
        start = 0
        while start < width:
            token = row[start]
            end = start + 1
            while end < width and row[end] == token:
                end += 1
            if token >= count:
                return False
            if token >= 0:
                length = end - start
                box = boxes[token]
                if areas[token] == 0:
                    first[token] = y * width + start
                    box[0], box[1], box[2] = start, y, end
                box[0] = min(box[0], start)
                box[2] = max(box[2], end)
                box[3] = y + 1
                areas[token] += length
                sums[token, 0] += length * (2 * y + 1)
                sums[token, 1] += length * (start + end)
            start = end
    return True


@kernel
def relabel(token_map: TokenMap, labels: NDArray[np.int64], renamed: TokenMap) -> None:
    """Write ``labels[token]`` for every token; labels below 0 stay as they are."""
    height, width = token_map.shape
    for y in range(height):
        for x in range(width):
            token = np.int64(token_map[y, x])
            renamed[y, x] = labels[token] if token >= 0 else token


@kernel
def sample_shapes(token_map: TokenMap, boxes: NDArray[np.int32], shapes: NDArray[np.bool_]) -> None:
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
