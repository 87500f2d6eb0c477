"""How many pixels of each region lie in each token, run by run."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from subtok_data.segment.kernels.compiled import Scalar, kernel

__all__ = ["count_overlaps"]

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]


@kernel
def add_column(
    column: NDArray[np.signedinteger],
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


@kernel
def count_overlaps(
    counts: Ints, offsets: Longs, token_map: NDArray[np.signedinteger], num_tokens: Scalar
) -> tuple[Longs, Ints, Longs]:
    """Pixels that each region shares with each token that it meets.

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
