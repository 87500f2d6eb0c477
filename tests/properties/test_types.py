"""Lint, format and strict types, as CONTRIBUTING.md asks for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=280
    )


@pytest.mark.parametrize("command", [("check",), ("format", "--check")])
def test_ruff(command):
    done = run("ruff", *command, ".")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


def test_pyright_strict():
    if run("pyright", "--version").returncode != 0:
        pytest.skip("pyright fetches its checker once, which needs a network")
    done = run("pyright", "--pythonpath", sys.executable)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
