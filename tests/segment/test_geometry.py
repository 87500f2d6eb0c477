"""Areas, boxes, centers, shapes and order against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.boundary_maps import random_map
from helpers.token_maps import token_maps
from hypothesis import given, settings, strategies as st

from subtok_data.errors import ConfigError
from subtok_data.segment import (
    Partition,
    TokenMap,
    arrange,
    measure,
    region_adjacency,
    token_dtype,
    token_shapes,
)
from subtok_data.segment.geometry import order_tokens


@settings(deadline=None)
@given(token_maps(lowest=-1))
def test_geometry_follows_its_definition(token_map: TokenMap) -> None:
    count = int(token_map.max()) + 1
    if count == 0:
        return
    geometry = measure(token_map, count)
    for token in range(count):
        y, x = np.nonzero(token_map == token)
        assert geometry.areas[token] == len(y)
        assert geometry.boxes[token].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert geometry.first_pixels[token] == y[0] * token_map.shape[1] + x[0]
        np.testing.assert_allclose(geometry.centers[token], [y.mean() + 0.5, x.mean() + 0.5], 1e-6)
    assert geometry.areas.sum() == np.count_nonzero(token_map >= 0)
    assert geometry.areas.dtype == np.int64
    assert geometry.boxes.dtype == np.int32
    assert geometry.centers.dtype == np.float32


@settings(deadline=None)
@given(token_maps(), st.integers(1, 7))
def test_shapes_are_samples_of_the_box(token_map: TokenMap, side: int) -> None:
    count = int(token_map.max()) + 1
    boxes = measure(token_map, count).boxes
    shapes = token_shapes(token_map, boxes, side)
    assert shapes.shape == (count, side, side)
    assert shapes.any(axis=(1, 2)).all()
    for token, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        y = y0 + (2 * np.arange(side) + 1) * (y1 - y0) // (2 * side)
        x = x0 + (2 * np.arange(side) + 1) * (x1 - x0) // (2 * side)
        samples = token_map[np.ix_(y, x)] == token
        if samples.any():
            assert np.array_equal(shapes[token], samples)
        else:
            assert shapes[token].sum() == 1


def test_a_line_between_all_samples_is_not_lost() -> None:
    token_map = np.zeros((9, 9), np.int16)
    token_map[[0, 8], 4] = 1  # its box is a column of 9 pixels
    token_map[4, 0:9] = 2
    token_map[4, 4] = 1
    shapes = token_shapes(token_map, measure(token_map, 3).boxes, 2)
    assert shapes.any(axis=(1, 2)).all()


def test_a_full_box_has_a_full_shape() -> None:
    token_map = np.repeat(np.arange(2, dtype=np.int16), 5)[None].repeat(3, axis=0)
    assert token_shapes(token_map, measure(token_map, 2).boxes, 4).all()


@settings(deadline=None)
@given(token_maps())
def test_orders_are_total(token_map: TokenMap) -> None:
    geometry = measure(token_map, int(token_map.max()) + 1)
    by_area = order_tokens(geometry, "area").tolist()
    expected = sorted(by_area, key=lambda t: (-geometry.areas[t], geometry.first_pixels[t]))
    assert by_area == expected
    raster = order_tokens(geometry, "raster").tolist()
    expected = sorted(raster, key=lambda t: (*geometry.centers[t], geometry.first_pixels[t]))
    assert raster == expected
    with pytest.raises(ConfigError, match="order='random'"):
        order_tokens(geometry, "random")  # type: ignore[arg-type]


def test_bad_maps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"holds label 3: expected 0\.\.2"):
        measure(np.array([[0, 3]], np.int16), 3)
    with pytest.raises(ValueError, match="token 1 of 3 has no pixel"):
        measure(np.array([[0, 2]], np.int16), 3)
    with pytest.raises(ValueError, match="side=0"):
        token_shapes(np.zeros((2, 2), np.int16), np.array([[0, 0, 2, 2]], np.int32), 0)


def test_maps_in_any_memory_layout() -> None:
    token_map = (random_map(np.random.default_rng(0)) // 64).astype(np.int16)
    token_map = np.unique(token_map, return_inverse=True)[1].reshape(token_map.shape)
    token_map = token_map.astype(token_dtype(4))
    count = int(token_map.max()) + 1
    frozen = np.asfortranarray(token_map)
    frozen.flags.writeable = False
    assert np.array_equal(measure(frozen, count).areas, measure(token_map, count).areas)
    assert np.array_equal(region_adjacency(frozen).pairs, region_adjacency(token_map).pairs)


def test_arranging_leaves_the_partition_alone() -> None:
    token_map = np.array([[0, 1, 1], [0, 1, 2]], np.int16)
    partition = Partition(token_map, 3)
    before = partition.token_map.copy()
    arranged = arrange(partition)
    assert np.array_equal(partition.token_map, before)
    overwritten = arrange(partition, overwrite=True)
    assert overwritten.token_map is partition.token_map
    assert np.array_equal(overwritten.token_map, arranged.token_map)
