"""The example that captions regions: it runs without data, and learns."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.slow


def run(*arguments: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / "caption_regions.py"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_drawn_scenes_are_learned_a_little(tmp_path):
    options = ("--rows", "64", "--epochs", "4", "--size", "160", "--threads", "1")
    printed = run("--demo", "--out", "out", *options, folder=tmp_path)
    assert "held-out regions" in printed
    out = tmp_path / "out"
    losses = [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert sum(losses[-8:]) < 0.7 * sum(losses[:8])
    results = json.loads((out / "results.json").read_text())
    assert results["regions"] > 10
    for name in ("curve.png", "regions.jpg"):
        assert (out / name).stat().st_size > 0


@pytest.mark.data
def test_real_regions_go_through(tmp_path, data_dir):
    options = ("--epochs", "1", "--size", "96", "--max-regions", "4", "--threads", "1")
    printed = run("--data", str(data_dir), "--out", "out", *options, folder=tmp_path)
    assert "2573 regions, 128 texts" in printed
    assert "held-out regions" in printed


def test_absent_data_is_said(tmp_path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "caption_regions.py"), "--data", "none", "--out", "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "none does not exist: give --data FOLDER" in done.stderr
