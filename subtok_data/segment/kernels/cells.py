"""The share of each cell of a coarser grid in each token of a map."""

from __future__ import annotations

import numpy as np

from subtok_data.segment.kernels.jit import Floats, Labels, Longs, allocating_kernel

__all__ = ["share_cells"]


@allocating_kernel
def share_cells(
    token_map: Labels,
    num_tokens: int,
    rows: tuple[Longs, Longs, Floats],
    columns: tuple[Longs, Longs, Floats],
    cells: tuple[int, int],
) -> tuple[Longs, Longs, Floats, Longs, Longs, Longs]:
    """Sum the areas that tokens and cells have in common.

    Along each axis the intervals are given as map pixel, cell and length; those of the rows sorted
    by cell. Labels are below ``num_tokens``; those below 0 are no token.

    Returns token, cell and area of each pair, by token and then by cell; where the pairs of each
    token begin (N + 1,); the places of the pairs in the order of cells; and where those of each
    cell begin (h · w + 1,).
    """
    row_pixel, row_cell, row_length = rows
    column_pixel, column_cell, column_length = columns
    height, width = cells
    # One row of cells at a time: the table stays in the processor's cache.
    table = np.zeros(width * num_tokens, np.float64)
    touched = np.empty(width * num_tokens, np.int64)
    token = np.empty(4 * height * width, np.int64)
    area = np.empty(token.size, np.float64)
    cell_start = np.zeros(height * width + 1, np.int64)
    pairs = 0
    i = 0
    for cell_row in range(height):
        count = 0
        while i < row_cell.size and row_cell[i] == cell_row:
            labels = token_map[row_pixel[i]]
            length = row_length[i]
            i += 1
            for j in range(column_pixel.size):
                label = np.int64(labels[column_pixel[j]])
                part = length * column_length[j]
                if label < 0 or part == 0:
                    continue
                slot = column_cell[j] * num_tokens + label
                if table[slot] == 0:
                    touched[count] = slot
                    count += 1
                table[slot] += part
        if pairs + count > token.size:
            space = 2 * (pairs + count)
            more, wider = np.empty(space, np.int64), np.empty(space, np.float64)
            more[:pairs], wider[:pairs] = token[:pairs], area[:pairs]
            token, area = more, wider
        for slot in np.sort(touched[:count]):
            token[pairs], area[pairs] = slot % num_tokens, table[slot]
            cell_start[cell_row * width + slot // num_tokens + 1] += 1
            table[slot] = 0
            pairs += 1
    # From the order of cells to that of tokens by counting.
    token_start = np.zeros(num_tokens + 1, np.int64)
    for k in range(pairs):
        token_start[token[k] + 1] += 1
    for k in range(num_tokens):
        token_start[k + 1] += token_start[k]
    free = token_start.copy()
    tokens, shared = np.empty(pairs, np.int64), np.empty(pairs, np.int64)
    areas = np.empty(pairs, np.float64)
    by_cell = np.empty(pairs, np.int64)
    k = 0
    for cell in range(height * width):
        for _ in range(cell_start[cell + 1]):
            place = free[token[k]]
            free[token[k]] += 1
            tokens[place], shared[place], areas[place] = token[k], cell, area[k]
            by_cell[k] = place
            k += 1
        cell_start[cell + 1] = k
    return tokens, shared, areas, token_start, by_cell, cell_start
