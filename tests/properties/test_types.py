"""Lint, format and strict types, as CONTRIBUTING.md asks for them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IN_CI = os.environ.get("CI", "").lower() in ("1", "true")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.timeout(900)  # a minute on a core of its own
def test_pyright_strict():
    ready = run("pyright", "--version")
    if ready.returncode != 0 and not IN_CI:
        pytest.skip(
            "the types are not checked: pyright is absent, or has not fetched its checker yet, "
            f"which needs a network once: {ready.stderr.strip()[-200:]}"
        )
    assert ready.returncode == 0, ready.stderr
    done = run("pyright", "--pythonpath", sys.executable)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


@pytest.mark.parametrize("command", [("check",), ("format", "--check")])
def test_ruff(command):
    done = run("ruff", *command, ".")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
