"""Token figures against brute force, methods at matched counts, report and command."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from subtok_data.cli.evaluate import add_eval_parser, run_eval
from subtok_data.errors import ConfigError
from subtok_data.evaluation import (
    FelzenszwalbCutter,
    MergeCutter,
    PatchCutter,
    SlicCutter,
    ThresholdCutter,
    evaluate,
    read_label_maps,
    write_report,
)
from subtok_data.evaluation.cutters import SegmenterCutter
from subtok_data.evaluation.datasets import region_lines
from subtok_data.evaluation.token_metrics import Reference, mean_scores, token_scores
from subtok_data.segmenters import PatchSegmenter

maps = arrays(np.int32, (9, 11), elements=st.integers(0, 4))


@settings(max_examples=60, deadline=None)
@given(maps, maps)
def test_figures_are_what_their_definitions_say(
    token_map: NDArray[np.int32], regions: NDArray[np.int32]
):
    scores = token_scores(token_map, Reference([regions], original=False))
    tokens = [token_map == t for t in np.unique(token_map)]
    truth = [regions == r for r in np.unique(regions)]
    common = np.array([[(t & r).sum() for r in truth] for t in tokens])
    union = np.array([[(t | r).sum() for r in truth] for t in tokens])
    size = np.array([t.sum() for t in tokens])
    area = np.array([r.sum() for r in truth])
    pixels = regions.size
    assert scores.asa == pytest.approx(common.max(1).sum() / pixels)
    spilled = np.where(common > 0, np.minimum(common, size[:, None] - common), 0)
    assert scores.undersegmentation == pytest.approx(spilled.sum() / pixels)
    assert scores.covering == pytest.approx(((common / union).max(0) * area).sum() / pixels)
    assert scores.purity == pytest.approx((common.max(1) >= 0.95 * size).mean())
    assert scores.tokens == len(tokens)
    assert scores.coverage == 1.0
    borders, human = region_lines(token_map), region_lines(regions)

    def near(these: NDArray[np.bool_], others: NDArray[np.bool_]) -> float:
        if not these.any():
            return 1.0
        a, b = np.argwhere(these), np.argwhere(others)
        if not len(b):
            return 0.0
        distance = np.hypot(*(a[:, None] - b[None]).transpose(2, 0, 1))
        return float((distance.min(1) <= 2).mean())

    assert scores.boundary_recall == pytest.approx(near(human, borders))
    assert scores.boundary_precision == pytest.approx(near(borders, human))


@given(maps)
def test_a_segmentation_is_perfect_for_itself(regions: NDArray[np.int32]):
    _, token_map = np.unique(regions, return_inverse=True)
    scores = token_scores(token_map.reshape(regions.shape), Reference([regions], original=False))
    assert scores.asa == scores.covering == scores.purity == scores.boundary_recall == 1.0
    assert scores.undersegmentation == 0.0
    assert np.isnan(scores.monosemanticity)


def test_pixels_without_a_token_count_against_it():
    regions = np.repeat(np.arange(2), 8)[None].repeat(8, axis=0)
    token_map = regions.copy()
    token_map[:, 8:] = -1
    scores = token_scores(token_map, Reference([regions]))
    assert scores.coverage == scores.asa == scores.covering == 0.5
    assert scores.tokens == 1.0
    nothing = token_scores(np.full_like(regions, -1), Reference([regions]))
    assert nothing.asa == nothing.coverage == 0.0


def test_monosemanticity_is_the_originals():
    rng = np.random.default_rng(3)
    cells = np.kron(rng.permutation(16).reshape(4, 4), np.ones((64, 64))).astype(np.int32)
    regions = np.zeros((256, 256), np.int32)
    regions[:, 100:] = 1
    score = token_scores(cells, Reference([regions])).monosemanticity
    # One mask after the other, as the original does it, at its 1024 px.
    large, truth = np.kron(cells, np.ones((4, 4))), np.kron(regions, np.ones((4, 4)))
    contour = ndimage.maximum_filter(truth, 3) != ndimage.minimum_filter(truth, 3)
    window = np.ones((51, 1), bool), np.ones((1, 51), bool)
    hits = 0
    for token in np.unique(large):
        core = large == token
        for line in window:
            core = ndimage.binary_erosion(core, line, border_value=1)
        hits += bool((core & contour).any())
    assert hits == 4
    assert score == pytest.approx(1 - hits / 16)


def test_annotators_are_averaged_and_sizes_checked():
    regions = np.repeat(np.arange(2), 8)[None].repeat(8, axis=0)
    other = np.zeros_like(regions)
    one = np.zeros_like(regions)
    scores = token_scores(one, Reference([regions, other], original=False))
    assert scores.asa == pytest.approx(0.75)
    np.testing.assert_equal(asdict(mean_scores([scores, scores])), asdict(scores))  # NaN is NaN
    with pytest.raises(ConfigError, match="size"):
        token_scores(one[:4], Reference([regions]))
    with pytest.raises(ConfigError, match="annotation 1"):
        Reference([regions, regions[:4]])
    with pytest.raises(ConfigError, match="no annotations"):
        Reference([])
    with pytest.raises(ConfigError, match="no images"):
        mean_scores([])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for number in range(3):
        labels = np.kron(rng.permutation(12).reshape(3, 4), np.ones((32, 32))).astype(np.uint8)
        image = rng.integers(40, 220, (12, 3))[labels] + rng.normal(0, 4, (96, 128, 3))
        Image.fromarray(image.astype(np.uint8)).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(labels).save(tmp_path / "labels" / f"{number}.png")
    return tmp_path


def test_every_method_comes_near_its_count(folder: Path):
    one = next(iter(read_label_maps(folder / "images", folder / "labels")))
    boundary = {"edges": np.where(one.boundaries[0], np.uint8(255), np.uint8(0))}
    cutters: list[Any] = [
        PatchCutter([12]),
        SlicCutter([12]),
        FelzenszwalbCutter([12]),
        MergeCutter("edges", "num_tokens", [12]),
        SegmenterCutter(PatchSegmenter(16), [12], "patches, merged"),
    ]
    for cutter in cutters:
        token_map = cutter(one.image, boundary)["12"]
        assert token_map.shape == (96, 128)
        assert 9 <= len(np.unique(token_map)) <= 16
    exact = MergeCutter("edges", "num_tokens", [12])(one.image, boundary)["12"]
    assert token_scores(exact, Reference(one.label_maps)).asa > 0.97
    by_threshold = ThresholdCutter("edges", [0.1, 0.5])(one.image, boundary)
    assert set(by_threshold) == {"0.1", "0.5"}
    merged = ThresholdCutter("edges", [0.1], min_area=2000)(one.image, boundary)["0.1"]
    assert np.bincount(merged.ravel()).min() >= 2000
    by_strength = MergeCutter("edges", "strength", [0.2, 0.9])(one.image, boundary)
    assert set(by_strength) == {"0.2", "0.9"}
    assert len(np.unique(by_strength["0.2"])) == 12


def test_a_report_is_written(folder: Path, tmp_path: Path):
    images = read_label_maps(folder / "images", folder / "labels", "cells")

    def edges(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        grey = image.astype(np.float32).mean(2)
        steps = np.hypot(*np.gradient(grey))
        return np.clip(steps * 8, 0, 255).astype(np.uint8)

    cutters = [
        PatchCutter([6, 12]),
        MergeCutter("edges", "num_tokens", [6, 12]),
        ThresholdCutter("edges", [0.2]),
    ]
    report = evaluate(images, {"edges": edges}, cutters, thresholds=9)
    assert report.images == 3
    rows = {(row.method, row.setting): row.scores for row in report.tokens}
    assert len(rows) == 5
    assert rows["edges by count (balanced)", "12"].asa > rows["patch", "6"].asa
    files = write_report(tmp_path / "out", [report])
    assert [one.name for one in files] == [
        "report.md", "report.json", "cells_boundaries.png", "cells_tokens.png",
    ]  # fmt: skip
    data = json.loads((tmp_path / "out" / "report.json").read_text())
    assert data[0]["tokens"][0]["method"] == "patch"
    assert 0 < data[0]["boundaries"]["edges"]["ods"] <= 1
    assert "| edges |" in (tmp_path / "out" / "report.md").read_text()


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_eval_parser(parser.add_subparsers())
    return parser.parse_args(["eval", *arguments])


def test_the_command_prints_tables_or_json(folder: Path, capsys: pytest.CaptureFixture[str]):
    common = ["--labels", f"{folder}/images", f"{folder}/labels", "--limit", "2", "--counts", "6"]
    assert run_eval(parse(*common, "--maps", "sobel", "--ods-thresholds", "5")) == 0
    table = capsys.readouterr().out
    assert "### labels, 2 images" in table
    assert "| sobel |" in table
    assert "| patch | 6 |" in table
    assert run_eval(parse(*common, "--maps", "canny", "--no-tokens", "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    assert report[0]["images"] == 2
    assert report[0]["tokens"] == []


def test_the_command_says_what_is_missing(folder: Path):
    with pytest.raises(ConfigError, match="--bsds, --panoptic or --labels"):
        run_eval(parse("--maps", "sobel"))
    with pytest.raises(ConfigError, match="numbers separated by commas"):
        run_eval(parse("--labels", str(folder), str(folder), "--maps", "sobel", "--counts", "a"))
    with pytest.raises(ConfigError, match="split 'val' of BSDS500 in .* is not a folder"):
        run_eval(parse("--bsds", str(folder), "--maps", "sobel"))
