"""Plans of batches: rank-equal, complete, reproducible."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from helpers.batches import faulty_tokenizer
from helpers.faulty import CodedImages
from hypothesis import given, strategies as st

from subtok_data import BatchPlan, SubobjectLoader
from subtok_data.data import SubobjectBatchSampler
from subtok_data.data.loader import batch_sampler as module, epoch_batches
from subtok_data.errors import ConfigError


def of_ranks(world: int, make, epoch: int = 0) -> list[list[list[int]]]:
    """Batches of all ranks, built in one process."""
    found = []
    original = module.rank_and_world_size
    try:
        for rank in range(world):
            module.rank_and_world_size = lambda rank=rank: (rank, world)
            sampler = make()
            sampler.set_epoch(epoch)
            batches = list(sampler)
            assert len(batches) == len(sampler)
            found.append(batches)
    finally:
        module.rank_and_world_size = original
    return found


cases = given(
    length=st.integers(1, 60),
    batch_size=st.integers(1, 7),
    world=st.integers(1, 4),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
)


@cases
def test_ranks_agree_and_nothing_is_lost(length, batch_size, world, shuffle, drop_last):
    def make():
        return SubobjectBatchSampler(length, batch_size, drop_last, shuffle=shuffle, seed=3)

    ranks = of_ranks(world, make, epoch=2)
    assert len({len(batches) for batches in ranks}) == 1
    found = [i for batches in ranks for batch in batches for i in batch]
    step = batch_size * world
    if drop_last:
        assert len(found) == len(set(found)) == length // step * step
    else:
        assert set(found) == set(range(length))
        expected = length if world == 1 else math.ceil(length / step) * step
        assert len(found) == expected
    if world > 1:
        assert all(len(batch) == batch_size for batches in ranks for batch in batches)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    batch_size=st.integers(1, 7),
    world=st.integers(1, 3),
    budget=st.one_of(st.none(), st.integers(40, 200)),
)
def test_plans_by_length(lengths, batch_size, world, budget):
    def make():
        plan = BatchPlan(lengths, by_length=True, max_batch_length=budget)
        return SubobjectBatchSampler(len(lengths), batch_size, shuffle=True, plan=plan)

    ranks = of_ranks(world, make)
    assert len({len(batches) for batches in ranks}) == 1
    batches = [batch for rank in ranks for batch in rank]
    assert {i for batch in batches for i in batch} == set(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        if budget is not None:
            assert len(batch) * max(lengths[i] for i in batch) <= budget


@given(
    lengths=st.lists(st.integers(1, 40), max_size=70),
    batch_size=st.integers(1, 7),
    world=st.integers(1, 4),
    drop_last=st.booleans(),
    by_length=st.booleans(),
    budget=st.one_of(st.none(), st.integers(40, 200)),
    window=st.sampled_from([1, 2, 50]),
)
def test_every_plan_gives_what_its_length_says(
    lengths, batch_size, world, drop_last, by_length, budget, window
):
    def make():
        plan = BatchPlan(lengths, by_length=by_length, max_batch_length=budget)
        return SubobjectBatchSampler(len(lengths), batch_size, drop_last, shuffle=True, plan=plan)

    def is_full(batch: list[int]) -> bool:
        longest = max(lengths[i] for i in batch)
        return len(batch) == batch_size or (
            budget is not None and (len(batch) + 1) * longest > budget
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch_batches, "_SORTED_BATCHES", window)
        ranks = of_ranks(world, make, epoch=1)  # which compares len() with what comes
    assert len({len(batches) for batches in ranks}) == 1
    batches = [batch for rank in ranks for batch in rank]
    found = [i for batch in batches for i in batch]
    short = [batch for batch in batches if budget is None and not is_full(batch)]
    if not drop_last:
        assert set(found) == set(range(len(lengths)))
        assert len(short) <= (world == 1)
        return
    assert len(found) == len(set(found))
    assert not short
    if budget is None:
        step = batch_size * world
        assert len(found) == len(lengths) // step * step
    elif by_length or len(set(lengths)) == 1:
        assert all(is_full(batch) for batch in batches)


def planned_as_a_whole(
    length: int,
    batch_size: int,
    world: int,
    *,
    drop_last: bool = False,
    shuffle: bool = False,
    seed: tuple[int, int] = (0, 0),
    lengths: list[int] | None = None,
    by_length: bool = False,
    limit: int | None = None,
) -> list[list[int]]:
    """Batches of all ranks, formed one after the other from one list of all rows."""
    order = np.arange(length)
    random = np.random.default_rng(seed)
    if shuffle:
        random.shuffle(order)
    step = batch_size * world
    if limit is None and drop_last:
        order = order[: length // step * step]
    elif limit is None and world > 1 and length:
        order = np.resize(order, math.ceil(length / step) * step)
    rows = order.tolist()
    if not by_length and limit is None:
        return [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]
    assert lengths is not None

    def fits(batch: list[int]) -> bool:
        longest = max((lengths[i] for i in batch), default=0)
        return len(batch) <= batch_size and (limit is None or len(batch) * longest <= limit)

    batches: list[list[int]] = []
    rest: list[int] = []
    for at in range(0, len(rows), 50 * step):
        part = rest + rows[at : at + 50 * step]
        if by_length:
            part.sort(key=lambda i: -lengths[i])
        rest = []
        for index in part:
            if not fits([*rest, index]):
                batches.append(rest)
                rest = []
            rest.append(index)
        longest = max(lengths[i] for i in rest)
        more_fit = limit is None or (len(rest) + 1) * longest <= limit
        if len(rest) == batch_size or not more_fit:
            batches.append(rest)
            rest = []
    if rest and not drop_last:
        batches.append(rest)
    if drop_last:
        batches = batches[: len(batches) // world * world]
    batches += [batches[place % len(batches)] for place in range(-len(batches) % world)]
    steps = [batches[at : at + world] for at in range(0, len(batches), world)]
    if shuffle:
        random.shuffle(steps)
    return [batch for one in steps for batch in one]


@given(
    lengths=st.lists(st.integers(0, 40), max_size=400),
    batch_size=st.integers(1, 7),
    world=st.integers(1, 3),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    by_length=st.booleans(),
    limit=st.one_of(st.none(), st.integers(40, 200)),
)
def test_up_to_a_million_rows_are_planned_as_a_whole(
    lengths, batch_size, world, shuffle, drop_last, by_length, limit
):
    options = {"shuffle": shuffle, "drop_last": drop_last}

    def make():
        plan = BatchPlan(lengths, by_length=by_length, max_batch_length=limit)
        return SubobjectBatchSampler(len(lengths), batch_size, seed=5, plan=plan, **options)

    expected = planned_as_a_whole(
        len(lengths),
        batch_size,
        world,
        **options,
        seed=(5, 2),
        lengths=lengths,
        by_length=by_length,
        limit=limit,
    )
    assert of_ranks(world, make, epoch=2) == [expected[rank::world] for rank in range(world)]


@given(
    lengths=st.lists(st.integers(0, 40), max_size=90),
    batch_size=st.integers(1, 5),
    world=st.integers(1, 3),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    by_length=st.booleans(),
    limit=st.one_of(st.none(), st.integers(40, 120)),
    shard_rows=st.integers(1, 9),
    window_rows=st.sampled_from([1, 8, 30]),
    sorted_batches=st.sampled_from([1, 3]),
)
def test_windows_of_shards_lose_and_repeat_nothing(
    lengths,
    batch_size,
    world,
    shuffle,
    drop_last,
    by_length,
    limit,
    shard_rows,
    window_rows,
    sorted_batches,
):
    def make():
        plan = BatchPlan(
            np.array(lengths, np.uint16),
            by_length=by_length,
            max_batch_length=limit,
            shard_rows=shard_rows,
        )
        return SubobjectBatchSampler(
            len(lengths), batch_size, drop_last, shuffle=shuffle, seed=1, plan=plan
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch_batches, "_WINDOW_ROWS", window_rows)
        patch.setattr(epoch_batches, "_SORTED_BATCHES", sorted_batches)
        ranks = of_ranks(world, make, epoch=1)  # which compares len() with what comes
        assert ranks == of_ranks(world, make, epoch=1)
        for rank, batches in enumerate(ranks):
            patch.setattr(module, "rank_and_world_size", lambda rank=rank: (rank, world))
            sampler = make()
            sampler.set_epoch(1)
            for start in range(len(batches) + 2):
                assert list(sampler.batches_from(start)) == batches[start:]
    assert len({len(batches) for batches in ranks}) == 1
    batches = [batch for rank in ranks for batch in rank]
    found = [i for batch in batches for i in batch]
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    if limit is not None:
        assert all(len(batch) * max(lengths[i] for i in batch) <= limit for batch in batches)
    step = batch_size * world
    if drop_last:
        assert len(found) == len(set(found))
        assert limit is not None or len(found) == len(lengths) // step * step
        return
    assert set(found) == set(range(len(lengths)))
    if limit is not None:  # whole batches are repeated, less than a step of them
        distinct = {tuple(batch) for batch in batches}
        assert len(batches) - len(distinct) < world
        assert sum(map(len, distinct)) == len(lengths)
    else:
        assert len(found) == (len(lengths) if world == 1 else math.ceil(len(lengths) / step) * step)


def test_a_window_reads_whole_shards_and_mixes_their_rows(monkeypatch):
    monkeypatch.setattr(epoch_batches, "_WINDOW_ROWS", 40)
    sampler = SubobjectBatchSampler(1000, 5, shuffle=True, plan=BatchPlan(shard_rows=10))
    orders = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        rows = [i for batch in sampler for i in batch]
        orders.append(rows)
        shards = [{row // 10 for row in rows[at : at + 40]} for at in range(0, 1000, 40)]
        assert all(len(window) == 4 for window in shards)
        assert all(rows[at : at + 10] != sorted(rows[at : at + 10]) for at in range(0, 1000, 40))
    assert orders[0] != orders[1]


@pytest.mark.parametrize("kind", ["list", "uint8", "uint16", "int32", "int64", "uint64", ">u2"])
def test_lengths_of_any_type_give_the_same_batches(kind):
    lengths = [0, 200, 3, 9, 9, 255, 1, 0, 40] * 30
    given = lengths if kind == "list" else np.array(lengths, kind)

    def batches(lengths):
        plan = BatchPlan(lengths, by_length=True, max_batch_length=600)
        sampler = SubobjectBatchSampler(270, 8, shuffle=True, plan=plan)
        return plan.fingerprint, list(sampler)

    assert batches(given) == batches(np.array(lengths, np.int32))


def test_lengths_stay_in_their_file(tmp_path):
    rows = 12_000_000  # one array of int64 of them would be 96 MB
    lengths = np.memmap(tmp_path / "lengths.u2", np.uint16, "w+", shape=rows)
    for at in range(0, rows, 1_000_000):
        lengths[at : at + 1_000_000] = np.random.default_rng(at).integers(5, 150, 1_000_000)
    tracemalloc.start()
    try:
        plan = BatchPlan(lengths, by_length=True)
        assert plan.fingerprint is not None
        sampler = SubobjectBatchSampler(rows, 32, shuffle=True, plan=plan)
        assert len(sampler) == rows // 32
        last = list(sampler.batches_from(len(sampler) - 3))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [len(batch) for batch in last] == [32, 32, 32]
    assert peak < 72e6


def test_drop_last_leaves_out_the_short_batch_of_a_plan_by_length():
    plan = BatchPlan([3 + i % 4 for i in range(18)], by_length=True)
    sampler = SubobjectBatchSampler(18, 5, drop_last=True, shuffle=True, plan=plan)
    assert len(sampler) == 3
    assert [len(batch) for batch in sampler] == [5, 5, 5]
    left_out = set()
    for epoch in range(8):
        sampler.set_epoch(epoch)
        left_out |= set(range(18)) - {i for batch in sampler for i in batch}
    assert len(left_out) > 3  # not always the shortest ones


def test_by_length_saves_padding():
    lengths = np.random.default_rng(0).integers(10, 200, 400)

    def padding(by_length: bool) -> float:
        plan = BatchPlan(lengths, by_length=by_length)
        batches = list(SubobjectBatchSampler(400, 8, shuffle=True, plan=plan))
        places = sum(len(batch) * lengths[batch].max() for batch in batches)
        return 1 - lengths.sum() / places

    assert padding(True) < 0.1 < 0.3 < padding(False)


def test_plans_need_lengths():
    for options in ({"by_length": True}, {"max_batch_length": 10}):
        with pytest.raises(ConfigError, match="need lengths"):
            BatchPlan(**options)
    with pytest.raises(ConfigError, match="below the longest sample"):
        BatchPlan([5, 20], max_batch_length=10)
    with pytest.raises(ConfigError, match=r"lengths\[1\] is -2"):
        BatchPlan(np.array([3, -2], np.int16))
    with pytest.raises(ConfigError, match="shard_rows=0"):
        BatchPlan([3, 2], shard_rows=0)
    with pytest.raises(ConfigError, match="2 lengths for 3 samples"):
        SubobjectBatchSampler(3, 1, plan=BatchPlan([1, 2]))
    with pytest.raises(ConfigError, match="stream cannot be grouped"):
        SubobjectLoader(iter([]), faulty_tokenizer(), plan=BatchPlan([1], by_length=True))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"executor": "gpu"}, "executor"),
        ({"segment_workers": 0}, "segment_workers=0"),
        ({"prefetch_batches": -1}, "prefetch_batches=-1"),
        ({"in_order": False}, "in_order"),
        ({"collate_fn": list}, "SubobjectCollator"),
        ({"timeout_s": 0}, "timeout_s=0"),
    ],
)
def test_impossible_loader_options(options, words):
    with (
        pytest.raises(ConfigError, match=words),
        SubobjectLoader(CodedImages(2), faulty_tokenizer(), **options) as loader,
    ):
        next(iter(loader))


def test_stats_count_what_was_given():
    with SubobjectLoader(
        CodedImages(10), faulty_tokenizer(), batch_size=4, executor="thread"
    ) as loader:
        list(loader)
        stats = loader.stats()
    assert (stats.batches, stats.images) == (3, 10)
    assert stats.tokens == sum(1 + i % 5 for i in range(10))
    assert stats.tokens_histogram["1"] == 2
    assert stats.tokens_histogram["4–7"] == 4
    # Batches of 1-4, 5 1 2 3 and 4 5 tokens: padded to 4, 5 and 5.
    assert stats.padding_fraction == pytest.approx(1 - 30 / (16 + 20 + 10))
    assert stats.images_per_s > 0
    assert stats.peak_bytes_in_flight > 0
    assert "Limited by" in stats.report()
