"""On a device: how often the host waits, equal results, gradients, equal bits of two runs."""

from __future__ import annotations

import contextlib

import pytest
import torch
from helpers.fake_device import DEVICE, FakeDevice, fake, real
from torch import nn

from subtok_data.nn import (
    TokenEmbedding,
    merge_visual_tokens,
    pool_tokens,
    shape_codes,
    token_cells,
)

from .test_compile import PLACEHOLDER, batch_of

COUNTS = [20, 25, 7, 12]


class Step(nn.Module):
    """Features of an encoder, visual tokens, text, one number."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 8, 8, stride=8)
        self.embedding = TokenEmbedding(8, 16, shape_size=4, stride=8, **options)
        self.text = nn.Embedding(10, 16)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        vectors = self.embedding(self.encoder(batch["pixel_values"]), batch)
        ids = batch["input_ids"]
        return merge_visual_tokens(self.text(ids), ids, vectors, PLACEHOLDER).square().mean()


def step_of(pooling: str) -> Step:
    torch.manual_seed(0)
    return Step(pooling=pooling)


@pytest.mark.parametrize("pooling", ["area", "bilinear"])
@pytest.mark.parametrize(("on_host", "waits"), [(True, 1), (False, 2)])
@pytest.mark.parametrize("has_shapes", [False, True])
def test_a_step_waits_once_for_the_text_and_once_for_maps_on_the_device(
    monkeypatch, pooling, on_host, waits, has_shapes
):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    batch = batch_of(0, COUNTS)
    if has_shapes:
        mask = batch["visual_token_mask"]
        shapes = torch.zeros(*mask.shape, 4, 4, dtype=torch.bool)
        shapes[mask] = shape_codes(batch["visual_token_map"], COUNTS, 4)
        batch["visual_token_shapes"] = shapes
    exact = step_of(pooling)
    loss = exact(batch)
    loss.backward()
    step = fake(step_of(pooling))
    moved = {
        key: value if on_host and key in TokenEmbedding.host_keys else fake(value)
        for key, value in batch.items()
    }
    with FakeDevice() as device:
        found = step(moved)
        found.backward()
    assert sum(device.waits.values()) == waits, device.waits
    assert device.uploads == 1
    assert real(found) == loss
    for ours, theirs in zip(step.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(real(ours.grad), theirs.grad)


def test_cells_made_before_cost_nothing_in_the_step(monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    batch = batch_of(0, COUNTS)
    embedding = TokenEmbedding(8, 16, shape_size=4, stride=8)
    features = torch.randn(4, 8, 4, 4)
    expected = embedding(features, batch, layout="padded")
    cells = embedding.cells_of(batch, (4, 4))
    fake(embedding)
    with FakeDevice() as device:
        found = embedding(fake(features), batch, cells=cells.to(DEVICE), layout="padded")
    assert not device.waits
    assert torch.equal(real(found), expected.detach())


def test_all_of_a_batch_may_stay_on_the_host():
    batch = batch_of(0, COUNTS)
    text = torch.randn(4, 28, 16)
    vectors = torch.randn(sum(COUNTS), 16)
    expected = merge_visual_tokens(text, batch["input_ids"], vectors, PLACEHOLDER)
    padded = torch.zeros(4, 25, 16)
    padded[batch["visual_token_mask"]] = vectors
    mask = batch["visual_token_mask"]
    with FakeDevice() as device:
        found = merge_visual_tokens(fake(text), batch["input_ids"], fake(vectors), PLACEHOLDER)
        again = merge_visual_tokens(
            fake(text), batch["input_ids"], fake(padded), PLACEHOLDER, visual_token_mask=mask
        )
    assert not device.waits
    assert torch.equal(real(found), expected)
    assert torch.equal(real(again), expected)


def test_the_fake_device_notices_waits_and_mixed_tensors():
    values = torch.arange(6.0)
    with FakeDevice() as device:
        moved = fake(values)
        moved[moved > 2]
        moved.sum().item()
        (moved + 1).cpu()
        values.to(DEVICE)
        with pytest.raises(RuntimeError, match="and on the CPU"):
            moved + values
    assert sum(device.waits.values()) == 3, device.waits
    assert device.uploads == 1


def one_image(seed: int) -> tuple[torch.Tensor, int]:
    generator = torch.Generator().manual_seed(seed)
    token = torch.randint(0, 5, (1, 12, 12), generator=generator)
    token[0, 0, :5] = torch.arange(5)
    return token, 5


@pytest.mark.parametrize("sampling", ["area", "bilinear"])
def test_gradients_of_first_and_second_order(sampling):
    token, count = one_image(0)
    cells = token_cells(token, [count], (4, 3), pixel_size=(12, 12), sampling=sampling)
    features = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)

    def pool(values: torch.Tensor) -> torch.Tensor:
        return pool_tokens(values, cells).square()

    torch.autograd.gradcheck(pool, features)
    torch.autograd.gradgradcheck(pool, features)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("pooling", ["area", "bilinear"])
def test_deterministic_algorithms_take_a_step(pooling):
    batch = batch_of(0, COUNTS)
    found = []
    for _ in range(2):
        step = step_of(pooling)
        step(batch).backward()
        found.append([p.grad for p in step.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


# --- on a device ------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("pooling", ["area", "bilinear"])
@pytest.mark.usefixtures("deterministic")
def test_gpu_steps_are_those_of_the_cpu_twice_the_same(monkeypatch, pooling):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic products need
    batch = batch_of(0, COUNTS)
    exact = step_of(pooling)
    loss = exact(batch)
    loss.backward()
    runs = []
    for _ in range(2):
        step = step_of(pooling).cuda()
        found = step({key: value.cuda() for key, value in batch.items()})
        found.backward()
        runs.append([found.detach(), *(p.grad for p in step.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
    expected = [loss.detach(), *(p.grad for p in exact.parameters())]
    for ours, theirs in zip(runs[0], expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.*synchronization debug mode.*")
def test_gpu_embedding_waits_for_nothing_if_the_maps_are_on_the_host():
    batch = batch_of(0, COUNTS)
    embedding = TokenEmbedding(8, 16, shape_size=4, stride=8).cuda()
    features = torch.randn(4, 8, 4, 4, device="cuda", requires_grad=True)
    embedding(features, batch).sum().backward()  # kernels are loaded, memory is pinned
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        vectors = embedding(features, batch)
        text = torch.zeros(4, 28, 16, device="cuda")
        merged = merge_visual_tokens(text, batch["input_ids"], vectors, PLACEHOLDER)
        merged.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert vectors.is_cuda
