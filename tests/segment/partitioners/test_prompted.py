"""Prompted regions as tokens: painting, protection, exact counts."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from helpers.boundary_maps import flood_by_hand
from helpers.random_regions import random_regions, random_size, random_tokens
from hypothesis import given, settings, strategies as st
from skimage.measure import label

from subtok_data.errors import ConfigError, PromptError
from subtok_data.segment import (
    Budget,
    FillRules,
    GridPartitioner,
    LabelMapPartitioner,
    Partition,
    PromptedPartitioner,
    Prompts,
    RLEMasks,
    SegmentTask,
    WatershedPartitioner,
    add_prompts,
    apply_budget,
    match_regions,
    segment_image,
)
from subtok_data.segment.partitioners import prompted as prompted_file
from subtok_data.segment.prompts import prompts as prompts_file, regions as regions_file

SEEDS = st.integers(0, 2**32 - 1)


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
    return flood_by_hand(levels, seeds, imposed=True), labels


PROMPT_RULES = st.builds(
    FillRules,
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
    partition = PromptedPartitioner(Given(), FillRules(min_area))(evidence, size)
    matched = match_regions(partition.token_map, partition.num_tokens, RLEMasks.from_masks(masks))
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
    partition = PromptedPartitioner(Given(), FillRules(4))(evidence, size)
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
        task = SegmentTask(partitioner, Budget(num_tokens=count))
        cut = segment_image(task, evidence, (60, 80))
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
    cut = segment_image(SegmentTask(partitioner), {**evidence, **prompts.to_evidence()}, size)
    # Smaller ones lie on top; the last coincides with the second, and shares its token.
    assert cut.token_fields["prompt"].tolist() == [0, 1, 2]
    assert cut.geometry.areas.tolist() == [80, 60, 4]
    assert cut.prompt_tokens.tolist() == [0, 1, 2, 1]


def test_scores_fields_and_other_sizes():
    size = (4, 6)
    mask = np.zeros(size, bool)
    mask[:, :2] = True
    masks = RLEMasks.from_masks([mask, ~mask & False], [0.75, 0.0])
    prompts = Prompts.of(size, boxes=[[0, 0, 2, 4], [4, 0, 6, 4]], masks=masks)
    base = LabelMapPartitioner(FillRules(0, 1))
    evidence = {
        "label_map": np.array([[0, 0, 0, -1, -1, -1]] * 4),
        "label_class": np.array([9]),
        "label_score": np.array([0.5], np.float32),
    }
    partition = PromptedPartitioner(base, FillRules(1))(evidence | prompts.to_evidence(), size)
    fields = {name: values.tolist() for name, values in partition.token_fields.items()}
    assert fields == {
        "source": [2, 0, 1, 2],
        "prompt": [0, -1, -1, 1],
        "score": [0.75, 0.5, 0, 0],
        "class": [-1, 9, -1, -1],
    }
    turned = {**evidence, "label_map": evidence["label_map"].T, **prompts.to_evidence()}
    with pytest.raises(PromptError, match="6 × 4 pixels, its prompts are for 4 × 6: .* resize"):
        PromptedPartitioner(base)(turned, (6, 4))


def test_options_of_the_partitioner():
    partitioner = PromptedPartitioner(WatershedPartitioner(), FillRules(fill="boundary"))
    assert pickle.loads(pickle.dumps(partitioner)) == partitioner
    assert hash(partitioner)
    assert partitioner.has_cost_map
    assert partitioner.for_num_tokens(7).base == WatershedPartitioner(num_tokens=7)
    assert not PromptedPartitioner(GridPartitioner(patch=8)).has_cost_map
    with pytest.raises(ConfigError, match="min_iou=2"):
        PromptedPartitioner(GridPartitioner(patch=8), min_iou=2)
    with pytest.raises(ConfigError, match="GridPartitioner has no cost map"):
        PromptedPartitioner(GridPartitioner(patch=8), FillRules(fill="boundary"))
    with pytest.raises(ConfigError, match="threshold=0.2 and num_tokens=7"):
        PromptedPartitioner(WatershedPartitioner(0.2)).for_num_tokens(7)


def test_prompts_are_parsed_and_measured_once(monkeypatch):
    """On the way of one image: one parse, one computation of regions, one of base tokens."""
    size = (40, 60)
    prompts = Prompts.of(size, boxes=[[0, 0, 30, 20], [10, 10, 50, 40]])
    evidence = add_prompts({}, prompts)
    assert add_prompts(evidence, Prompts.of(size, boxes=[[0, 0, 1, 1]])) is evidence
    calls = Counter()

    def counted(function):
        def call(*args):
            calls[function.__name__] += 1
            return function(*args)

        return call

    parse = classmethod(counted(Prompts.from_evidence.__func__))
    monkeypatch.setattr(Prompts, "from_evidence", parse)
    monkeypatch.setattr(prompts_file, "box_runs", counted(prompts_file.box_runs))
    for file in (prompted_file, regions_file):
        monkeypatch.setattr(file, "measure", counted(file.measure))
    task = SegmentTask(PromptedPartitioner(GridPartitioner(patch=10)))
    assert segment_image(task, evidence, size).num_tokens > 2
    assert calls == {"from_evidence": 1, "box_runs": len(prompts), "measure": 1}
