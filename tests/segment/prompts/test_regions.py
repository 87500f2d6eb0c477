"""Regions: resized, matched with tokens, found for boxes and points."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from helpers.random_regions import random_regions, random_size, random_tokens
from hypothesis import given, settings, strategies as st

from subtok_data.segment import Partition, Prompts, RLEMasks, match_regions, prompt_regions
from subtok_data.segment.masks.rle import encode_mask
from subtok_data.segment.prompts.regions import best_union

SEEDS = st.integers(0, 2**32 - 1)


@settings(deadline=None, max_examples=200)
@given(SEEDS)
def test_masks_are_resized_to_what_lies_under_the_new_centres(seed):
    rng = np.random.default_rng(seed)
    old, new = random_size(rng), random_size(rng)
    masks = random_regions(rng, old)
    packed = RLEMasks.from_masks(masks, rng.random(len(masks)), size=old).resized(new)
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
    packed = RLEMasks.from_masks(masks, [0.5, 0.25, 0.0], {"class": np.array([7, 8, 9])})
    taken = packed.take([2, 0, 0])
    assert taken.areas.tolist() == [0, 3, 3]
    assert taken.scores.tolist() == [0, 0.5, 0.5]
    assert taken.fields["class"].tolist() == [9, 7, 7]
    assert len(packed.take([])) == 0


@settings(deadline=None, max_examples=200)
@given(SEEDS)
def test_regions_are_matched_to_the_token_of_highest_iou(seed):
    rng = np.random.default_rng(seed)
    size = random_size(rng)
    token_map, count = random_tokens(rng, size)
    masks = [mask for mask in random_regions(rng, size, 9) if mask.any()]
    regions = RLEMasks.from_masks(masks, size=size)
    expected = []
    for mask in masks:
        tokens = [token_map == token for token in range(count)]
        ious = [Fraction(int((t & mask).sum()), int((t | mask).sum())) for t in tokens]
        expected.append(ious.index(max(ious)))
    assert match_regions(token_map, count, regions).tolist() == expected


def test_a_region_without_tokens_gets_the_nearest():
    token_map = np.array([[0, -1, -1, -1, 1]], np.int16)
    regions = RLEMasks.from_masks(np.array([[[0, 1, 0, 0, 0]], [[0, 0, 0, 1, 0]]], bool))
    assert match_regions(token_map, 2, regions).tolist() == [0, 1]
    empty = RLEMasks.from_masks(np.zeros((1, 1, 5), bool))
    with pytest.raises(ValueError, match="region 0 has no pixel"):
        match_regions(token_map, 2, empty)
    with pytest.raises(ValueError, match="1 × 5 pixels for a token map of 5 × 1"):
        match_regions(token_map.T, 2, regions)


@settings(deadline=None, max_examples=100)
@given(SEEDS)
def test_no_union_of_tokens_fits_a_box_better(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 9))
    inside = rng.integers(1, 20, count)
    areas = inside + rng.integers(0, 20, count) * (rng.random(count) < 0.8)
    box = int(inside.sum() + rng.integers(0, 9))
    best = max(
        Fraction(int(inside[list(union)].sum()), int(box + (areas - inside)[list(union)].sum()))
        for size in range(1, count + 1)
        for union in combinations(range(count), size)
    )
    chosen, iou = best_union(inside, areas, box)
    assert len(set(chosen.tolist())) == len(chosen)
    assert iou == float(best)
    assert Fraction(int(inside[chosen].sum()), int(box + (areas - inside)[chosen].sum())) == best


def test_regions_of_boxes_and_points():
    token_map = np.repeat([[0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]], 3, 0).astype(np.int16)
    tokens = Partition(token_map, 3)

    def columns(min_iou=0.5, **options):
        regions = prompt_regions(Prompts.of((3, 12), **options), tokens, min_iou)
        masks = [regions.mask(i) for i in range(len(regions))]
        assert all((mask == mask[0]).all() for mask in masks)
        return ["".join(".#"[int(pixel)] for pixel in mask[0]) for mask in masks]

    near, far = [0.1, 0, 5.4, 3], [2, 0, 5, 3]
    assert columns(boxes=[near, far]) == ["####........", "..###......."]
    assert columns(boxes=[far], min_iou=0.3) == ["..##........"]  # what is inside the box
    assert columns(boxes=[[4.2, 0, 4.4, 3]]) == ["....#......."]  # thinner than a pixel
    assert columns(points=[[1, 1]]) == ["####........"]
    two = [[[1, 1], [5, 1]]]
    assert columns(points=two) == ["########...."]
    assert columns(points=two, labels=[[1, 0]]) == ["####........"]
    assert columns(points=two, labels=[[1, -1]]) == ["####........"]
    # Points of both kinds divide a token half-way; what is equally near is inside.
    assert columns(points=[[[4, 1], [6, 1]]], labels=[[1, 0]]) == ["....##......"]
    assert columns(points=[[[5.1, 1.2], [5.9, 1.7]]], labels=[[1, 0]]) == ["....####...."]
    # Points correct the tokens of a box, and nothing left means the box.
    wide = [1, 0, 8, 3]
    assert columns(boxes=[wide]) == [".#######...."]
    assert columns(boxes=[wide], points=[[5, 1]], labels=[0]) == [".###........"]
    assert columns(boxes=[wide], points=[[10, 1]]) == [".###########"]
    assert columns(boxes=[wide], points=[[1, 1]]) == ["########...."]
    assert columns(boxes=[wide], points=two, labels=[[0, 0]]) == [".#######...."]
    both = columns(boxes=[wide], points=[[[6, 1], [4, 1]]], labels=[[1, 0]])
    assert both == [".###.###...."]
    # The mask counts where there is one.
    mask = np.zeros((3, 12), bool)
    mask[:, 7] = True
    both = columns(boxes=[near, near], masks=[mask, ~mask & False])
    assert both == [".......#....", "####........"]


@settings(deadline=None, max_examples=150)
@given(SEEDS)
def test_regions_follow_their_definition(seed):
    rng = np.random.default_rng(seed)
    size = random_size(rng, 16)
    token_map, count = random_tokens(rng, size)
    sides = np.array([size[1], size[0]])
    corners = rng.integers(0, sides, (4, 2))
    boxes = np.concatenate([corners, corners + rng.integers(1, sides - corners + 1)], axis=1)
    boxes = boxes.astype(np.float32)
    boxes[0] = np.nan
    points = rng.random((4, 3, 2)) * sides
    labels = rng.integers(-1, 2, (4, 3))
    labels[0, 0] = 1
    prompts = Prompts.of(size, boxes=boxes, points=points, labels=labels)
    regions = prompt_regions(prompts, Partition(token_map, count), 0.4)
    y, x = np.indices(size)
    for prompt in range(4):
        spots = [points[prompt][labels[prompt] == kind].astype(int) for kind in (1, 0)]
        inner, outer = ({int(token_map[v, u]) for u, v in some} for some in spots)
        far = np.full(size, np.inf)
        inside, outside = (
            np.min([far, *((y - v) ** 2 + (x - u) ** 2 for u, v in some)], axis=0) for some in spots
        )
        box = np.zeros(size, bool)
        best: set[int] = set()
        if prompt > 0:
            x0, y0, x1, y1 = boxes[prompt].astype(int)
            box[y0:y1, x0:x1] = True
            shares = np.array(
                [(box & (token_map == t)).sum() / (token_map == t).sum() for t in range(count)]
            )
            ious = []
            for level in np.unique(shares[shares > 0])[::-1]:
                union = np.isin(token_map, np.flatnonzero(shares >= level))
                ious.append(((union & box).sum() / (union | box).sum(), level))
            highest, level = max(ious)
            if highest < 0.4:
                assert np.array_equal(regions.mask(prompt), box)
                continue
            best = set(np.flatnonzero(shares >= level).tolist())
        expected = np.zeros(size, bool)
        for token in range(count):
            own = token_map == token
            if token in inner and token in outer:
                expected |= own & (inside <= outside)
            elif token in inner:
                expected |= own
            elif token in best and token not in outer:
                expected |= own & box
        assert np.array_equal(regions.mask(prompt), expected if expected.any() else box)
