"""Forwards by CUDA graphs: what is captured, padded, shared and given up; on a GPU, their maps."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from helpers.boundary_networks import Constant, pictures

from subtok_data.boundary import BoundaryModel
from subtok_data.boundary.graphs import CaptureWarning, ForwardGraphs, padded_length
from subtok_data.boundary.network import BoundaryNetwork
from subtok_data.errors import ConfigError


class FakeCapture:
    """Replays on a CPU: writes down what is captured, with which pool."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.captured: list[tuple[int, ...]] = []
        self.pools: list[object] = []
        self.replays = 0

    def __call__(self, forward, inputs, pool):
        if self.error is not None:
            raise self.error
        self.captured.append(tuple(inputs.shape))
        self.pools.append(pool)

        def replay(given):
            assert given.shape == inputs.shape  # a graph has one shape
            self.replays += 1
            return forward(given)

        return replay, pool or object()


def doubled(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return rows * 2, rows.flatten(1).sum(1) > 0


def test_a_shape_is_captured_when_it_comes_again():
    capture = FakeCapture()
    graphs = ForwardGraphs(doubled, "two", capture=capture)
    for _ in range(2):
        graphs(torch.ones(4, 3))
        assert graphs.shapes == []
    for round_ in range(1, 4):
        assert graphs(torch.ones(4, 3))[0].shape == (4, 3)
        assert graphs.shapes == capture.captured == [(4, 3)]
        assert capture.replays == round_


def test_numbers_are_rounded_up_with_blanks():
    seen = []

    def forward(rows):
        seen.append(rows.clone())
        return doubled(rows)

    graphs = ForwardGraphs(forward, "two", capture=FakeCapture())
    for count in range(1, 17):
        rows = torch.rand(count, 5)
        values, flags = graphs(rows)
        assert torch.equal(values, rows * 2)
        assert flags.tolist() == [True] * count
        assert len(seen[-1]) == padded_length(count) in (1, 2, 4, 8, 16)
        assert not seen[-1][count:].any()
    assert {len(rows) for rows in seen} == {1, 2, 4, 8, 16}
    assert {shape[0] for shape in graphs.shapes} == {8, 16}  # three times or more


def test_graphs_share_a_pool():
    capture = FakeCapture()
    graphs = ForwardGraphs(doubled, "two", capture=capture)
    for width in (3, 4, 5) * 3:
        graphs(torch.ones(2, width))
    assert capture.captured == [(2, 3), (2, 4), (2, 5)]
    assert capture.pools[0] is None
    assert capture.pools[1] is not None
    assert capture.pools[1] is capture.pools[2]


def test_shapes_beyond_the_bound_run_as_they_are():
    graphs = ForwardGraphs(doubled, "two", most=2, capture=FakeCapture())
    for width in (3, 4, 5, 6) * 4:
        assert torch.equal(graphs(torch.ones(1, width))[0], torch.full((1, width), 2.0))
    assert graphs.shapes == [(1, 3), (1, 4)]


def test_what_cannot_be_captured_is_told_once_and_runs_as_it_is():
    graphs = ForwardGraphs(doubled, "odd", capture=FakeCapture(RuntimeError("not permitted")))
    for _ in range(2):
        graphs(torch.ones(1, 3))
    with pytest.warns(
        CaptureWarning, match=r"'odd' cannot be captured.*not permitted.*cuda_graphs"
    ):
        assert torch.equal(graphs(torch.ones(1, 3))[0], torch.full((1, 3), 2.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for width in (3, 4, 4, 4):
            graphs(torch.ones(1, width))
    assert graphs.shapes == []


def test_without_memory_all_graphs_give_theirs_back():
    full = False

    def forward(rows):
        if full:
            raise torch.OutOfMemoryError("full")
        return doubled(rows)

    capture = FakeCapture()
    graphs = ForwardGraphs(forward, "two", capture=capture)
    for _ in range(3):
        graphs(torch.ones(1, 3))
    assert graphs.shapes
    full = True
    with pytest.raises(torch.OutOfMemoryError):
        graphs(torch.ones(1, 4))
    assert graphs.shapes == []
    full = False
    capture.error = torch.OutOfMemoryError("full while capturing")
    for _ in range(2):
        graphs(torch.ones(1, 3))
    with pytest.raises(torch.OutOfMemoryError, match="while capturing"):
        graphs(torch.ones(1, 3))
    capture.error = None
    for _ in range(3):
        graphs(torch.ones(1, 3))
    assert graphs.shapes == [(1, 3)]
    assert capture.pools[-1] is None  # a new one


def test_a_model_launches_by_graphs(monkeypatch):
    images = pictures(*[(64, 64)] * 5, (64, 96), (50, 60))
    monkeypatch.setattr(BoundaryNetwork, "is_converted", True)
    monkeypatch.setattr(BoundaryNetwork, "cpu_batch", 8)
    capture = FakeCapture()
    monkeypatch.setattr("subtok_data.boundary.graphs.capture_on_cuda", capture)
    options = {"device": "cpu", "dtype": "float32"}
    plain = BoundaryModel.from_pretrained(**options)
    model = BoundaryModel.from_pretrained(**options, cuda_graphs=True)
    expected = plain.predict(images)
    for _ in range(4):
        for one, two in zip(expected, model.launch(images).result(), strict=True):
            assert np.abs(one.astype(int) - two).max() <= 1
    # Six of 64 x 64 run as eight; with graphs, a batch is cut to a power of two.
    assert capture.captured == [(8, 64, 64, 3), (1, 64, 96, 3)]
    assert capture.replays == 4
    assert model.config_hash == plain.config_hash
    model.to("cpu")  # graphs hold the weights of before
    model.launch(images)
    assert capture.replays == 4


def test_graphs_and_compiled_code_are_two_ways():
    with pytest.raises(ConfigError, match="cuda_graphs=True together with compile=True"):
        BoundaryModel(Constant(), cuda_graphs=True, compile=True)


# --- on a GPU ----------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_cuda_graphs_give_the_maps_of_the_network(dtype):
    images = pictures(*[(96, 128)] * 5, (64, 128), (50, 60))
    exact = BoundaryModel.from_pretrained(device="cpu", dtype="float32").predict(images)
    model = BoundaryModel.from_pretrained(device="cuda", dtype=dtype, cuda_graphs=True)
    plain = model.launch(images).result()
    for _ in range(3):
        found = model.launch(images).result()
    assert len(model._graphs.shapes) == 3
    for one, two, cpu in zip(plain, found, exact, strict=True):
        assert np.array_equal(one, two)
        assert np.abs(one.astype(int) - cpu).max() <= 3


@pytest.mark.gpu
def test_cuda_graphs_of_several_canvases_do_not_disturb_each_other():
    sets = [pictures((96, 128), (96, 128)), pictures((64, 160), (64, 160), seed=1)]
    model = BoundaryModel.from_pretrained(device="cuda", cuda_graphs=True)
    alone = [[model.launch(images).result() for _ in range(4)][-1] for images in sets]
    pending = [model.launch(sets[at % 2]) for at in range(6)]
    for at, one in enumerate(pending):
        for found, expected in zip(one.result(), alone[at % 2], strict=True):
            assert np.array_equal(found, expected)


@pytest.mark.gpu
def test_cuda_mates_change_nothing_where_their_number_is_the_same():
    images = pictures(*[(96, 128)] * 8)
    model = BoundaryModel.from_pretrained(device="cuda", cuda_graphs=True)
    for _ in range(3):
        expected = model.launch(images).result()
    for order in ([7, 6, 5, 4, 3, 2, 1, 0], [3, 1, 4, 0, 5], [2, 2, 2, 2, 2, 7]):
        found = model.launch([images[at] for at in order]).result()
        for at, one in zip(order, found, strict=True):
            assert np.array_equal(one, expected[at])
