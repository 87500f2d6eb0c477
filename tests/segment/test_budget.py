"""Exact counts, limits and least areas of any partition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.boundary_maps import smooth_noise

from subtok_data.errors import ConfigError
from subtok_data.segment import (
    Budget,
    Partition,
    WatershedPartitioner,
    apply_budget,
    arrange,
    measure,
)

LEVELS = smooth_noise(np.random.default_rng(0), (90, 110), 2)
EVIDENCE = {"boundary_map": LEVELS}


def cut(threshold: float = 0.45) -> Partition:
    return WatershedPartitioner(threshold)(EVIDENCE, LEVELS.shape)


def test_limits_are_kept() -> None:
    free = cut()
    assert free.num_tokens > 30
    assert apply_budget(free, Budget()) is free
    assert apply_budget(free, Budget(max_tokens=1000, min_area=1)) is free
    for limit in (1, 2, 20, free.num_tokens - 1, free.num_tokens):
        for budget in (Budget(max_tokens=limit), Budget(num_tokens=limit)):
            merged = apply_budget(free, budget)
            assert merged.num_tokens == limit
            assert (merged.token_map >= 0).all()
            assert measure(merged.token_map, limit).areas.sum() == LEVELS.size


def test_min_area_comes_first() -> None:
    merged = apply_budget(cut(), Budget(min_area=150))
    assert measure(merged.token_map, merged.num_tokens).areas.min() >= 150
    both = apply_budget(cut(), Budget(min_area=150, max_tokens=5))
    assert both.num_tokens == 5
    one = apply_budget(cut(), Budget(min_area=10**9))
    assert one.num_tokens == 1


def test_strength_then_min_area_then_the_limit() -> None:
    free = WatershedPartitioner().for_strength(0.5)(EVIDENCE, LEVELS.shape)
    merged = apply_budget(free, Budget(strength=0.5))
    assert 5 < merged.num_tokens < free.num_tokens
    large = apply_budget(free, Budget(strength=0.5, min_area=150))
    assert measure(large.token_map, large.num_tokens).areas.min() >= 150
    assert apply_budget(free, Budget(strength=0.5, max_tokens=5)).num_tokens == 5
    dropped = apply_budget(free, Budget(strength=0.5, max_tokens=5, overflow="drop"))
    assert dropped.num_tokens == 5
    kept = merged.token_map[dropped.token_map >= 0]
    assert len(np.unique(kept)) == 5


def test_drop_keeps_the_largest() -> None:
    free = cut()
    free = Partition(free.token_map, free.num_tokens, LEVELS, {"n": np.arange(free.num_tokens)})
    dropped = apply_budget(free, Budget(max_tokens=7, overflow="drop"))
    assert dropped.num_tokens == 7
    areas = measure(free.token_map, free.num_tokens).areas
    kept = dropped.token_fields["n"]
    assert sorted(areas[kept]) == sorted(areas)[-7:]
    for token, old in enumerate(kept):
        assert np.array_equal(dropped.token_map == token, free.token_map == old)
    assert np.array_equal(dropped.token_map < 0, ~np.isin(free.token_map, kept))
    segmented = arrange(dropped, shape_size=3)
    assert (np.diff(segmented.geometry.areas) <= 0).all()
    assert (segmented.token_map == -1).sum() == (dropped.token_map == -1).sum()


def test_islands_cannot_merge() -> None:
    islands = Partition(np.array([[0, 1, -1, 2, -1, 3]], np.int16), 4)
    assert apply_budget(islands, Budget(max_tokens=3)).num_tokens == 3
    with pytest.raises(ValueError, match="3 groups of tokens do not touch .* merged to 2"):
        apply_budget(islands, Budget(max_tokens=2))


def test_a_cap_lowers_the_count_that_is_given() -> None:
    for budget, capped in (
        (Budget(), Budget(max_tokens=9)),
        (Budget(max_tokens=20), Budget(max_tokens=9)),
        (Budget(num_tokens=20, min_area=3), Budget(num_tokens=9, min_area=3)),
        (Budget(num_tokens=20, max_tokens=30), Budget(num_tokens=9, max_tokens=30)),
        (Budget(max_tokens=4), Budget(max_tokens=4)),
        (Budget(num_tokens=9), Budget(num_tokens=9)),
        (Budget(strength=0.3), Budget(strength=0.3, max_tokens=9)),
    ):
        assert budget.capped(9) == capped


def test_only_budgets_that_merge_need_colours() -> None:
    assert not Budget().merges
    assert not Budget(max_tokens=3, overflow="drop").merges
    assert not Budget(min_area=1).merges
    for budget in (
        Budget(num_tokens=3),
        Budget(max_tokens=3),
        Budget(min_area=2),
        Budget(strength=0),
    ):
        assert budget.merges
    assert Budget(max_tokens=3, min_area=2, overflow="drop").merges


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"strength": 1.1}, r"strength=1\.1: expected a number from 0 to 1"),
        ({"strength": "0.3"}, r"strength='0\.3'"),
        ({"strength": 0.3, "num_tokens": 5}, r"num_tokens=5 and strength=0\.3: both"),
        ({"num_tokens": True}, "num_tokens=True"),
        ({"min_area": -2}, "min_area=-2"),
        ({"min_area": 2.5}, "min_area=2.5"),
        ({"overflow": "cut"}, "overflow='cut'"),
        ({"overflow": "drop"}, "give max_tokens"),
        ({"overflow": "drop", "num_tokens": 4}, "leave out num_tokens"),
        ({"num_tokens": 4, "max_tokens": 2}, "num_tokens=4 is above max_tokens=2"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Budget(**options)


def test_protected_tokens_outlast_the_others():
    token_map = np.array([[0, 1, 1, 2, 3, 3, 3, 4]], np.int16)
    protected = np.array([False, False, True, False, True])
    partition = Partition(token_map, 5, protected=protected)
    merged = apply_budget(partition, Budget(min_area=3))
    # The crumb between protected tokens joins one of them, those are no crumbs themselves.
    assert merged.token_map.tolist() == [[0, 0, 0, 1, 2, 2, 2, 3]]
    for limit, rest in ((4, [False, True, False, True]), (3, [True, False, True]), (2, [True] * 2)):
        kept = apply_budget(partition, Budget(num_tokens=limit))
        assert kept.num_tokens == limit
        assert kept.protected.tolist() == rest
    dropped = apply_budget(partition, Budget(max_tokens=3, overflow="drop"))
    assert dropped.token_map.tolist() == [[-1, -1, -1, 0, 1, 1, 1, 2]]
    assert dropped.protected.tolist() == [True, False, True]
