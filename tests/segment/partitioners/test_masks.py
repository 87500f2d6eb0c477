"""From overlapping masks and label maps to partitions."""

from __future__ import annotations

import pickle
from heapq import heappop, heappush
from itertools import count as counter

import numpy as np
import pytest
from helpers.boundary_maps import random_map
from hypothesis import given, settings, strategies as st
from skimage.measure import label

from subtok_data.data.pool import ProcessSegmentPool, SegmentJob
from subtok_data.errors import ConfigError
from subtok_data.segment import (
    Budget,
    FillRules,
    LabelMapPartitioner,
    MaskPartitioner,
    RLEMasks,
    SegmentTask,
    segment_image,
)
from subtok_data.segment.masks.fill import fill_parts
from subtok_data.segment.masks.rle import encode_mask


def random_masks(rng: np.random.Generator, size: tuple[int, int], most: int = 6) -> np.ndarray:
    """Boxes, blobs, salt and pepper, empty and full masks: (M, H, W) bool."""
    masks = np.zeros((int(rng.integers(0, most + 1)), *size), bool)
    for mask in masks:
        kind = rng.integers(5)
        if kind < 2:
            y, x = rng.integers(0, size[0]), rng.integers(0, size[1])
            mask[y : y + rng.integers(1, size[0] + 1), x : x + rng.integers(1, size[1] + 1)] = True
        elif kind == 2:
            mask[...] = rng.random(size) < rng.random()
        elif kind == 3:
            y, x = np.indices(size)
            cy, cx, r = rng.random() * size[0], rng.random() * size[1], rng.random() * max(size)
            mask[...] = np.abs(np.hypot(y - cy, x - cx) - r) < 1 + 3 * rng.random()
        else:
            mask[...] = rng.random() < 0.5
    return masks


def by_hand(masks, scores, paint, rules, levels):
    """The definition, with plain loops over whole masks."""
    size = levels.shape
    late = [-i for i in range(len(masks))]
    small = [-int(mask.sum()) for mask in masks]
    measures = (small, scores) if paint == "area" else (scores, small)
    painted = np.full(size, -1)
    for _, _, _, i in sorted(zip(*measures, late, range(len(masks)), strict=True)):
        painted[masks[i]] = i
    for i in range(len(masks)):
        parts, found = label(painted == i, connectivity=1, return_num=True)
        for part in range(1, found + 1):
            if (parts == part).sum() < rules.min_area:
                painted[parts == part] = -1
    seeds = np.full(size, -1)
    labels = []
    parts = label(painted, background=-2, connectivity=1)
    for part in range(1, parts.max() + 1):
        here = parts == part
        value = painted[here][0]
        if value >= 0 or (rules.gap_area is not None and here.sum() >= rules.gap_area):
            seeds[here] = len(labels)
            labels.append(value)
    if not labels:
        return np.zeros(size, int), np.array([-1])
    if rules.fill == "nearest":
        levels = np.zeros(size, np.uint8)
    age = counter()
    queue = []
    for y, x in np.argwhere(seeds >= 0):
        heappush(queue, (-1, next(age), y, x))
    while queue:
        level, _, y, x = heappop(queue)
        for v, u in ((y - 1, x), (y, x - 1), (y, x + 1), (y + 1, x)):
            if 0 <= v < size[0] and 0 <= u < size[1] and seeds[v, u] < 0:
                seeds[v, u] = seeds[y, x]
                heappush(queue, (max(level, int(levels[v, u])), next(age), v, u))
    return seeds, np.array(labels)


