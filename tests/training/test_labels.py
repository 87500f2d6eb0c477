"""Labels: masks and maps in, boundaries out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from scipy import ndimage

from subtok_data.errors import ConfigError
from subtok_data.segment import RLEMasks
from subtok_data.training import read_masks, write_masks
from subtok_data.training.labels import (
    boundary_from_labels,
    boundary_from_masks,
    edge_strength,
    edges_of_labels,
    extend_to_frame,
    mean_strength,
    round_kernel,
    widen,
)

planes = arrays(
    np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 3)
)


def mask_set(masks: list[NDArray[np.bool_]], quality: float = 1.0) -> RLEMasks:
    scores = np.full(len(masks), quality, np.float32)
    return RLEMasks.from_masks(masks, scores, {"stability": scores}, size=None if masks else (5, 7))


def test_mask_files_come_back(tmp_path: Path):
    masks = mask_set([np.eye(5, 7, dtype=bool), np.ones((5, 7), bool)], 0.75)
    write_masks(tmp_path / "a.npz", masks)
    again = read_masks(tmp_path / "a.npz")
    assert again.size == (5, 7)
    assert again.counts.tolist() == masks.counts.tolist()
    assert again.offsets.tolist() == masks.offsets.tolist()
    assert again.scores.tolist() == again.fields["stability"].tolist() == [0.75, 0.75]
    write_masks(tmp_path / "b.npz", mask_set([]))
    assert len(read_masks(tmp_path / "b.npz")) == 0
    with pytest.raises(ConfigError, match="give their stability"):
        write_masks(tmp_path / "d.npz", RLEMasks.from_masks([np.eye(2, dtype=bool)]))
    assert not (tmp_path / "d.npz").exists()


def test_damaged_mask_files_are_refused(tmp_path: Path):
    (tmp_path / "c.npz").write_bytes(b"no archive")
    with pytest.raises(ConfigError, match=r"c\.npz"):
        read_masks(tmp_path / "c.npz")
    (tmp_path / "c.npz").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"c\.npz"):
        read_masks(tmp_path / "c.npz")
    with (tmp_path / "c.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ConfigError, match=r"c\.npz"):
        read_masks(tmp_path / "c.npz")
    write_masks(tmp_path / "a.npz", mask_set([np.eye(5, 7, dtype=bool)]))
    (tmp_path / "c.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-40])
    with pytest.raises(ConfigError, match=r"c\.npz"):
        read_masks(tmp_path / "c.npz")
    with np.load(tmp_path / "a.npz") as data:
        values = dict(data)
    np.savez(tmp_path / "c.npz", **{**values, "size": np.array([5, 8])})
    with pytest.raises(ConfigError, match=r"c\.npz.*another size"):
        read_masks(tmp_path / "c.npz")


@settings(max_examples=50)
@given(planes)
def test_exact_labels_are_dilation_minus_erosion_of_every_region(plane: NDArray[np.uint8]):
    kernel = round_kernel(5)
    expected = np.zeros(plane.shape, bool)
    for value in np.unique(plane):
        region = plane == value
        # Beyond the frame nothing is known: neither dilation nor erosion may come from there.
        grown = ndimage.binary_dilation(np.pad(region, 2, mode="edge"), kernel)[2:-2, 2:-2]
        padded = np.pad(region, 2, mode="edge")
        shrunk = ndimage.binary_erosion(padded, kernel, border_value=1)[2:-2, 2:-2]
        expected |= grown & ~shrunk
    assert np.array_equal(boundary_from_labels(plane), expected)


def test_a_straight_border_is_four_pixels_wide_and_the_frame_is_free():
    halves = np.zeros((20, 20), np.int32)
    halves[:, 10:] = 7
    lines = boundary_from_labels(halves)
    assert lines.sum(axis=1).tolist() == [4] * 20
    assert not boundary_from_labels(np.ones((9, 9), np.int32)).any()


@given(planes)
def test_thin_edges_lie_on_both_sides(plane: NDArray[np.uint8]):
    edges = edges_of_labels(plane)
    padded = np.pad(plane, 1, mode="edge")
    around = [padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
    assert np.array_equal(edges, np.any([plane != one for one in around], axis=0))


def test_masks_of_different_sizes_are_refused():
    with pytest.raises(ConfigError, match="mask 1"):
        boundary_from_masks([np.ones((3, 3), bool), np.ones((3, 4), bool)])
    with pytest.raises(ConfigError, match="no masks"):
        boundary_from_masks([])


def test_strength_is_the_share_of_annotators():
    one, two = np.zeros((9, 9), int), np.zeros((9, 9), int)
    one[:, 4:] = 1
    two[:, 4:] = 1
    two[4:] += 2
    strength = mean_strength([edges_of_labels(one), edges_of_labels(two)])
    assert strength[0, 3] == strength[0, 4] == 255
    assert strength[4, 0] == 128
    assert strength[0, 0] == 0


def test_votes_of_masks_add_up_and_grow_with_size():
    left = np.zeros((64, 64), bool)
    left[:, :32] = True
    small = np.zeros((64, 64), bool)
    small[10:14, 40:44] = True
    once = edge_strength(mask_set([left, small]))
    twice = edge_strength(mask_set([left, ~left, small]))
    assert 0 < once[10, 40] < once[30, 31] < twice[30, 31]
    assert twice[30, 10] == 0
    assert not edge_strength(mask_set([left], quality=0.5)).any()


def test_masks_that_end_before_the_frame_leave_no_line_there():
    inner = np.zeros((40, 40), bool)
    inner[3:37, 3:20] = True
    strength = edge_strength(mask_set([inner]))
    assert strength[20, 19] > 0
    assert not strength[:, :15].any()
    assert np.array_equal(extend_to_frame(inner, 4)[:, 0], np.ones(40, bool))


@given(planes, st.integers(0, 3))
def test_widening_is_the_maximum_over_a_disk(plane: NDArray[np.uint8], radius: int):
    widened = widen(plane, radius)
    height, width = plane.shape
    y, x = np.indices(plane.shape)
    for row in range(height):
        for column in range(width):
            near = (y - row) ** 2 + (x - column) ** 2 <= (radius + 0.25) ** 2
            assert widened[row, column] == plane[near].max()


def test_labels_need_a_plane():
    with pytest.raises(ConfigError, match="non-empty"):
        edges_of_labels(np.zeros((0, 3), int))
    with pytest.raises(ConfigError, match="odd"):
        round_kernel(4)
