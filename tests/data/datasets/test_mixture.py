"""Mixed datasets: counts, order, replacements, resume, two ranks."""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.batches import assert_same_batches
from helpers.mixtures import SMALL, loader, mixture
from hypothesis import given, strategies as st

from subtok_data import SubobjectDataset, SubobjectLoader
from subtok_data.data import MixedDataset
from subtok_data.data.loader import batch_sampler as sampler
from subtok_data.errors import ConfigError

sizes_and_weights = st.integers(1, 4).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(1, 40), min_size=n, max_size=n),
        st.lists(st.integers(1, 12), min_size=n, max_size=n),
    )
)


@given(sizes_and_weights, st.sampled_from(["first", "all"]), st.integers(0, 3), st.booleans())
def test_ratio_is_exact_in_every_block_and_nothing_repeats_early(given_, stop, epoch, shuffle):
    sizes, weights = given_
    if stop == "first" and any(s < w for s, w in zip(sizes, weights, strict=True)):
        with pytest.raises(ConfigError, match="stop='all'"):
            mixture(*sizes, weights=weights, stop=stop)
        return
    mixed = mixture(*sizes, weights=weights, stop=stop, shuffle=shuffle)
    mixed.set_epoch(epoch)
    found = [mixed.locate(index) for index in range(len(mixed))]
    block = sum(weights)
    assert len(mixed) % block == 0
    for start in range(0, len(mixed), block):
        counts = Counter(number for number, _ in found[start : start + block])
        assert [counts[k] for k in range(len(sizes))] == weights
    blocks = len(mixed) // block
    for number, size in enumerate(sizes):
        own = [place for other, place in found if other == number]
        assert len(own) == mixed.counts[number] == blocks * weights[number]
        times = np.bincount(own, minlength=size)
        assert times.max() - times.min() <= 1, "passes are whole before the next begins"
        for start in range(0, len(own) - size + 1, size):
            assert sorted(own[start : start + size]) == list(range(size))
    if stop == "first":
        assert all(c <= s for c, s in zip(mixed.counts, sizes, strict=True))
        assert blocks == min(s // w for s, w in zip(sizes, weights, strict=True))
    else:
        assert all(c >= s for c, s in zip(mixed.counts, sizes, strict=True))
        assert blocks == max(math.ceil(s / w) for s, w in zip(sizes, weights, strict=True))


def test_ten_to_one_as_in_the_paper():
    mixed = mixture(500, 47, weights=(10, 1))
    assert mixed.counts == (470, 47)
    numbers = [mixed[index].columns["source_dataset"] for index in range(len(mixed))]
    assert numbers.count(0) == 470
    assert numbers.count(1) == 47


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed: int, epoch: int) -> list[tuple[int, int]]:
        mixed = mixture(20, 9, weights=(2, 1), seed=seed)
        mixed.set_epoch(epoch)
        mixed = pickle.loads(pickle.dumps(mixed))
        return [mixed.locate(index) for index in range(len(mixed))]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_epoch_reaches_every_dataset():
    mixed = mixture(4, 4, weights=(1, 1))
    mixed.set_epoch(7)
    assert [dataset.epoch for dataset in mixed.datasets] == [7, 7]


def test_samples_say_where_they_are_from():
    mixed = mixture(4, 6, weights=(1, 1))
    for index in range(len(mixed)):
        sample = mixed[index]
        assert sample.index == index
        found = (sample.columns["source_dataset"], sample.columns["source_index"])
        assert found == (sample.columns["name"], sample.columns["place"]) == mixed.locate(index)


def test_a_bad_sample_is_replaced_by_its_own_dataset():
    mixed = mixture(12, 12, weights=(2, 1), bad=frozenset({1, 5, 6}))
    with loader(mixed) as batches:
        found = [name for batch in batches for name in batch["source_dataset"].tolist()]
        replaced = batches.collator.replaced
    assert Counter(found) == {0: 12, 1: 6}
    assert len(replaced) == sum(mixed.locate(i)[1] in (1, 5, 6) for i in range(len(mixed)))
    assert all(
        one.reason.startswith(("dataset 0: sample", "dataset 1: sample")) for one in replaced
    )
    assert [mixed.locate(one.index)[1] for one in replaced if one.index >= 0]
    for sample in [next(iter(mixed.replacements(4, "late failure")))]:
        assert sample.index == 4
        assert sample.columns["source_dataset"] == mixed.locate(4)[0]


def test_resume_in_the_middle_of_an_epoch():
    def run() -> SubobjectLoader:
        return loader(mixture(30, 5, weights=(4, 1), seed=3), seed=3)

    with run() as whole:
        expected = [batch for _ in range(2) for batch in whole]
    with run() as first:
        for number, _ in enumerate(first):
            if number == 3:
                state = first.state_dict()
                break
    with run() as second:
        second.load_state_dict(state)
        rest = [batch for _ in range(2) for batch in second]
    assert_same_batches(expected[4:], rest)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(num_workers):
    def batches(workers: int) -> list:
        with loader(mixture(12, 5, weights=(2, 1)), num_workers=workers) as running:
            return [batch for _ in range(2) for batch in running]

    assert_same_batches(batches(0), batches(num_workers))


def test_two_ranks_are_disjoint_complete_and_keep_the_ratio(monkeypatch):
    found: list[list[tuple[int, int]]] = []
    for rank in range(2):
        monkeypatch.setattr(sampler, "rank_and_world_size", lambda rank=rank: (rank, 2))
        with loader(mixture(40, 10, weights=(4, 1)), batch_size=5) as batches:
            found.append(
                [
                    pair
                    for batch in batches
                    for pair in zip(
                        batch["source_dataset"].tolist(),
                        batch["source_index"].tolist(),
                        strict=True,
                    )
                ]
            )
            assert len(batches) == 5
    assert not set(found[0]) & set(found[1])
    both = found[0] + found[1]
    assert sorted(both) == [*((0, i) for i in range(40)), *((1, i) for i in range(10))]


@pytest.mark.slow
def test_two_processes_share_each_epoch(tmp_path):
    here = Path(__file__).parents[2]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launch += [
        "--nproc_per_node=2",
        str(here / "helpers" / "mixture_on_two_ranks.py"),
        str(tmp_path),
    ]
    environment = {**os.environ, "PYTHONPATH": str(here), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    orders = []
    for epoch in range(2):
        pairs = [
            [pair for numbers, places in rank[epoch] for pair in zip(numbers, places, strict=True)]
            for rank in ranks
        ]
        assert len(pairs[0]) == len(pairs[1]) == 25
        assert sorted(pairs[0] + pairs[1]) == [(0, i) for i in range(40)] + [
            (1, i) for i in range(10)
        ]
        orders.append(pairs)
    assert orders[0] != orders[1]


@pytest.mark.parametrize(
    ("weights", "message"),
    [((1,), "2 datasets and 1 weights"), ((1, 0), "weight 0"), ((1, 0.5), "weight 0.5")],
)
def test_what_cannot_be_exact_is_refused(weights, message):
    with pytest.raises(ConfigError, match=message):
        mixture(3, 3, weights=weights)


def test_datasets_must_be_wrapped_and_columns_free():
    with pytest.raises(ConfigError, match="SubobjectDataset"):
        MixedDataset([[1, 2]], [1])
    with pytest.raises(ConfigError, match="empty"):
        MixedDataset([SubobjectDataset([])], [1])
    taken = SubobjectDataset([{"image": SMALL, "source_index": 3}])
    with pytest.raises(ConfigError, match="'source_index'"):
        MixedDataset([taken], [1])[0]
