"""Prompted regions as tokens: matching, painting, protection and the segmenter."""

from __future__ import annotations

import pickle
from dataclasses import replace
from fractions import Fraction
from heapq import heappop, heappush
from itertools import combinations
from itertools import count as counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import label

from subtok_data.errors import ConfigError, PromptError
from subtok_data.segment.budget import Budget, apply_budget
from subtok_data.segment.grid import GridPartitioner
from subtok_data.segment.overlaps import match_regions
from subtok_data.segment.packed import PackedMasks, encode_mask
from subtok_data.segment.partition import Partition
from subtok_data.segment.parts import LabelMapPartitioner, PartRules
from subtok_data.segment.pipeline import segment_image
from subtok_data.segment.prompt_regions import best_union, prompt_regions
from subtok_data.segment.prompted import PromptedPartitioner
from subtok_data.segment.prompts import Prompts
from subtok_data.segment.watershed import WatershedPartitioner

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

    near, far = [0.1, 0, 5.6, 3], [3, 0, 5, 3]
    assert columns(boxes=[near, far]) == ["########....", "...##......."]
    assert columns(boxes=[far], min_iou=0.2) == ["########...."]
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
    assert columns(boxes=[near], points=[[5, 1]], labels=[0]) == ["####........"]
    assert columns(boxes=[near], points=[[10, 1]]) == ["############"]
    assert columns(boxes=[near], points=two, labels=[[0, 0]]) == ["######......"]
    # The mask counts where there is one.
    mask = np.zeros((3, 12), bool)
    mask[:, 7] = True
    both = columns(boxes=[near, near], masks=[mask, ~mask & False])
    assert both == [".......#....", "########...."]


def paint_by_hand(found, regions, rules, automatic, levels):
    """The definition, with plain loops over whole masks."""
    count, size = len(regions), found.shape
    painted = found + count if automatic else np.full(size, -1)
    whole = {value: int((painted == value).sum()) for value in np.unique(painted)}
    for prompt in sorted(range(count), key=lambda i: (-regions[i].sum(), -i)):
        painted[regions[prompt]] = prompt
    for value in np.unique(painted[painted >= 0]):
        parts = label(painted == value, connectivity=1)
        areas = np.bincount(parts.ravel())[1:]
        for part, area in enumerate(areas):
            spared = part == np.argmax(areas) if value < count else area == whole[value]
            if area < rules.min_area and not spared:
                painted[parts == part + 1] = -1
    seeds, labels = np.full(size, -1), []
    parts = label(painted, background=-2, connectivity=1)
    for part in range(1, parts.max() + 1):
        here = parts == part
        value = int(painted[here][0])
        gap = None if automatic else rules.gap_area
        if value >= 0 or (gap is not None and here.sum() >= gap):
            seeds[here] = len(labels)
            labels.append(value)
    return flood_by_hand(seeds, levels), labels


def flood_by_hand(seeds, levels):
    age, queue = counter(), []
    for y, x in np.argwhere(seeds >= 0):
        heappush(queue, (-1, next(age), y, x))
    while queue:
        level, _, y, x = heappop(queue)
        for v, u in ((y - 1, x), (y, x - 1), (y, x + 1), (y + 1, x)):
            if 0 <= v < seeds.shape[0] and 0 <= u < seeds.shape[1] and seeds[v, u] < 0:
                seeds[v, u] = seeds[y, x]
                heappush(queue, (max(level, int(levels[v, u])), next(age), v, u))
    return seeds


PROMPT_RULES = st.builds(
    PartRules,
    min_area=st.integers(0, 12),
    gap_area=st.none() | st.integers(1, 30),
    fill=st.sampled_from(["nearest", "boundary"]),
)


class Given:
    """Takes the token map from the evidence; has a cost map."""

    has_cost_map = True

    def __call__(self, evidence, size):
        token_map = evidence["found"]
        fields = {"class": np.arange(token_map.max() + 1) + 5}
        return Partition(token_map, int(token_map.max()) + 1, evidence["levels"], fields)


def connected_tokens(rng, size):
    token_map, _ = random_tokens(rng, size)
    parts = label(token_map, background=-1, connectivity=1) - 1
    return parts.astype(np.int16)


