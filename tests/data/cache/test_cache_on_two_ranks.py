"""Two ranks share a cache: what one has tokenized the other finds in the next epoch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from subtok_data.data.cache import describe_cache

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    here = Path(__file__).parents[2]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
            *(str(here / "helpers" / "cache_on_two_ranks.py"), str(folder)),
        ],
        env={**os.environ, "PYTHONPATH": str(here), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    return folder, ranks


@pytest.mark.parametrize("name", ["cached", "workers"])
def test_two_ranks_find_each_others_tokens(shared, name):
    _, ranks = shared
    for rank in ranks:
        for epoch, (_, hits, images, inferred) in enumerate(rank[name]):
            assert images == 12
            assert hits == (12 if epoch else 0)
            assert inferred == 12


@pytest.mark.parametrize("name", ["cached", "workers"])
def test_two_ranks_have_the_batches_of_loaders_without_a_cache(shared, name):
    _, ranks = shared
    for rank in ranks:
        assert [epoch[0] for epoch in rank[name]] == [epoch[0] for epoch in rank["plain"]]
    assert ranks[0][name][0][0] != ranks[1][name][0][0]


def test_each_rank_writes_files_of_its_own(shared):
    folder, _ = shared
    for name in ("cache", "with-workers"):
        info = describe_cache(folder / name)
        assert info.segments == 2
        assert 21 <= info.records <= 24  # what fills the last batches comes twice
