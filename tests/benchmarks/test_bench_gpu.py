"""The sitting at a GPU is ready: every part runs in a tiny form without one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "bench_gpu.py"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def titles_of(file: Path) -> list[str]:
    return [table["title"] for table in json.loads(file.read_text())["tables"]]


@pytest.mark.slow
@pytest.mark.parametrize("parts", ["A,B,C", "D,E,F", "G", "H,I"])
def test_parts_run_without_a_gpu(tmp_path, parts):
    file = tmp_path / "gpu.json"
    done = run("--device", "cpu", "--quick", "--only", parts, "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    tables = json.loads(file.read_text())["tables"]
    assert {table["title"][0] for table in tables} == set(parts) - {","}
    for table in tables:
        for row in table["rows"]:
            assert len(row) == len(table["columns"])
            assert "Error" not in str(row), row


@pytest.mark.slow
def test_the_first_part_prints_and_writes_its_table(tmp_path):
    file = tmp_path / "gpu.json"
    done = run("--device", "cpu", "--quick", "--only", "a", "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert titles_of(file) == ["A. floors of the machine"]
    assert "| launching a small operation, host µs |" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_it_says_that_there_is_no_gpu():
    done = run()
    assert done.returncode == 2
    assert "no CUDA device here" in done.stderr
    assert "--device cpu --quick" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--only", "A,X"], "no part X"),
        (["--device", "cpu"], "needs --quick"),
    ],
)
def test_bad_options_are_refused(options, words):
    done = run(*options)
    assert done.returncode == 2
    assert words in done.stderr