@settings(deadline=None, max_examples=300)
@given(SEEDS, PROMPT_RULES, st.booleans())
def test_regions_are_painted_over_tokens(seed, rules, automatic):
    rng = np.random.default_rng(seed)
    size = random_size(rng, 24)
    found = connected_tokens(rng, size)
    levels = rng.integers(0, 256, size, np.uint8)
    masks = [mask for mask in random_regions(rng, size) if mask.any()]
    partitioner = PromptedPartitioner(Given(), rules, automatic)
    evidence = {"found": found, "levels": levels}
    if masks:
        evidence |= Prompts.of(size, masks=masks).to_evidence()
    partition = partitioner(evidence, size)
    token_map, fields = partition.token_map, partition.token_fields
    if not masks:
        assert np.array_equal(token_map, found)
        assert fields["prompt"].max() == -1
        assert fields["source"].max() == 0
        return
    if rules.fill == "nearest":
        levels = np.zeros(size, np.uint8)
    expected, labels = paint_by_hand(found.astype(int), masks, rules, automatic, levels)
    assert np.array_equal(token_map, expected)
    count = len(masks)
    assert fields["prompt"].tolist() == [v if 0 <= v < count else -1 for v in labels]
    assert fields["source"].tolist() == [1 if v < 0 else 2 * (v < count) for v in labels]
    assert fields["class"].tolist() == [v - count + 5 if v >= count else -1 for v in labels]
    assert partition.protected.tolist() == [0 <= v < count for v in labels]
    # Complete, and each token 4-connected.
    parts, tokens = label(token_map, background=-1, return_num=True, connectivity=1)
    assert tokens == partition.num_tokens == len(np.unique(token_map))
    assert parts.min() == 1
    assert np.array_equal(partitioner(evidence, size).token_map, token_map)


@settings(deadline=None, max_examples=100)
@given(SEEDS, st.integers(0, 12))
def test_regions_apart_from_one_another_keep_their_pixels(seed, min_area):
    rng = np.random.default_rng(seed)
    size = random_size(rng, 24)
    left = np.ones(size, bool)
    masks = []
    for mask in random_regions(rng, size):
        if (mask & left).any():
            masks.append(mask & left)
            left &= ~mask
    if not masks:
        return
    evidence = {"found": connected_tokens(rng, size), "levels": np.zeros(size, np.uint8)}
    evidence |= Prompts.of(size, masks=masks).to_evidence()
    partition = PromptedPartitioner(Given(), PartRules(min_area))(evidence, size)
    matched = match_regions(
        partition.token_map, partition.num_tokens, PackedMasks.from_masks(masks)
    )
    for prompt, mask in enumerate(masks):
        own = np.isin(
            partition.token_map, np.flatnonzero(partition.token_fields["prompt"] == prompt)
        )
        parts = label(mask, connectivity=1)
        areas = np.bincount(parts.ravel())[1:]
        stays = (areas >= min_area) | (np.arange(len(areas)) == np.argmax(areas))
        assert own[np.isin(parts, np.flatnonzero(stays) + 1)].all()
        if min_area <= 1:
            assert np.array_equal(own, mask)
            assert partition.token_fields["prompt"][matched[prompt]] == prompt


@settings(deadline=None, max_examples=150)
@given(SEEDS, st.integers(1, 40), st.integers(0, 12))
def test_budgets_spare_prompted_tokens(seed, count, min_area):
    rng = np.random.default_rng(seed)
    size = random_size(rng, 24)
    masks = [mask for mask in random_regions(rng, size) if mask.any()]
    levels = rng.integers(0, 256, size, np.uint8)
    evidence = {"found": connected_tokens(rng, size), "levels": levels}
    if masks:
        evidence |= Prompts.of(size, masks=masks).to_evidence()
    partition = PromptedPartitioner(Given(), PartRules(4))(evidence, size)
    asked = partition.token_fields["source"] == 2
    after = apply_budget(partition, Budget(num_tokens=count, min_area=min_area))
    left = after.token_fields["source"] == 2
    if min_area <= 1:
        assert after.num_tokens == min(count, partition.num_tokens)
    assert left.sum() >= min(asked.sum(), count)
    assert (after.token_fields["prompt"] >= 0).tolist() == left.tolist()
    if asked.sum() <= count:
        # No two of them have merged: each is whole in a token of its own.
        rows = np.stack([partition.token_map.ravel(), after.token_map.ravel()])
        first, second = np.unique(rows[:, asked[rows[0]]], axis=1)
        assert len(np.unique(second)) == len(second) == asked.sum()
        before = partition.token_fields["prompt"][first]
        assert before.tolist() == after.token_fields["prompt"][second].tolist()