RULES = st.builds(
    FillRules,
    min_area=st.integers(0, 9),
    gap_area=st.none() | st.integers(1, 40),
    fill=st.sampled_from(["nearest", "boundary"]),
)


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["area", "score"]), RULES)
def test_partition_of_masks_follows_its_definition(seed, paint, rules):
    rng = np.random.default_rng(seed)
    levels = random_map(rng, 24)
    masks = random_masks(rng, levels.shape)
    scores = rng.choice([0.25, 0.5, 0.75], len(masks)).astype(np.float32)
    packed = RLEMasks.from_masks(masks, scores, size=levels.shape)
    evidence = {**packed.to_evidence(), "boundary_map": levels}
    partition = MaskPartitioner(paint, rules)(evidence, levels.shape)
    expected, labels = by_hand(masks, scores, paint, rules, levels)
    assert np.array_equal(partition.token_map, expected)
    assert partition.num_tokens == len(labels)
    assert partition.token_fields["source"].tolist() == (labels < 0).tolist()
    score = [0 if i < 0 else scores[i] for i in labels]
    assert partition.token_fields["score"].tolist() == score
    assert (partition.cost_map is None) == (rules.fill == "nearest")
    # Complete, and each token 4-connected.
    parts, found = label(partition.token_map, background=-1, return_num=True, connectivity=1)
    assert found == partition.num_tokens == len(np.unique(partition.token_map))
    assert partition.token_map.min() == 0
    assert parts.min() == 1
    again = MaskPartitioner(paint, rules)(evidence, levels.shape)
    assert np.array_equal(again.token_map, partition.token_map)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_masks_survive_every_packing(seed):
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(1, 20)), int(rng.integers(1, 20)))
    masks = random_masks(rng, size)
    packed = RLEMasks.from_masks(iter(masks), size=size)
    assert packed.areas.tolist() == masks.sum((1, 2)).tolist()
    bits = RLEMasks.from_bits(np.packbits(masks, axis=-1), size)
    runs = RLEMasks.from_runs([encode_mask(mask).tolist() for mask in masks], size)
    for other in (packed, bits, runs, RLEMasks.from_evidence(packed.to_evidence())):
        assert len(other) == len(masks)
        assert all(np.array_equal(other.mask(i), masks[i]) for i in range(len(masks)))


def test_smaller_masks_lie_on_top_or_better_ones():
    large, small = np.ones((6, 6), bool), np.zeros((6, 6), bool)
    small[2:4, 2:4] = True
    evidence = RLEMasks.from_masks([small, large], [0.1, 0.9]).to_evidence()
    rules = FillRules(min_area=1)
    assert MaskPartitioner("area", rules)(evidence, (6, 6)).num_tokens == 2
    assert MaskPartitioner("score", rules)(evidence, (6, 6)).num_tokens == 1


def test_fields_of_masks_become_fields_of_tokens():
    left = np.zeros((8, 8), bool)
    left[:, :4] = True
    masks = RLEMasks.from_masks([left], [0.5], {"prompt": np.array([3])})
    partition = MaskPartitioner(rules=FillRules(0, 1))(masks.to_evidence(), (8, 8))
    assert partition.token_fields["prompt"].tolist() == [3, -1]
    assert partition.token_fields["source"].tolist() == [0, 1]


def test_worker_processes_give_the_same_tokens(no_leaks):
    rng = np.random.default_rng(0)
    task = SegmentTask(MaskPartitioner(), Budget(max_tokens=5))
    assert task.needs_image  # to merge by colour
    image = rng.integers(0, 255, (40, 60, 3), np.uint8)
    with ProcessSegmentPool(1) as pool:
        for masks in (np.zeros((0, 40, 60), bool), random_masks(rng, (40, 60), 9)):
            evidence = RLEMasks.from_masks(masks, size=(40, 60)).to_evidence()
            there = pool.submit(SegmentJob(task, evidence, (40, 60), image)).result()
            evidence["image"] = image
            here = segment_image(task, evidence, (40, 60))
            assert np.array_equal(there.token_map, here.token_map)
            assert there.num_tokens <= 5


