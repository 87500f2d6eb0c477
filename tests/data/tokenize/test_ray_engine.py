"""Shards made by actors of Ray: the files are those of a local run, and what fails is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from subtok_data import PatchSegmenter, SubobjectTokenizer
from subtok_data.data import RayEngine, TokenWriter, tokenize_dataset
from subtok_data.errors import ConfigError

HERE = Path(__file__).parents[2]
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="the package ray is not installed")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"actors": (0, 2)}, "actors=0:2: give the fewest"),
        ({"actors": (3, 2)}, "actors=3:2"),
        ({"cpus": 0}, "cpus=0"),
        ({"gpus": -1}, "gpus=-1"),
        ({"max_deaths": 0}, "max_deaths=0"),
    ],
)
def test_impossible_actors_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        RayEngine(**options)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'subtok-data\[ray\]'"):
        RayEngine()


@needs_ray
def test_gpus_go_with_a_tokenizer_on_a_gpu(tmp_path):
    tokenizer = SubobjectTokenizer(PatchSegmenter(8), size=32)
    with pytest.raises(ConfigError, match=r"gpus=0\.5, but the tokenizer is on the CPU"):
        tokenize_dataset([b""], tokenizer, tmp_path, engine=RayEngine(gpus=0.5))


# --- with actors --------------------------------------------------------------------------------

slow = [pytest.mark.slow, pytest.mark.timeout(900), needs_ray]


@pytest.fixture(scope="module")
def ways(tmp_path_factory):
    """What each way of shards_on_ray.py left and said."""
    folder = tmp_path_factory.mktemp("ray")
    done = subprocess.run(
        [sys.executable, str(HERE / "helpers" / "shards_on_ray.py"), str(folder)],
        env={**os.environ, "PYTHONPATH": str(HERE), "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, json.loads((folder / "ways.json").read_text())


class TestActors:
    pytestmark = slow

    @pytest.mark.parametrize("way", ["one", "two", "killed"])
    def test_make_the_same_files(self, ways, way):
        _, said = ways
        assert said[way]["error"] == ""
        assert said[way]["files"] == said["local"]["files"]
        assert [row for row, _ in said[way]["failed"]] == [7, 18, 29, 40]

    def test_tell_of_every_row(self, ways):
        _, said = ways
        assert [sum(column) for column in zip(*said["two"]["progress"], strict=True)] == [46, 4]
        # The second run of this one: a shard was deleted, another damaged.
        assert said["killed"]["progress"][0] == [30, 0]
        assert sorted(rows for rows, _ in said["killed"]["progress"][1:]) == [6, 10]

    def test_give_up_a_shard_that_ends_them_again_and_again(self, ways):
        folder, said = ways
        assert said["always"]["kind"] == "WorkerCrashError"
        assert (
            "1 of 2 shards were not made (shard 0: it ended its process 3"
            in (said["always"]["error"])
        )
        assert TokenWriter.open(folder / "always").missing() == [0]

    @pytest.mark.parametrize("way", ["decoding", "decoded elsewhere"])
    def test_fail_an_image_that_ends_them_in_decoding(self, ways, way):
        _, said = ways
        assert said[way]["error"] == ""
        assert [row for row, _ in said[way]["failed"]] == [7, 13, 18, 29, 40]
        assert said[way]["failed"][1][1] == (
            "sample 13 failed in decode: reading or decoding it ended its process twice"
        )
        others = {name for name in said["local"]["files"] if "data/" in name and "01" not in name}
        for name in others:
            assert said[way]["files"][name] == said["local"]["files"][name]

    def test_fail_an_image_that_ends_its_segment_worker_twice(self, ways):
        _, said = ways
        assert said["image"]["error"] == ""
        ((row, why),) = said["image"]["failed"]
        assert row == 4
        assert "ended its segment worker twice" in why

    def test_say_why_shards_failed(self, ways):
        _, said = ways
        assert said["model"]["kind"] == "SubtokError"
        assert "5 of 5 shards were not made (shard 0: " in said["model"]["error"]
        assert "no such model" in said["model"]["error"]

    def test_leave_no_job_behind(self, ways):
        _, said = ways
        assert not [name for way in said.values() for name in way["files"] if "job-" in name]