def test_exact_counts_where_regions_cover_most_tokens():
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (60, 80), np.uint8)
    prompts = Prompts.of((60, 80), boxes=[[0, 0, 80, 50], [5, 5, 20, 20]])
    evidence = {"boundary_map": levels, **prompts.to_evidence()}
    partitioner = PromptedPartitioner(WatershedPartitioner())
    for count in (1, 2, 9, 60):
        cut = segment_image(partitioner, evidence, (60, 80), Budget(num_tokens=count))
        assert cut.num_tokens == count
        assert cut.shortfall == 0
        assert cut.token_fields["prompt"][cut.prompt_tokens].tolist() == (
            [0, 1] if count > 1 else [0, 0]
        )
    coarse = partitioner.base.for_num_tokens(60)
    plain = replace(partitioner, base=coarse)(evidence, (60, 80))
    assert plain.num_tokens < 60  # so the rest had to be cut finer


def test_regions_on_top_of_one_another():
    size = (12, 12)
    box = [2, 2, 10, 10]
    inner = [5, 5, 7, 7]
    prompts = Prompts.of(size, boxes=[[0, 0, 12, 12], box, inner, box])
    evidence = {"found": np.zeros(size, np.int16), "levels": np.zeros(size, np.uint8)}
    partitioner = PromptedPartitioner(Given(), min_iou=0.9)
    cut = segment_image(partitioner, {**evidence, **prompts.to_evidence()}, size)
    # Smaller ones lie on top; the last coincides with the second, and shares its token.
    assert cut.token_fields["prompt"].tolist() == [0, 1, 2]
    assert cut.geometry.areas.tolist() == [80, 60, 4]
    assert cut.prompt_tokens.tolist() == [0, 1, 2, 1]


def test_scores_fields_and_other_sizes():
    size = (4, 6)
    mask = np.zeros(size, bool)
    mask[:, :2] = True
    masks = PackedMasks.from_masks([mask, ~mask & False], [0.75, 0.0])
    prompts = Prompts.of(size, boxes=[[0, 0, 2, 4], [4, 0, 6, 4]], masks=masks)
    base = LabelMapPartitioner(PartRules(0, 1))
    evidence = {
        "label_map": np.array([[0, 0, 0, -1, -1, -1]] * 4),
        "label_class": np.array([9]),
        "label_score": np.array([0.5], np.float32),
    }
    partition = PromptedPartitioner(base, PartRules(1))(evidence | prompts.to_evidence(), size)
    fields = {name: values.tolist() for name, values in partition.token_fields.items()}
    assert fields == {
        "source": [2, 0, 2],
        "prompt": [0, -1, 1],
        "score": [0.75, 0.5, 0],
        "class": [-1, 9, -1],
    }
    turned = {**evidence, "label_map": evidence["label_map"].T, **prompts.to_evidence()}
    with pytest.raises(PromptError, match="4 × 6 pixels, the picture has 6 × 4"):
        PromptedPartitioner(base)(turned, (6, 4))


def test_options_of_the_partitioner():
    partitioner = PromptedPartitioner(WatershedPartitioner(0.2), PartRules(fill="boundary"))
    assert pickle.loads(pickle.dumps(partitioner)) == partitioner
    assert hash(partitioner)
    assert partitioner.has_cost_map
    assert partitioner.for_num_tokens(7).base == WatershedPartitioner(num_tokens=7)
    assert not PromptedPartitioner(GridPartitioner(patch=8)).has_cost_map
    with pytest.raises(ConfigError, match="min_iou=2"):
        PromptedPartitioner(GridPartitioner(patch=8), min_iou=2)
    with pytest.raises(ConfigError, match="GridPartitioner has no cost map"):
        PromptedPartitioner(GridPartitioner(patch=8), PartRules(fill="boundary"))
