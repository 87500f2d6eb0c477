"""Random maps, in numbers: the flood against a priority queue, merges against all pairs."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from helpers.boundary_maps import flood_by_hand, random_map
from helpers.merges import merges_by_hand
from skimage.measure import label

from subtok_data.segment import Prompts, match_regions, region_adjacency, watershed_tokens
from subtok_data.segment.kernels.merging import (
    AREA,
    BALANCED,
    BOUNDARY,
    SHARE,
    Cost,
    merge_neighbours,
)
from subtok_data.segment.watershed.flood import flood_from
from subtok_data.segment.watershed.minima import minima_seeds
from subtok_data.segment.watershed.seeds import threshold_seeds


def check_floods(seeds: range) -> int:
    """Flood from thresholds and from minima; returns how many partitions have several tokens."""
    several = 0
    for seed in seeds:
        rng = np.random.default_rng(seed)
        levels = random_map(rng)
        for found, imposed in (
            (threshold_seeds(levels, float(rng.uniform(0.01, 0.99))), False),
            (minima_seeds(levels, int(rng.integers(1, 60))), True),
        ):
            if found.count == 0:
                continue
            token_map, number = flood_from(levels, found)
            by_hand = flood_by_hand(levels, found.paint(levels.shape), imposed=imposed)
            assert np.array_equal(token_map, by_hand), (seed, imposed)
            several += number > 1
    return several


def check_merges(seeds: range) -> int:
    """Merge down with every cost; returns the number of merges."""
    done = 0
    for seed in seeds:
        rng = np.random.default_rng(seed)
        levels = random_map(rng, 18)
        token_map, count = flood_from(levels, minima_seeds(levels, 10_000))
        borders = region_adjacency(token_map, levels)
        areas = np.bincount(token_map.ravel(), minlength=count).astype(np.int64)
        protected = rng.random(count) < rng.choice([0, 0.3, 0.8])
        rule = (BOUNDARY, BALANCED, AREA, SHARE)[seed % 4]
        min_area, stop = int(rng.integers(0, 20)), int(rng.integers(1, 6))
        cost = Cost(rule, 1.0, 1.0, 1.0)
        merges, _, forced = merge_neighbours(
            borders.pairs,
            borders.lengths,
            borders.sums,
            areas,
            protected,
            cost,
            min_area,
            stop,
            -1.0,
        )
        expected, _, forced_by_hand = merges_by_hand(
            borders, areas, protected, cost, min_area, stop
        )
        assert merges.tolist() == [list(merge) for merge in expected], seed
        assert forced == forced_by_hand, seed
        done += len(expected)
    return done


def check_counts(seeds: range) -> None:
    """Ask for exact counts: so many tokens, or all minima; every token connected; nested."""
    for seed in seeds:
        rng = np.random.default_rng(seed)
        levels = random_map(rng)
        counts = sorted({int(n) for n in rng.integers(1, 80, 3)})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # too flat for so many
            maps = watershed_tokens(levels, num_tokens=counts, order="raster")
        for number, token_map in zip(counts, maps, strict=True):
            assert len(np.unique(token_map)) <= number
            parts = label(token_map, connectivity=1, background=-1)
            assert parts.max() == token_map.max() + 1, seed
        for coarse, fine in itertools.pairwise(maps):
            pairs = np.unique(np.stack([fine.ravel(), coarse.ravel()]), axis=1)
            assert len(np.unique(pairs[0])) == pairs.shape[1], seed


def test_floods_and_merges_of_hundreds_of_maps():
    assert check_floods(range(150)) > 100
    assert check_merges(range(90)) > 300
    check_counts(range(60))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_floods_and_merges_of_thousands_of_maps():
    assert check_floods(range(1000, 5000)) > 1000
    assert check_merges(range(1000, 3000)) > 1000
    check_counts(range(1000, 4000))


# --- prompts -----------------------------------------------------------------------------------


def pixels_by_hand(prompts: Prompts, prompt: int) -> set[tuple[int, int]]:
    """The pixels of a prompt's own region: mask, else box, else points."""
    height, width = prompts.size
    if prompts.masks is not None and prompts.masks.mask(prompt).any():
        return {(int(y), int(x)) for y, x in np.argwhere(prompts.masks.mask(prompt))}
    inside = {
        (min(int(y), height - 1), min(int(x), width - 1))
        for (x, y), mark in zip(prompts.points[prompt], prompts.labels[prompt], strict=True)
        if mark == 1
    }
    assert inside
    return inside


@pytest.mark.parametrize("seed", range(40))
def test_regions_of_points_and_masks_are_their_pixels(seed):
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(1, 30, 2))
    count, points = int(rng.integers(1, 6)), int(rng.integers(1, 4))
    places = rng.random((count, points, 2)) * (width, height)
    labels = rng.choice([1, 0, -1], (count, points))
    labels[:, 0] = 1
    masks = rng.random((count, height, width)) < rng.choice([0, 0.02, 0.5], (count, 1, 1))
    prompts = Prompts.of((height, width), points=places, labels=labels, masks=masks)
    regions = prompts.regions()
    bounds = prompts.bounds()
    token_map = watershed_tokens(rng.integers(0, 256, (height, width), np.uint8), 0.5)
    areas = np.bincount(token_map.ravel())
    matched = match_regions(token_map, len(areas), regions, areas)
    for prompt in range(count):
        pixels = pixels_by_hand(prompts, prompt)
        assert {(int(y), int(x)) for y, x in np.argwhere(regions.mask(prompt))} == pixels
        rows, columns = zip(*pixels, strict=True)
        box = [min(columns), min(rows), max(columns) + 1, max(rows) + 1]
        assert bounds[prompt].tolist() == box
        shared = np.bincount([token_map[pixel] for pixel in pixels], minlength=len(areas))
        overlap = shared / (areas + len(pixels) - shared)
        assert np.isclose(overlap[matched[prompt]], overlap.max())
