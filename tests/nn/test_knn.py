from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from helpers.peak_memory import peak, reset_peak
from hypothesis import given, settings, strategies as st

from subtok_data.errors import ConfigError
from subtok_data.nn import nearest_neighbors, smooth_feature_map, smooth_scores


def brute_force(scores, features, k, iterations, mask, weights):
    """The definition, one position at a time."""
    images, count, _ = scores.shape
    values = scores.copy()
    values[~mask] = 0
    neighbors = {}
    for image in range(images):
        for i in range(count):
            if not mask[image, i]:
                continue
            similar = []
            for j in range(count):
                if not mask[image, j]:
                    continue
                a, b = features[image, i], features[image, j]
                cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
                similar.append((np.inf if i == j else cosine, j))
            neighbors[image, i] = [j for _, j in sorted(similar, reverse=True)[:k]]
    for _ in range(iterations):
        before = values.copy()
        for (image, i), chosen in neighbors.items():
            share = weights[image, chosen]
            values[image, i] = (share[:, None] * before[image, chosen]).sum(0) / share.sum()
    return values


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    images=st.integers(1, 3),
    count=st.integers(1, 12),
    k=st.integers(1, 5),
    iterations=st.integers(0, 6),
    chunk=st.integers(1, 13),
    weighted=st.booleans(),
)
def test_equals_a_loop_over_positions(seed, images, count, k, iterations, chunk, weighted):
    rng = np.random.default_rng(seed)
    scores = rng.random((images, count, 4))
    features = rng.normal(size=(images, count, 6))
    real = rng.integers(1, count + 1, size=images)
    mask = np.arange(count) < real[:, None]
    weights = rng.uniform(0.1, 2, (images, count)) if weighted else np.ones((images, count))
    smooth = smooth_scores(
        torch.from_numpy(scores),
        torch.from_numpy(features),
        k=k,
        iterations=iterations,
        mask=torch.from_numpy(mask),
        weights=torch.from_numpy(weights) if weighted else None,
        chunk_size=chunk,
    )
    expected = brute_force(scores, features, k, iterations, mask, weights)
    np.testing.assert_allclose(smooth.numpy(), expected, atol=1e-12)


def test_defaults_of_the_paper_on_a_feature_map():
    rng = np.random.default_rng(0)
    scores, features = rng.random((2, 5, 6, 7)), rng.normal(size=(2, 9, 6, 7))
    smooth = smooth_feature_map(torch.from_numpy(scores), torch.from_numpy(features))
    flat = [values.reshape(2, -1, 42).transpose(0, 2, 1) for values in (scores, features)]
    expected = brute_force(*flat, 3, 25, np.ones((2, 42), bool), np.ones((2, 42)))
    np.testing.assert_allclose(
        smooth.numpy(), expected.transpose(0, 2, 1).reshape(2, 5, 6, 7), atol=1e-12
    )


def test_each_position_is_its_own_first_neighbor_even_among_twins():
    features = torch.ones(1, 50, 4)
    index, found = nearest_neighbors(features, 3, chunk_size=7)
    assert index[0, :, 0].tolist() == list(range(50))
    assert found.all()


def test_images_of_a_batch_do_not_mix():
    torch.manual_seed(0)
    scores, features = torch.rand(3, 20, 4), torch.randn(3, 20, 8)
    whole = smooth_scores(scores, features)
    single = torch.cat([smooth_scores(scores[i : i + 1], features[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(whole, single)


def test_padding_changes_nothing_and_stays_zero():
    torch.manual_seed(0)
    scores, features = torch.rand(1, 6, 3), torch.randn(1, 6, 5)
    padded = torch.cat([scores, torch.full((1, 4, 3), torch.nan)], 1)
    more = torch.cat([features, torch.randn(1, 4, 5)], 1)
    mask = torch.arange(10)[None] < 6
    smooth = smooth_scores(padded, more, mask=mask)
    torch.testing.assert_close(smooth[:, :6], smooth_scores(scores, features))
    assert not smooth[:, 6:].any()


def test_probabilities_stay_probabilities():
    torch.manual_seed(0)
    scores = torch.rand(2, 30, 5).softmax(-1)
    smooth = smooth_scores(scores, torch.randn(2, 30, 8))
    torch.testing.assert_close(smooth.sum(-1), torch.ones(2, 30))


def test_keeps_the_dtype_and_has_a_gradient():
    scores = torch.rand(1, 5, 2, dtype=torch.bfloat16, requires_grad=True)
    smooth = smooth_scores(scores, torch.randn(1, 5, 3, dtype=torch.bfloat16))
    assert smooth.dtype == torch.bfloat16
    smooth.sum().backward()
    assert scores.grad is not None


def test_neighbors_without_weight_count_alike():
    scores, features = torch.tensor([[[1.0], [3.0]]]), torch.ones(1, 2, 2)
    smooth = smooth_scores(scores, features, iterations=1, weights=torch.zeros(1, 2))
    assert smooth.flatten().tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": 0}, "k=0"),
        ({"iterations": -1}, "iterations=-1"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"mask": torch.ones(1, 4)}, "mask"),
        ({"weights": torch.ones(1, 3)}, "weights"),
        ({"features": torch.ones(1, 5, 2)}, "features"),
    ],
)
def test_refuses_what_does_not_fit(change, words):
    options = {"features": torch.rand(1, 4, 2)} | change
    features = options.pop("features")
    with pytest.raises(ConfigError, match=words):
        smooth_scores(torch.rand(1, 4, 3), features, **options)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_is_bounded_by_the_chunk():
    # 20,000 positions: a matrix of all pairs would be 1.6 GB.
    features, scores = torch.randn(1, 20_000, 4), torch.rand(1, 20_000, 2)
    before = reset_peak()
    smooth_scores(scores, features, iterations=1, chunk_size=256)
    assert peak() - before < 200
