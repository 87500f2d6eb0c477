"""Grids: every pixel in a patch, exact counts."""

from __future__ import annotations

import numpy as np
import pytest

from subtok_data.errors import ConfigError
from subtok_data.segment import GridPartitioner, measure


@pytest.mark.parametrize("size", [(1, 1), (7, 1000), (224, 224), (333, 250)])
@pytest.mark.parametrize("patch", [1, 16, 60, 5000])
def test_patches_cover_every_pixel(size: tuple[int, int], patch: int) -> None:
    partition = GridPartitioner(patch=patch)({}, size)
    rows, columns = -(-size[0] // patch), -(-size[1] // patch)
    geometry = measure(partition.token_map, rows * columns)
    assert partition.num_tokens == rows * columns
    assert geometry.areas.sum() == size[0] * size[1]
    assert geometry.areas[0] == min(patch, size[0]) * min(patch, size[1])


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (300, 7), (224, 224), (333, 250)])
@pytest.mark.parametrize("count", [1, 2, 7, 64, 100, 1000, 2100])
def test_grids_of_an_exact_count(size: tuple[int, int], count: int) -> None:
    partition = GridPartitioner(patch=16).for_num_tokens(count)({}, size)
    expected = min(count, size[0] * size[1])
    assert partition.num_tokens == expected
    geometry = measure(partition.token_map, expected)
    boxes = geometry.boxes
    assert np.array_equal((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), geometry.areas)
    if expected == 64 and size == (224, 224):
        assert geometry.areas.min() == geometry.areas.max()


def test_grid_needs_one_size() -> None:
    for options in ({}, {"patch": 8, "num_tokens": 8}, {"patch": 0}):
        with pytest.raises(ConfigError, match="patch="):
            GridPartitioner(**options)
