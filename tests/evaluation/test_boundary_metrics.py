"""Boundary figures: matching proven by hand and by brute force, then the Berkeley definitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from subtok_data.errors import ConfigError
from subtok_data.evaluation import read_bsds
from subtok_data.evaluation.boundary_metrics import (
    BoundaryCounts,
    canny_map,
    count_boundaries,
    score_boundaries,
    sobel_map,
    thin_edges,
)
from subtok_data.evaluation.matching import match_boundaries, maximum_matching


def lines(*rows: int, shape: tuple[int, int] = (30, 30)) -> NDArray[np.bool_]:
    drawn = np.zeros(shape, bool)
    for row in rows:
        drawn[row] = True
    return drawn


def test_a_pixel_is_matched_once():
    # Three predicted pixels near one human pixel: one partner, two false alarms.
    prediction, human = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    prediction[4, 3:6] = True
    human[4, 4] = True
    hit, found = match_boundaries(prediction, human, 2)
    assert hit.sum() == found.sum() == 1
    assert hit[4, 4]


def test_greedy_choices_are_revised():
    # The middle pixel's nearest partner is the only one of its neighbour: it must give way.
    prediction, human = np.zeros((1, 12), bool), np.zeros((1, 12), bool)
    prediction[0, [4, 5]] = True
    human[0, [3, 7]] = True
    assert match_boundaries(prediction, human, 2)[0].sum() == 2
    graph = np.array([0, 2, 3, 5]), np.array([0, 1, 0, 1, 2], np.int32)
    assert sorted(maximum_matching(*graph, 3).tolist()) == [0, 1, 2]


@pytest.mark.parametrize(("gap", "matched"), [(2, 30), (3, 0)])
def test_the_distance_is_a_limit(gap: int, matched: int):
    hit, _ = match_boundaries(lines(10), lines(10 + gap), 2.5)
    assert hit.sum() == matched


pictures = arrays(bool, (7, 8), elements=st.booleans())


@settings(max_examples=150)
@given(pictures, pictures, st.sampled_from([1.0, 1.5, 2.0, 3.2]))
def test_as_many_are_matched_as_an_assignment_can(
    prediction: NDArray[np.bool_], human: NDArray[np.bool_], reach: float
):
    hit, found = match_boundaries(prediction, human, reach)
    assert hit.sum() == found.sum()
    assert not (hit & ~prediction).any()
    assert not (found & ~human).any()
    a, b = np.argwhere(prediction), np.argwhere(human)
    if not len(a) or not len(b):
        assert not hit.any()
        return
    near = np.hypot(*(a[:, None] - b[None]).transpose(2, 0, 1)) <= reach
    chosen = linear_sum_assignment(near, maximize=True)
    assert hit.sum() == near[chosen].sum()


def test_sizes_must_agree():
    with pytest.raises(ConfigError, match="resize"):
        match_boundaries(np.ones((2, 2), bool), np.ones((2, 3), bool), 1)


def test_thinning_keeps_the_crest():
    ridge = np.maximum(0, 200 - 40 * np.abs(np.arange(41) - 20.0))
    for boundary in (np.tile(ridge, (41, 1)), np.tile(ridge, (41, 1)).T):
        crest = thin_edges(boundary.astype(np.uint8))
        assert np.count_nonzero(crest) == 41
        assert (crest[crest > 0] == 200).all()
    y, x = np.indices((60, 60))
    ring = np.maximum(0, 200 - 40 * np.abs(np.hypot(y - 30, x - 30) - 18)).astype(np.uint8)
    crest = thin_edges(ring)
    off = np.abs(np.hypot(y - 30, x - 30) - 18)
    assert off[crest > 100].max() < 1.5
    assert (crest[off < 0.5] > 0).mean() > 0.9
    assert thin_edges(np.full((1, 5), 9, np.uint8)).shape == (1, 5)


def test_a_perfect_map_scores_one():
    human = lines(10, 20)
    scores = score_boundaries([count_boundaries(human * np.uint8(255), [human, human])])
    assert scores.ods == scores.ois == 1.0
    assert (scores.precision == 1).all()
    assert (scores.recall == 1).all()


def test_recall_counts_every_human_and_precision_any():
    one, two = lines(8), lines(20)
    counts = count_boundaries(one * np.uint8(255), [one, two], thresholds=1)
    assert counts.matched_prediction.tolist() == [30]
    assert counts.predicted.tolist() == [30]
    assert counts.matched_annotation.tolist() == [30]
    assert counts.annotated.tolist() == [60]
    scores = score_boundaries([counts])
    assert scores.ods == pytest.approx(2 / 3)


def test_one_threshold_for_all_or_one_for_each():
    # The first image is best at the low threshold, the second at the high one.
    first = BoundaryCounts(*np.array([[10, 2], [10, 2], [10, 2], [10, 10]]))
    second = BoundaryCounts(*np.array([[10, 10], [40, 10], [10, 10], [10, 10]]))
    scores = score_boundaries([first, second])
    precision, recall = np.array([20 / 50, 12 / 12]), np.array([20 / 20, 12 / 20])
    assert scores.ods == pytest.approx((2 * precision * recall / (precision + recall)).max())
    assert scores.ois == 1.0
    assert scores.ods_threshold == pytest.approx(2 / 3)


def test_nothing_to_compare_is_refused():
    with pytest.raises(ConfigError, match="no annotations"):
        count_boundaries(np.zeros((4, 4), np.uint8), [])
    with pytest.raises(ConfigError, match="no images"):
        score_boundaries([])
    a = count_boundaries(np.zeros((4, 4), np.uint8), [lines(1, shape=(4, 4))], thresholds=3)
    b = count_boundaries(np.zeros((4, 4), np.uint8), [lines(1, shape=(4, 4))], thresholds=4)
    with pytest.raises(ConfigError, match="different numbers"):
        score_boundaries([a, b])
    assert score_boundaries([a]).ods == 0.0


@pytest.mark.parametrize("make", [sobel_map, canny_map])
def test_baselines_find_an_edge(make: object):
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 30:] = 200
    boundary = make(image)  # type: ignore[operator]
    assert boundary.shape == (40, 60)
    assert boundary.dtype == np.uint8
    strongest = np.flatnonzero(boundary[20] == boundary[20].max())
    assert abs(strongest.mean() - 29.5) <= 1
    assert boundary[20, 5] == 0


@pytest.mark.data
def test_sobel_on_photos_is_where_it_is_known_to_be(data_dir: Path):
    images = read_bsds(data_dir / "bsds500").every(4)
    counts = [count_boundaries(sobel_map(o.image), o.boundaries, thresholds=19) for o in images]
    assert 0.5 < score_boundaries(counts).ods < 0.75
