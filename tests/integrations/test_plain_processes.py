"""Two processes that only have the environment of a process group, as Ray Train starts them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    tests = Path(__file__).parents[1]
    common = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")]),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "NODE_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": "1",
    }
    started = [
        subprocess.Popen(
            [sys.executable, str(tests / "helpers" / "plain_processes.py"), str(folder)],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        complaints = [one.communicate(timeout=280)[1][-3000:] for one in started]
    finally:
        for one in started:
            one.kill()
    assert [one.returncode for one in started] == [0, 0], "\n\n".join(complaints)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def test_each_worker_builds_its_loader_and_takes_its_part(ranks):
    first, second = (rank["train"] for rank in ranks)
    for one, other in zip(first["epochs"], second["epochs"], strict=True):
        assert len(one) == len(other) == 12
        assert set(one) | set(other) == set(range(18))
    assert first["epochs"][0] != first["epochs"][1]
    assert first["weights"] == second["weights"]


@pytest.mark.parametrize(
    ("difference", "values"),
    [("seed", "78"), ("batch_size", "23"), ("lengths", "")],
)
def test_ranks_that_were_told_different_things_are_refused(ranks, difference, values):
    said = [rank["said"][difference] for rank in ranks]
    # One of them came first, and had nothing to compare with.
    assert sorted(map(bool, said)) == [False, True]
    message = max(said)
    assert f"{difference}=" in message
    assert "another plan of batches than rank" in message
    for value in values:
        assert value in message


def test_equal_plans_are_not_refused(ranks):
    assert [rank["said"]["nothing"] for rank in ranks] == ["", ""]


@pytest.mark.parametrize("route", ["stream", "dispatched", "loader"])
def test_accelerate_gives_every_sample_once(ranks, route):
    first, second = (rank["accelerate"][route] for rank in ranks)
    assert sorted(first + second) == list(range(16))
    assert len(first) == len(second)