def test_label_maps():
    label_map = np.full((6, 9), -1)
    label_map[:, :3], label_map[:, 6:] = 1, 1
    label_map[0, 0] = 0
    evidence = {
        "label_map": label_map,
        "label_class": np.array([4, 7]),
        "label_score": np.array([0.5, 0.9], np.float32),
    }
    partition = LabelMapPartitioner(FillRules(min_area=2, gap_area=None))(evidence, (6, 9))
    assert partition.num_tokens == 2  # the lone pixel is too small, the gap is shared out
    assert partition.token_fields["class"].tolist() == [7, 7]
    assert partition.token_fields["source"].tolist() == [0, 0]
    gaps = LabelMapPartitioner(FillRules(min_area=1, gap_area=18))(evidence, (6, 9))
    assert gaps.token_fields["class"].tolist() == [4, 7, -1, 7]
    assert gaps.token_fields["score"].tolist() == pytest.approx([0.5, 0.9, 0, 0.9])
    evidence["label_map"] = np.full((6, 9), -1)
    assert LabelMapPartitioner()(evidence, (6, 9)).token_fields["class"].tolist() == [-1]


def test_more_tokens_than_int16_holds():
    painted = np.arange(200 * 200, dtype=np.int32).reshape(200, 200)
    token_map, labels = fill_parts(painted, FillRules(min_area=0))
    assert token_map.dtype == np.int32
    assert np.array_equal(token_map, painted)
    assert len(labels) == 40_000


def test_partitioners_are_small_and_hashable():
    for partitioner in (MaskPartitioner(), LabelMapPartitioner()):
        assert pickle.loads(pickle.dumps(partitioner)) == partitioner
        assert hash(partitioner)
        assert not partitioner.has_cost_map


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FillRules(min_area=-1), "min_area=-1"),
        (lambda: FillRules(gap_area=0), "gap_area=0"),
        (lambda: FillRules(fill="far"), "fill='far'"),
        (lambda: MaskPartitioner(paint="size"), "paint='size'"),
        (lambda: MaskPartitioner(max_overlap=1.5), "max_overlap=1.5"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_bad_masks_are_refused():
    good = np.ones((4, 5), bool)
    with pytest.raises(ValueError, match="another size"):
        RLEMasks.from_runs([[0, 20], [3, 4]], (4, 5))
    with pytest.raises(ValueError, match="another size"):
        RLEMasks.from_runs([[-1, 21]], (4, 5))
    with pytest.raises(ValueError, match="divide 0 runs into masks"):
        RLEMasks.from_runs([[]], (4, 5))
    with pytest.raises(ValueError, match="NaN"):
        RLEMasks.from_masks([good], [np.nan])
    with pytest.raises(ValueError, match="one per mask"):
        RLEMasks.from_masks([good], [1, 2])
    with pytest.raises(ValueError, match="mask 1 of shape"):
        RLEMasks.from_masks([good, good[:2]])
    with pytest.raises(ValueError, match="give size"):
        RLEMasks.from_masks([])
    with pytest.raises(ValueError, match=r"expected \(M, 4, 1\) uint8"):
        RLEMasks.from_bits(np.zeros((1, 4, 5), np.uint8), (4, 5))
    evidence = RLEMasks.from_masks([good]).to_evidence()
    with pytest.raises(ValueError, match="masks of 4 × 5 pixels for an image of 5 × 4"):
        MaskPartitioner()(evidence, (5, 4))
    along = MaskPartitioner(rules=FillRules(fill="boundary"))
    with pytest.raises(ValueError, match="boundary_map.*missing"):
        along(evidence, (4, 5))
    with pytest.raises(ValueError, match="boundary_map of shape"):
        along({**evidence, "boundary_map": np.zeros((4, 4), np.uint8)}, (4, 5))
    labels = LabelMapPartitioner()
    with pytest.raises(ValueError, match="label_map of shape"):
        labels({"label_map": np.zeros((2, 2), int)}, (2, 3))
    with pytest.raises(ValueError, match=r"labels -2…-2"):
        labels({"label_map": np.full((2, 2), -2)}, (2, 2))
    with pytest.raises(ValueError, match=r"labels 3…3.*0 to 1"):
        labels({"label_map": np.full((2, 2), 3), "label_class": np.zeros(2, int)}, (2, 2))
