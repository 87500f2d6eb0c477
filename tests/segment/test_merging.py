"""Borders of tokens and merging: against their definitions, nested cuts, fields, time."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from helpers.boundary_maps import random_map, smooth_noise
from helpers.merges import merges_by_hand
from helpers.token_maps import token_maps
from hypothesis import given, settings
from skimage.measure import label

from subtok_data.errors import ConfigError
from subtok_data.segment import Partition, TokenMap, region_adjacency
from subtok_data.segment.kernels.merging import (
    AREA,
    BALANCED,
    BOUNDARY,
    SHARE,
    Cost,
    merge_neighbours,
)
from subtok_data.segment.merging import merge_hierarchy
from subtok_data.segment.watershed.flood import flood_from
from subtok_data.segment.watershed.minima import minima_seeds


@settings(deadline=None)
@given(token_maps(lowest=-1))
def test_adjacency_follows_its_definition(token_map: TokenMap) -> None:
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, token_map.shape, np.uint8)
    cracks: dict[tuple[int, int], list[int]] = {}
    for axis in (0, 1):
        length = token_map.shape[axis]
        first, second = np.arange(length - 1), np.arange(1, length)
        a, b = token_map.take(first, axis), token_map.take(second, axis)
        value = np.maximum(levels.take(first, axis), levels.take(second, axis))
        for here, there, v in zip(a.flat, b.flat, value.flat, strict=True):
            if here != there and min(here, there) >= 0:
                pair = (int(min(here, there)), int(max(here, there)))
                cracks.setdefault(pair, []).append(int(v))
    borders = region_adjacency(token_map, levels)
    assert [tuple(pair) for pair in borders.pairs.tolist()] == sorted(cracks)
    values = [cracks[pair] for pair in sorted(cracks)]
    assert borders.lengths.tolist() == [len(v) for v in values]
    assert borders.sums.tolist() == [sum(v) for v in values]
    assert borders.lowest.tolist() == [min(v) for v in values]
    np.testing.assert_allclose(borders.mean, [np.mean(v) for v in values])


def test_adjacency_of_very_many_tokens() -> None:
    token_map = np.arange(200 * 300, dtype=np.int32).reshape(200, 300)
    borders = region_adjacency(token_map)
    assert len(borders.pairs) == 199 * 300 + 200 * 299
    assert (borders.lengths == 1).all()
    with pytest.raises(ValueError, match=r"cost_map is \(1, 1\), token_map \(200, 300\)"):
        region_adjacency(token_map, np.zeros((1, 1), np.uint8))


def test_adjacency_of_scattered_tokens_that_touch_all_others() -> None:
    """More pairs than connected tokens could have."""
    token_map = np.random.default_rng(0).integers(0, 80, (150, 130)).astype(np.int16)
    borders = region_adjacency(token_map)
    assert len(borders.pairs) == 80 * 79 // 2
    rows, columns = token_map[1:] != token_map[:-1], token_map[:, 1:] != token_map[:, :-1]
    assert borders.lengths.sum() == rows.sum() + columns.sum()


def cut_up(rng: np.random.Generator, side: int = 24) -> Partition:
    levels = random_map(rng, side)
    token_map, count = flood_from(levels, minima_seeds(levels, 10_000))
    return Partition(token_map, count, levels)


@pytest.mark.parametrize("rule", [BOUNDARY, BALANCED, AREA, SHARE])
@pytest.mark.parametrize("min_area", [0, 9])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("limit", [-1.0, 0.0, 0.6])
def test_merges_follow_their_definition(
    rule: int, min_area: int, share: float, limit: float
) -> None:
    rng = np.random.default_rng(rule + min_area)
    cost = Cost(rule, 1.0, 1.0, 1.0) if limit < 0 else Cost(rule, 2.5, 300.0, 20.0)
    for _ in range(30):
        partition = cut_up(rng)
        borders = region_adjacency(partition.token_map, partition.cost_map)
        areas = np.bincount(partition.token_map.ravel()).astype(np.int64)
        protected = rng.random(len(areas)) < share
        stop = int(rng.integers(1, 6 if limit < 0 else 20))
        merges, costs, forced = merge_neighbours(
            borders.pairs,
            borders.lengths,
            borders.sums,
            areas,
            protected,
            cost,
            min_area,
            stop,
            limit,
        )
        by_hand, costs_by_hand, forced_by_hand = merges_by_hand(
            borders, areas, protected, cost, min_area, stop, limit
        )
        assert merges.tolist() == [list(merge) for merge in by_hand]
        np.testing.assert_allclose(costs, costs_by_hand)
        assert (np.diff(costs[np.isfinite(costs)]) >= 0).all()
        assert forced == forced_by_hand


def test_every_cut_has_its_number_and_is_nested() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        partition = cut_up(rng)
        hierarchy = merge_hierarchy(partition)
        finer = partition.token_map
        for count in range(partition.num_tokens, 0, -1):
            cut = hierarchy.cut(count)
            assert cut.num_tokens == count
            assert len(np.unique(cut.token_map)) == count
            assert label(cut.token_map, background=-1, connectivity=1).max() == count
            pairs = np.unique(np.stack([finer.ravel(), cut.token_map.ravel()]), axis=1)
            assert len(np.unique(pairs[0])) == pairs.shape[1]
            finer = cut.token_map


def test_protected_tokens_give_the_merged_token_its_fields() -> None:
    token_map = np.array([[0, 0, 0, 1, 2, 2]], np.int16)
    fields = {"prompt": np.array([-1, 4, -1]), "highest": np.array([7, 1, 2])}
    protected = np.array([False, True, False])
    partition = Partition(token_map, 3, None, fields, {"highest": "max"}, protected)
    cut = merge_hierarchy(partition).cut(1)
    assert cut.token_fields["prompt"].tolist() == [4]
    assert cut.token_fields["highest"].tolist() == [7]
    assert cut.protected is not None
    assert cut.protected.tolist() == [True]
    with pytest.raises(ValueError, match=r"expected \(3,\) bool"):
        Partition(token_map, 3, protected=np.zeros(2, bool))


def test_stopping_early_changes_nothing() -> None:
    partition = cut_up(np.random.default_rng(4), 60)
    whole = merge_hierarchy(partition)
    part = merge_hierarchy(partition, num_tokens=5)
    assert np.array_equal(part.merges, whole.merges[: len(part.merges)])
    assert np.array_equal(part.cut(5).token_map, whole.cut(5).token_map)


def star(leaves: int) -> tuple[np.ndarray, ...]:
    """A token that touches all others, which form a ring around it."""
    rng = np.random.default_rng(5)
    ring = np.arange(1, leaves + 1)
    spokes = np.stack([np.zeros(leaves, np.int64), ring], axis=1)
    rim = np.sort(np.stack([ring, np.roll(ring, 1)], axis=1), axis=1)
    pairs = np.concatenate([spokes, rim]).astype(np.int32)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    lengths = rng.integers(1, 9, len(pairs))
    sums = lengths * rng.integers(0, 256, len(pairs))
    return pairs, lengths, sums, rng.integers(1, 99, leaves + 1)


@pytest.mark.parametrize("rule", [BOUNDARY, BALANCED, AREA])
@pytest.mark.parametrize("flat", [False, True])
def test_a_hub_is_not_quadratic(rule: int, flat: bool) -> None:
    seconds: list[float] = []
    for leaves in (10, 10_000, 80_000):
        pairs, lengths, sums, areas = star(leaves)
        if flat:
            sums, lengths, areas = sums * 0, lengths * 0 + 1, areas * 0 + 1
        started = time.process_time()  # other processes do not count
        protected = np.zeros(len(areas), bool)
        cost = Cost(rule, 1.0, 1.0, 1.0)
        merges, _, _ = merge_neighbours(pairs, lengths, sums, areas, protected, cost, 0, 1, -1.0)
        seconds.append(time.process_time() - started)
        assert len(merges) == leaves
    # Eight times the tokens: quadratic would be 64 times the time.
    assert seconds[2] < 25 * max(seconds[1], 0.004)


def test_costs_without_a_boundary_map() -> None:
    token_map = np.repeat(np.arange(3, dtype=np.int16), 4)[None].repeat(4, axis=0)
    image = np.zeros((4, 12, 3), np.uint8)
    image[:, 4:8] = 200
    image[:, 8:] = 180
    by_colour = merge_hierarchy(Partition(token_map, 3), image=image).cut(2)
    assert np.array_equal(np.unique(by_colour.token_map[:, 4:]), [1])
    assert by_colour.num_tokens == 2
    # By area: the smallest token goes to the neighbour with the longest border.
    token_map = np.array([[0, 0, 0, 1], [0, 2, 1, 1], [1, 1, 1, 1]], np.int16)
    assert merge_hierarchy(Partition(token_map, 3)).cut(2).token_map.tolist() == [
        [0, 0, 0, 1],
        [0, 0, 1, 1],
        [1, 1, 1, 1],
    ]
    with pytest.raises(ValueError, match=r"image of shape \(4, 4, 3\)"):
        merge_hierarchy(Partition(token_map, 3), image=np.zeros((4, 4, 3), np.uint8))


@pytest.mark.parametrize(
    ("rule", "values", "merged"),
    [
        ("largest", [1, 7, 5], [7, 5]),
        ("max", [1, 7, 5], [7, 5]),
        ("min", [1, 7, 5], [1, 5]),
        ("mean", [1.0, 7.0, 5.0], [5.5, 5.0]),
        ("mean", [1, 7, 5], [5.5, 5.0]),
        ("max", [[1, 9], [7, 8], [5, 5]], [[7, 9], [5, 5]]),
        ("largest", [[1, 9], [7, 8], [5, 5]], [[7, 8], [5, 5]]),
        ("mean", [[1.0, 9.0], [7.0, 1.0], [5.0, 5.0]], [[5.5, 3.0], [5.0, 5.0]]),
        ("max", [False, True, False], [True, False]),
    ],
)
def test_fields_follow_their_rule(rule: Any, values: list[Any], merged: list[Any]) -> None:
    token_map = np.array([[0, 1, 1, 1, 2, 2]], np.int16)
    levels = np.array([[0, 0, 0, 0, 0, 255]], np.uint8)
    levels[0, 4] = 200
    partition = Partition(token_map, 3, levels, {"a": np.asarray(values)}, {"a": rule})
    cut = merge_hierarchy(partition).cut(2)
    assert cut.token_map.tolist() == [[0, 0, 0, 0, 1, 1]]
    assert cut.token_fields["a"].tolist() == merged
    assert cut.field_rules == {"a": rule}


def test_equal_tokens_keep_the_field_of_the_first() -> None:
    partition = Partition(np.array([[0, 1]], np.int16), 2, None, {"a": np.array([4, 9])})
    assert merge_hierarchy(partition).cut(1).token_fields["a"].tolist() == [4]


def test_large_maps_merge_in_time() -> None:
    levels = smooth_noise(np.random.default_rng(6), (512, 512), 1.2)
    token_map, count = flood_from(levels, minima_seeds(levels, 100_000))
    assert count > 9_000
    assert merge_hierarchy(Partition(token_map, count, levels)).cut(60).num_tokens == 60


@pytest.mark.parametrize("side", [40, 200, 1000])
def test_strength_of_a_border_depends_on_shares_and_on_the_number_of_tokens(side: int) -> None:
    def first_cost(columns: list[float], merge: Any = "balanced") -> float:
        """Cost of the first merge of tokens that end at these shares of the width."""
        ends = np.round(side * np.array(columns)).astype(int)
        token_map = np.searchsorted(ends, np.arange(side), side="right").astype(np.int16)
        levels = np.full((side, side), 102, np.uint8)  # a probability of 0.4
        partition = Partition(token_map[None].repeat(side, axis=0), len(columns), levels)
        return float(merge_hierarchy(partition, merge=merge, strength=1).costs[0])

    assert first_cost([0.5, 1], "boundary") == pytest.approx(0.4)
    typical = 0.4 / np.log1p(655.36)
    assert first_cost([0.5, 1]) == pytest.approx(typical * np.log1p(65536 / 4) * np.sqrt(64 / 2))
    assert first_cost([0.1, 1]) == pytest.approx(typical * np.log1p(5898.24) * np.sqrt(64 / 2))
    quarters = typical * np.log1p(65536 / 8) * np.sqrt(64 / 4)
    assert first_cost([0.25, 0.5, 0.75, 1]) == pytest.approx(quarters)


def test_strength_needs_a_cost_map() -> None:
    image = np.zeros((1, 2, 3), np.uint8)
    partition = Partition(np.array([[0, 1]], np.int16), 2)
    with pytest.raises(ConfigError, match=r"strength=0\.3: the partition has no boundary map"):
        merge_hierarchy(partition, strength=0.3, image=image)


def test_strength_merges_no_protected_token() -> None:
    partition = cut_up(np.random.default_rng(8), 60)
    protected = np.random.default_rng(9).random(partition.num_tokens) < 0.3
    shielded = Partition(
        partition.token_map, partition.num_tokens, partition.cost_map, {}, {}, protected
    )
    cut = merge_hierarchy(shielded, strength=1.0, num_tokens=partition.num_tokens).cut(
        partition.num_tokens, 1.0
    )
    assert cut.protected is not None
    assert cut.num_tokens < partition.num_tokens
    for token in np.flatnonzero(protected):
        (now,) = np.unique(cut.token_map[partition.token_map == token])
        assert np.array_equal(cut.token_map == now, partition.token_map == token)
    # A limit goes beyond.
    few = merge_hierarchy(shielded, strength=1.0, num_tokens=3).cut(3, 1.0)
    assert few.num_tokens == 3


def test_unknown_cost_is_refused() -> None:
    with pytest.raises(ConfigError, match="merge='colour': expected one of"):
        merge_hierarchy(Partition(np.zeros((1, 1), np.int16), 1), merge="colour")  # type: ignore[arg-type]
