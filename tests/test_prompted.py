"""Prompted regions as tokens: matching, painting, protection and the segmenter."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subtok_data.segment.overlaps import match_regions
from subtok_data.segment.packed import PackedMasks, encode_mask

SEEDS = st.integers(0, 2**32 - 1)


def random_size(rng: np.random.Generator, most: int = 20) -> tuple[int, int]:
    return int(rng.integers(1, most)), int(rng.integers(1, most))


def random_regions(rng: np.random.Generator, size: tuple[int, int], most: int = 6) -> np.ndarray:
    """Boxes, rings, salt and pepper: (P, H, W) bool."""
    masks = np.zeros((int(rng.integers(0, most + 1)), *size), bool)
    for mask in masks:
        kind = rng.integers(4)
        y, x = rng.integers(0, size[0]), rng.integers(0, size[1])
        if kind < 2:
            mask[y : y + rng.integers(1, size[0] + 1), x : x + rng.integers(1, size[1] + 1)] = True
        elif kind == 2:
            mask[...] = rng.random(size) < rng.random()
        else:
            v, u = np.indices(size)
            mask[...] = np.abs(np.hypot(v - y, u - x) - rng.random() * max(size)) < 1.5
    return masks


@settings(deadline=None, max_examples=200)
@given(SEEDS)
def test_masks_are_resized_to_what_lies_under_the_new_centres(seed):
    rng = np.random.default_rng(seed)
    old, new = random_size(rng), random_size(rng)
    masks = random_regions(rng, old)
    packed = PackedMasks.from_masks(masks, rng.random(len(masks)), size=old).resized(new)
    assert packed.size == new
    rows = [int((y + 0.5) * old[0] / new[0]) for y in range(new[0])]
    columns = [int((x + 0.5) * old[1] / new[1]) for x in range(new[1])]
    for index, mask in enumerate(masks):
        expected = mask[np.ix_(rows, columns)].copy()
        if mask.any() and not expected.any():
            pixels = np.argwhere(mask.T)  # column by column
            x, y = pixels[(len(pixels) - 1) // 2]
            expected[y * new[0] // old[0], x * new[1] // old[1]] = True
        assert np.array_equal(packed.mask(index), expected)
        assert packed.runs(index).tolist() == encode_mask(expected).tolist()


def test_masks_are_taken_with_their_scores_and_fields():
    masks = [np.eye(3, dtype=bool), np.ones((3, 3), bool), np.zeros((3, 3), bool)]
    packed = PackedMasks.from_masks(masks, [0.5, 0.25, 0.0], {"class": np.array([7, 8, 9])})
    taken = packed.take([2, 0, 0])
    assert taken.areas.tolist() == [0, 3, 3]
    assert taken.scores.tolist() == [0, 0.5, 0.5]
    assert taken.fields["class"].tolist() == [9, 7, 7]
    assert len(packed.take([])) == 0


def random_tokens(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, int]:
    """Labels that need not be connected, all of them present."""
    labels = rng.integers(0, int(rng.integers(1, 9)), size)
    if rng.random() < 0.5:
        labels = np.repeat(np.repeat(labels, 3, 0), 3, 1)[: size[0], : size[1]]
    present, token_map = np.unique(labels, return_inverse=True)
    return token_map.reshape(size).astype(np.int16), len(present)


@settings(deadline=None, max_examples=200)
@given(SEEDS)
def test_regions_are_matched_to_the_token_of_highest_iou(seed):
    rng = np.random.default_rng(seed)
    size = random_size(rng)
    token_map, count = random_tokens(rng, size)
    masks = [mask for mask in random_regions(rng, size, 9) if mask.any()]
    regions = PackedMasks.from_masks(masks, size=size)
    expected = []
    for mask in masks:
        tokens = [token_map == token for token in range(count)]
        ious = [Fraction(int((t & mask).sum()), int((t | mask).sum())) for t in tokens]
        expected.append(ious.index(max(ious)))
    assert match_regions(token_map, count, regions).tolist() == expected


def test_a_region_without_tokens_gets_the_nearest():
    token_map = np.array([[0, -1, -1, -1, 1]], np.int16)
    regions = PackedMasks.from_masks(np.array([[[0, 1, 0, 0, 0]], [[0, 0, 0, 1, 0]]], bool))
    assert match_regions(token_map, 2, regions).tolist() == [0, 1]
    empty = PackedMasks.from_masks(np.zeros((1, 1, 5), bool))
    with pytest.raises(ValueError, match="region 0 has no pixel"):
        match_regions(token_map, 2, empty)
    with pytest.raises(ValueError, match="1 × 5 pixels for a token map of 5 × 1"):
        match_regions(token_map.T, 2, regions)
