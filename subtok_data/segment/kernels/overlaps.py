"""Regions and tokens: the pixels they share, and unions of tokens as run lengths."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from subtok_data.segment.kernels.jit import Bytes, Ints, Labels, Longs, Scalar, allocating_kernel

__all__ = ["CLIPPED", "DIVIDED", "WHOLE", "count_overlaps", "union_runs"]


@allocating_kernel
def add_column(
    column: Labels,
    top: Scalar,
    bottom: Scalar,
    inside: Longs,
    touched: Ints,
    number: Scalar,
) -> int:
    """Count the pixels from ``top`` to ``bottom`` of a column by token; labels below 0 are none.

    ``touched`` receives the tokens met for the first time; returns how many it holds then.
    """
    y = top
    while y < bottom:
        token = column[y]
        begin = y
        while y < bottom and column[y] == token:
            y += 1
        if token >= 0:
            if inside[token] == 0:
                touched[number] = token
                number += 1
            inside[token] += y - begin
    return int(number)


@allocating_kernel
def count_overlaps(
    counts: Ints, offsets: Longs, token_map: Labels, num_tokens: Scalar
) -> tuple[Longs, Ints, Longs]:
    """Count the pixels that each region shares with each token.

    Time grows with the pixels of the regions, not with regions times tokens.

    Parameters
    ----------
    counts : (R,) int32
        Runs of all regions, column by column, outside first (COCO's order).
    offsets : (P + 1,) int64
        Where the runs of each region begin.
    token_map : (H, W) int16 or int32
        Token of each pixel; labels below 0 are no token.
    num_tokens : int
        N.

    Returns
    -------
    first : (P + 1,) int64
        Where the overlaps of each region begin.
    tokens : (K,) int32
        Tokens that a region meets, ascending within a region.
    pixels : (K,) int64
        Pixels in common, at least 1.
    """
    height = token_map.shape[0]
    columns = token_map.T
    inside = np.zeros(num_tokens, np.int64)
    touched = np.empty(num_tokens, np.int32)
    first = np.zeros(offsets.size, np.int64)
    tokens = np.empty(64, np.int32)
    pixels = np.empty(64, np.int64)
    used = 0
    for region in range(offsets.size - 1):
        number = 0
        start = np.int64(0)
        for run in range(offsets[region], offsets[region + 1]):
            end = start + counts[run]
            if (run - offsets[region]) % 2 == 1:
                while start < end:
                    x = start // height
                    bottom = min(height, end - x * height)
                    number = add_column(
                        columns[x], start - x * height, bottom, inside, touched, number
                    )
                    start = x * height + bottom
            start = end
        touched[:number].sort()
        while used + number > tokens.size:
            tokens = np.concatenate((tokens, np.empty_like(tokens)))
            pixels = np.concatenate((pixels, np.empty_like(pixels)))
        for i in range(number):
            token = touched[i]
            tokens[used] = token
            pixels[used] = inside[token]
            inside[token] = 0
            used += 1
        first[region + 1] = used
    return first, tokens[:used].copy(), pixels[:used].copy()


CLIPPED, WHOLE, DIVIDED = 1, 2, 3
"""How a token belongs to a region: inside a box, all of it, or what is nearest to points inside."""


@allocating_kernel
def is_nearer(y: Scalar, x: Scalar, points: Longs, labels: NDArray[np.int8]) -> bool:
    """Return whether a pixel is no farther from a point of label 1 than from all of label 0."""
    inside, outside = np.int64(1) << 62, np.int64(1) << 62
    for i in range(labels.size):
        distance = (points[i, 0] - y) ** 2 + (points[i, 1] - x) ** 2
        if labels[i] == 1:
            inside = min(inside, distance)
        elif labels[i] == 0:
            outside = min(outside, distance)
    return bool(inside <= outside)


@allocating_kernel
def union_runs(
    token_map: Labels,
    num_tokens: Scalar,
    boxes: Ints,
    first: Longs,
    tokens: Ints,
    kinds: Bytes,
    clips: Ints,
    points: Longs,
    labels: NDArray[np.int8],
) -> tuple[Ints, Longs]:
    """Encode unions of tokens as run lengths; time grows with the boxes around them.

    Parameters
    ----------
    token_map : (H, W) int16 or int32
        Token of each pixel, 0..num_tokens-1.
    num_tokens : int
        N.
    boxes : (N, 4) int32
        x0, y0, x1, y1 of each token, half-open.
    first : (P + 1,) int64
        Where the tokens of each region begin; it has one at least.
    tokens : (K,) int32
        Tokens of all regions.
    kinds : (K,) uint8
        CLIPPED, WHOLE or DIVIDED.
    clips : (P, 4) int32
        Box that clips, x0, y0, x1, y1, half-open.
    points : (P, Q, 2) int64
        Row and column of the points that divide.
    labels : (P, Q) int8
        1 inside, 0 outside, −1 no point.

    Returns
    -------
    counts : (R,) int32
        Runs of all regions, column by column, outside first (COCO's order).
    offsets : (P + 1,) int64
        Where the runs of each region begin.
    """
    height, width = token_map.shape
    columns = token_map.T
    member = np.zeros(num_tokens, np.uint8)
    counts = np.empty(4 * height + 4, np.int32)
    offsets = np.zeros(first.size, np.int64)
    used = 0
    for region in range(first.size - 1):
        left, top, right, bottom = width, height, 0, 0
        for i in range(first[region], first[region + 1]):
            token = tokens[i]
            member[token] = kinds[i]
            left, top = min(left, boxes[token, 0]), min(top, boxes[token, 1])
            right, bottom = max(right, boxes[token, 2]), max(bottom, boxes[token, 3])
        past = np.int64(0)  # where the last run ends
        begins = used
        for x in range(left, right):
            if used + height + 4 > counts.size:
                counts = np.concatenate((counts, np.empty_like(counts)))
            column = columns[x]
            y = np.int64(top)
            while y < bottom:
                kind = member[column[y]]
                start = y
                end = start
                if kind == DIVIDED:
                    y += 1
                    if is_nearer(start, x, points[region], labels[region]):
                        end = y
                else:
                    token = column[y]
                    while y < bottom and column[y] == token:
                        y += 1
                    if kind == WHOLE:
                        end = y
                    elif kind == CLIPPED and clips[region, 0] <= x < clips[region, 2]:
                        start = max(start, np.int64(clips[region, 1]))
                        end = min(y, np.int64(clips[region, 3]))
                if start >= end:
                    continue
                if used > begins and past == x * height + start:
                    counts[used - 1] += end - start
                else:
                    counts[used] = x * height + start - past
                    counts[used + 1] = end - start
                    used += 2
                past = x * height + end
        if past < height * width:
            counts[used] = height * width - past
            used += 1
        offsets[region + 1] = used
        for i in range(first[region], first[region + 1]):
            member[tokens[i]] = 0
    return counts[:used].copy(), offsets
