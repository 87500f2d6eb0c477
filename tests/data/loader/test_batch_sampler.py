"""Plans of batches: rank-equal, complete, reproducible."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers.batches import faulty_tokenizer
from helpers.faulty import CodedImages
from hypothesis import given, strategies as st

from subtok_data import BatchPlan, SubobjectLoader
from subtok_data.data import SubobjectBatchSampler
from subtok_data.data.loader import batch_sampler as module
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
        patch.setattr(module, "_WINDOW", window)
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
