"""Seeds for merging: minima and their depths by definition, and which of them are chosen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.boundary_maps import (
    Levels,
    drawn_maps,
    minima_by_hand,
    random_map,
    real_maps,
    smooth_noise,
)
from hypothesis import given, settings
from scipy import ndimage

from subtok_data.segment.watershed.minima import find_minima, minima_seeds


def assert_minima(levels: Levels, deep: int) -> None:
    seeds, depths = find_minima(levels, deep)
    minima, by_hand = minima_by_hand(levels)
    assert np.array_equal(seeds.paint(levels.shape), minima)
    assert seeds.count == len(depths)
    assert depths.tolist() == [min(depth, deep) for depth in by_hand]


@settings(deadline=None)
@given(drawn_maps())
def test_minima_of_drawn_maps_follow_their_definition(levels: Levels) -> None:
    for deep in (1, 8, 255):
        assert_minima(levels, deep)


def test_minima_of_random_maps_follow_their_definition() -> None:
    rng = np.random.default_rng(0)
    for side in (3, 12, 30):
        for _ in range(150):
            assert_minima(random_map(rng, side), int(rng.choice([1, 8, 255])))


@pytest.mark.parametrize("shape", [(1, 1), (1, 301), (301, 1), (2, 2), (64, 64)])
def test_rows_of_as_many_valleys_as_fit(shape: tuple[int, int]) -> None:
    y, x = np.indices(shape)
    for levels in (x % 2, (x + y) % 2, (x + y + 1) % 2, y % 2):
        assert_minima((200 * levels).astype(np.uint8), 255)


def test_ranges_of_equal_height_and_spirals() -> None:
    """Long ways around: the pass of two minima is far from both."""
    levels = np.full((31, 31), 250, np.uint8)
    y = x = 15
    length, direction, height = 1, 0, 0
    while 0 <= y < 31 and 0 <= x < 31:
        for _ in range(length):
            if 0 <= y < 31 and 0 <= x < 31:
                levels[y, x] = 40 + height % 7
                height += 1
            y += (0, 1, 0, -1)[direction % 4] * 1
            x += (1, 0, -1, 0)[direction % 4] * 1
        direction += 1
        length += 1 + direction % 2
    for same in (levels, levels.T.copy(), levels[::-1].copy(), 255 - levels):
        assert_minima(same, 255)


def choice_by_hand(levels: Levels, num_tokens: int) -> np.ndarray:
    taps = np.array([1, 4, 6, 4, 1])
    whole = ndimage.convolve(levels.astype(np.int64), np.outer(taps, taps), mode="nearest")
    minima, depths = minima_by_hand(((whole + 128) >> 8).astype(np.uint8))
    for depth in range(8, 0, -1):
        chosen = np.array(depths) >= depth
        if chosen.sum() >= num_tokens:
            return np.append(np.where(chosen, np.cumsum(chosen) - 1, -1), -1)[minima]
    unsmoothed, _ = minima_by_hand(levels)
    return unsmoothed if unsmoothed.max() > minima.max() else minima


def test_the_deepest_minima_of_the_smoothed_map_are_chosen() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        levels = random_map(rng, 30)
        num_tokens = int(rng.integers(1, 40))
        seeds = minima_seeds(levels, num_tokens)
        expected = choice_by_hand(levels, num_tokens)
        assert np.array_equal(seeds.paint(levels.shape), expected)
        assert seeds.count == expected.max() + 1
        assert seeds.imposed
        everything = minima_seeds(levels)
        assert everything.count >= minima_seeds(levels, 1).count


def test_minima_of_large_smooth_maps() -> None:
    for scale in (1.5, 4):
        levels = smooth_noise(np.random.default_rng(2), (130, 171), scale)
        assert_minima(levels, 255)


@pytest.mark.data
def test_minima_of_real_maps(data_dir: Path) -> None:
    for levels in real_maps(data_dir, 2, 256):
        assert_minima(levels, 255)
