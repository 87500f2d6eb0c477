"""The example that trains a model on real captions: it learns, and resumes where it stopped."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = [pytest.mark.slow, pytest.mark.data]


def train(out: Path, data: Path, *arguments: str, launch: tuple[str, ...] = ()) -> list[dict]:
    """Run the example with small sizes; returns the entries of its log."""
    sizes = ["--steps", "24", "--eval-every", "12", "--save-every", "8", "--val-rows", "32"]
    command = [sys.executable, *launch, str(EXAMPLES / "train_vlm.py"), "--data", str(data)]
    done = subprocess.run(
        [*command, "--out", str(out), *sizes, *arguments],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_resume_in_the_middle_of_an_epoch_gives_the_same_curve(tmp_path, data_dir):
    whole = train(tmp_path / "whole", data_dir)
    train(tmp_path / "parts", data_dir, "--stop-after", "12")
    assert train(tmp_path / "parts", data_dir, "--resume") == whole
    perplexities = [entry["perplexity"] for entry in whole if "perplexity" in entry]
    assert perplexities[-1] < perplexities[0]
    assert (tmp_path / "parts" / "curve.png").stat().st_size > 0
    assert (tmp_path / "parts" / "samples.txt").read_text().count("written:") == 6


def test_packing_gives_the_same_losses(tmp_path, data_dir):
    options = ("--stop-after", "4")
    padded = train(tmp_path / "padded", data_dir, *options)
    packed = train(tmp_path / "packed", data_dir, *options, "--packing")
    for left, right in zip(padded, packed, strict=True):
        assert math.isclose(left["loss"], right["loss"], rel_tol=1e-4)


def test_runs_under_torchrun_on_two_processes(tmp_path, data_dir):
    assert "torchrun --nproc_per_node 2 examples/train_vlm.py" in (
        EXAMPLES / "train_vlm.py"
    ).read_text(encoding="utf-8")
    launch = ("-m", "torch.distributed.run", "--nproc_per_node", "2")
    log = train(tmp_path / "two", data_dir, launch=launch)
    assert len([entry for entry in log if "loss" in entry]) == 24
