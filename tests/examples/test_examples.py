"""The examples run, and do what they promise."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

# Small sizes, so that each runs in seconds; what it prints must hold the words.
RUNS = {
    "wrap_hf_dataset": (["--size", "128", "--max-tokens", "8"], "4 images in"),
    "plain_loop": (["--size", "64", "--steps", "3", "--workers", "1"], "step 2: loss"),
    "stream_dataset": (["--size", "64"], "12 images in"),
    "train_accelerate": (["--size", "64", "--steps", "3", "--out", "run"], "step 2: loss"),
    "train_lightning": (["--size", "64", "--steps", "3"], "step 2: loss"),
    "train_trainer": (["--size", "64", "--steps", "5"], "trained 5 steps"),
}


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def run(name: str, *arguments: str, folder: Path) -> str:
    # Lightning warns about its own use of torch.
    strict = () if name == "train_lightning" else ("-W", "error")
    done = subprocess.run(
        [sys.executable, *strict, str(EXAMPLES / f"{name}.py"), *arguments],
        cwd=folder,  # an example needs nothing beside itself and writes nothing into the checkout
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# Loops of frameworks have tests of their own in the default run.
LONG = ("train_accelerate", "train_trainer", "train_lightning")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in RUNS],
)
def test_example_runs(name, tmp_path):
    if name == "train_lightning":
        pytest.importorskip("lightning")
    arguments, words = RUNS[name]
    assert words in run(name, *arguments, folder=tmp_path)


@pytest.mark.slow
def test_the_command_for_two_processes_starts_two(tmp_path):
    script = EXAMPLES / "train_accelerate.py"
    (line,) = (
        line.split()
        for line in script.read_text(encoding="utf-8").splitlines()
        if line.startswith("torchrun")
    )
    options = line[1:-1]  # between the program and the script
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--master-port", str(free_port())),
            *(*options, str(script), "--size", "64", "--steps", "2"),
        ],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "processes: 2" in done.stdout
    assert done.stdout.count("step 1: loss") == 1


@pytest.mark.parametrize("name", RUNS)
def test_example_is_short_and_explains_itself(name):
    lines = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 60
    assert lines[0].startswith('"""')


def test_wrap_hf_dataset_reads_a_saved_dataset(tmp_path):
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    images = [Image.new("RGB", (64, 48), color) for color in ("red", "blue", "green")]
    datasets.Dataset.from_dict({"photo": images}).save_to_disk(str(tmp_path / "data"))
    words = run(
        "wrap_hf_dataset",
        "--dataset",
        str(tmp_path / "data"),
        "--image-column",
        "photo",
        "--size",
        "64",
        folder=tmp_path,
    )
    assert "3 images in" in words
