"""From features and token maps to vectors: exact means, shapes, every layout, every precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn

from subtok_data.errors import ConfigError
from subtok_data.nn import TokenEmbedding, pool_tokens, roi_pool_tokens, shape_codes, token_cells
from subtok_data.nn.intervals import area_intervals, bilinear_intervals
from subtok_data.segment import measure, token_shapes


def random_map(rng: np.random.Generator, height: int, width: int, count: int) -> torch.Tensor:
    """A map in which each of ``count`` tokens has at least one pixel, parts scattered at random."""
    flat = rng.integers(0, count, height * width)
    flat[rng.permutation(height * width)[:count]] = np.arange(count)
    return torch.from_numpy(flat.reshape(height, width))


def block_map(rng: np.random.Generator, height: int, width: int, count: int) -> torch.Tensor:
    """Connected tokens: cells of random sites by distance, renumbered without gaps."""
    sites = rng.integers(0, [height, width], (count, 2))
    y, x = np.mgrid[:height, :width]
    near = ((y[..., None] - sites[:, 0]) ** 2 + (x[..., None] - sites[:, 1]) ** 2).argmin(-1)
    return torch.from_numpy(np.unique(near, return_inverse=True)[1].reshape(height, width))


def make_batch(
    seed: int, *, images: int = 3, canvas: int = 48, shapes: int = 0, padded: bool = True
) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    token_map = torch.full((images, canvas, canvas), -1)
    sizes = [
        (int(rng.integers(canvas // 2, canvas + 1)), canvas) if padded else (canvas, canvas)
        for _ in range(images)
    ]
    maps = [block_map(rng, h, w, int(rng.integers(2, 9))) for h, w in sizes]
    counts = [int(m.max()) + 1 for m in maps]
    widest = max(counts)
    boxes = torch.zeros(images, widest, 4)
    mask = torch.zeros(images, widest, dtype=torch.bool)
    for i, (token, (h, w)) in enumerate(zip(maps, sizes, strict=True)):
        token_map[i, :h, :w] = token
        mask[i, : counts[i]] = True
        for k in range(counts[i]):
            y, x = torch.nonzero(token == k, as_tuple=True)
            boxes[i, k] = torch.tensor(
                [x.min() / w, y.min() / h, (x.max() + 1) / w, (y.max() + 1) / h]
            )
    return {
        "pixel_values": torch.randn(images, 3, canvas, canvas),
        "valid_sizes": torch.tensor(sizes),
        "map_sizes": torch.tensor(sizes),
        "visual_token_map": token_map.to(torch.int32),
        "num_visual_tokens": torch.tensor(counts),
        "visual_token_mask": mask,
        "visual_token_boxes": boxes,
    }


def brute_mean(
    features: torch.Tensor, token_map: torch.Tensor, count: int, valid: tuple[int, int], stride: int
) -> torch.Tensor:
    """Mean over tokens on a grid so fine that pixel and cell borders both lie on it."""
    height, width = token_map.shape
    fine_y, fine_x = height * valid[0], width * valid[1]  # valid[0] fine rows per map pixel
    y = torch.arange(fine_y)
    x = torch.arange(fine_x)
    token = token_map[(y // valid[0])[:, None], (x // valid[1])[None]]
    # One canvas pixel is `height` fine rows.
    cell_y = (y // (height * stride)).clamp_max(features.shape[1] - 1)
    cell_x = (x // (width * stride)).clamp_max(features.shape[2] - 1)
    values = features[:, cell_y[:, None], cell_x[None]]
    return torch.stack([values[:, token == k].mean(1) for k in range(count)])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    map_size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    valid=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    stride=st.integers(1, 5),
    count=st.integers(1, 6),
)
def test_area_mean_equals_brute_force(seed, map_size, valid, stride, count):
    rng = np.random.default_rng(seed)
    count = min(count, map_size[0] * map_size[1])
    token = random_map(rng, *map_size, count)
    canvas = torch.full((1, map_size[0] + 2, map_size[1] + 1), -1)
    canvas[0, : map_size[0], : map_size[1]] = token
    features = torch.from_numpy(rng.normal(size=(1, 2, -(-12 // stride), -(-12 // stride))))
    features = features.float().requires_grad_()
    cells = token_cells(
        canvas,
        [count],
        (features.shape[2], features.shape[3]),
        pixel_size=(12, 12),
        map_sizes=[map_size],
        valid_sizes=[valid],
        stride=stride,
    )
    pooled = pool_tokens(features, cells)
    expected = brute_mean(features[0], token, count, valid, stride)
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-5)
    direction = torch.from_numpy(rng.normal(size=tuple(pooled.shape))).float()
    (ours,) = torch.autograd.grad((pooled * direction).sum(), features)
    (theirs,) = torch.autograd.grad((expected * direction).sum(), features)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampling", ["area", "bilinear"])
@pytest.mark.parametrize("side", [5, 8, 80])
def test_cells_are_a_histogram_in_both_orders(sampling, side):
    rng = np.random.default_rng(side)
    maps = torch.stack([random_map(rng, 40, 40, 30) for _ in range(2)])
    maps[1, 25:] = -1
    sizes = [(40, 40), (25, 40)]
    found = token_cells(
        maps, [30, 30], (side, side), pixel_size=(40, 40), map_sizes=sizes, sampling=sampling
    )
    intervals = area_intervals if sampling == "area" else bilinear_intervals
    share = torch.zeros(60, 2 * side * side, dtype=torch.float64)
    for image, (height, width) in enumerate(sizes):
        y, cell_y, length_y = map(torch.from_numpy, intervals(height, 40, side, (40, side)))
        x, cell_x, length_x = map(torch.from_numpy, intervals(width, 40, side, (40, side)))
        token = maps[image][y][:, x] + 30 * image
        cell = image * side * side + cell_y[:, None] * side + cell_x
        area = length_y[:, None] * length_x
        inside = maps[image][y][:, x] >= 0
        place = (token * share.shape[1] + cell)[inside]
        share += torch.bincount(place, area[inside], share.numel()).view_as(share)
    expected = (share / share.sum(1, keepdim=True)).float()
    token, cell = expected.nonzero(as_tuple=True)
    assert torch.equal(found.token, token)
    assert torch.equal(found.cell, cell)
    torch.testing.assert_close(found.weight, expected[token, cell], rtol=1e-6, atol=0)
    counts = torch.bincount(token, minlength=60)
    assert torch.equal(found.token_start, F.pad(counts.cumsum(0), (1, 0)))
    by_cell, token_by_cell = expected.T.nonzero(as_tuple=True)
    assert torch.equal(found.cell[found.by_cell], by_cell)
    assert torch.equal(found.token[found.by_cell], token_by_cell)
    counts = torch.bincount(cell, minlength=share.shape[1])
    assert torch.equal(found.cell_start, F.pad(counts.cumsum(0), (1, 0)))


@pytest.mark.parametrize("seed", range(3))
def test_bilinear_mean_equals_upsampled_features(seed):
    rng = np.random.default_rng(seed)
    token = block_map(rng, 48, 32, 12)
    count = int(token.max()) + 1
    features = torch.randn(1, 5, 6, 4)
    cells = token_cells(token[None], [count], (6, 4), pixel_size=(48, 32), sampling="bilinear")
    full = F.interpolate(features, size=(48, 32), mode="bilinear", align_corners=False)[0]
    expected = torch.stack([full[:, token == k].mean(1) for k in range(count)])
    torch.testing.assert_close(pool_tokens(features, cells), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampling", ["area", "bilinear"])
def test_padding_of_the_canvas_does_not_leak(sampling):
    rng = np.random.default_rng(1)
    token = torch.full((1, 64, 64), -1)
    token[0, :40, :56] = block_map(rng, 40, 56, 9)
    count = int(token.max()) + 1
    features = torch.zeros(1, 1, 8, 8)
    features[0, 0, 5:] = torch.nan  # rows 40.. of the canvas are padding
    features[0, 0, :, 7:] = torch.nan
    cells = token_cells(
        token,
        [count],
        (8, 8),
        pixel_size=(64, 64),
        map_sizes=[(40, 56)],
        valid_sizes=[(40, 56)],
        sampling=sampling,
    )
    assert torch.equal(pool_tokens(features, cells), torch.zeros(count, 1))


def test_patches_that_do_not_divide_are_not_stretched():
    # 14-pixel patches cover 504 of 512 pixels; a token inside patch (10, 20) reads that patch only.
    token = torch.zeros(1, 512, 512, dtype=torch.int64)
    token[0, 140:154, 280:294] = 1
    token[0, 506:, 506:] = 2
    features = torch.arange(36 * 36.0).view(1, 1, 36, 36)
    cells = token_cells(token, [3], (36, 36), pixel_size=(512, 512), stride=14)
    pooled = pool_tokens(features, cells)
    assert pooled[1].item() == 10 * 36 + 20
    assert pooled[2].item() == 36 * 36 - 1  # beyond the last patch: the nearest one
    with pytest.raises(ConfigError, match="stride="):
        token_cells(token, [3], (36, 36), pixel_size=(512, 512))


def test_a_stride_that_is_none_is_refused():
    token = torch.zeros(1, 64, 64, dtype=torch.int64)
    with pytest.raises(ConfigError, match=r"no stride of 4.*about 16"):
        token_cells(token, [1], (4, 4), pixel_size=(64, 64), stride=4)
    with pytest.raises(ConfigError, match="no stride of 32"):
        token_cells(token, [1], (4, 4), pixel_size=(64, 64), stride=32)


def test_map_of_another_resolution_gives_the_same_mean():
    token = torch.arange(4).view(2, 2).repeat_interleave(16, 0).repeat_interleave(16, 1)[None]
    features = torch.randn(1, 3, 8, 8)
    whole = pool_tokens(features, token_cells(token, [4], (8, 8), pixel_size=(32, 32)))
    half = pool_tokens(features, token_cells(token[:, ::2, ::2], [4], (8, 8), pixel_size=(32, 32)))
    finer = pool_tokens(features, token_cells(token, [4], (8, 8), pixel_size=(8, 8)))
    torch.testing.assert_close(half, whole)
    torch.testing.assert_close(finer, whole)


def test_maps_that_contradict_the_counts_are_refused():
    token = torch.tensor([[[0, 1], [1, 1]]])
    with pytest.raises(ValueError, match="token 2 of image 0 has no pixel"):
        token_cells(token, [3], (2, 2), pixel_size=(2, 2))
    with pytest.raises(ValueError, match="holds token 1, but num_visual_tokens is 1"):
        token_cells(token, [1], (2, 2), pixel_size=(2, 2))
    cells = token_cells(token, [2], (2, 2), pixel_size=(2, 2))
    with pytest.raises(ValueError, match="were made for"):
        pool_tokens(torch.zeros(1, 1, 4, 4), cells)


def test_shape_codes_are_exact_crops_where_bins_are_finer():
    rng = np.random.default_rng(3)
    token = block_map(rng, 20, 20, 6)
    count = int(token.max()) + 1
    codes = shape_codes(token[None], [count], 40)
    for k in range(count):
        y, x = torch.nonzero(token == k, as_tuple=True)
        crop = (token == k)[y.min() : y.max() + 1, x.min() : x.max() + 1]
        scaled = F.interpolate(crop[None, None].float(), size=(40, 40), mode="nearest-exact")[0, 0]
        assert torch.equal(codes[k], scaled.bool())


@pytest.mark.parametrize("side", [1, 3, 8, 32])
def test_shape_codes_equal_those_of_the_batch(side):
    rng = np.random.default_rng(side)
    token = block_map(rng, 150, 90, 25)
    diagonal = torch.arange(90)
    token[30 + diagonal, diagonal] = int(token.max()) + 1  # thinner than a bin
    token[149, 5] = int(token.max()) + 1
    count = int(token.max()) + 1
    as_array = token.numpy().astype(np.int16)
    expected = token_shapes(as_array, measure(as_array, count).boxes, side)
    ours = shape_codes(token[None], [count], side)
    assert torch.equal(ours, torch.from_numpy(expected))
    assert ours.flatten(1).any(1).all()


@pytest.mark.parametrize("pooling", ["area", "bilinear", "roi"])
def test_layouts_agree_and_gradients_reach_features(pooling):
    batch = make_batch(0, padded=pooling != "roi")
    torch.manual_seed(0)
    embedding = TokenEmbedding(6, 10, pooling=pooling, shape_size=8)
    features = torch.randn(3, 6, 12, 12, requires_grad=True)
    packed = embedding(features, batch)
    padded = embedding(features, batch, layout="padded")
    mask = batch["visual_token_mask"]
    assert packed.shape == (int(mask.sum()), 10)
    torch.testing.assert_close(padded[mask], packed)
    assert not padded[~mask].any()
    packed.square().sum().backward()
    assert features.grad is not None
    assert features.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in embedding.parameters())


def test_packed_batches_are_read_the_same():
    batch = make_batch(2)
    embedding = TokenEmbedding(4, 8, shape_size=8)
    features = torch.randn(3, 4, 12, 12)
    mask = batch["visual_token_mask"]
    packed = {k: v for k, v in batch.items() if k != "visual_token_mask"}
    packed["visual_token_boxes"] = batch["visual_token_boxes"][mask]
    counts = F.pad(batch["num_visual_tokens"].cumsum(0), (1, 0))
    packed["visual_cu_seqlens"] = counts.to(torch.int32)
    assert torch.equal(embedding(features, packed), embedding(features, batch))


def test_given_shapes_are_used_and_checked():
    batch = make_batch(4)
    embedding = TokenEmbedding(4, 8, shape_size=8)
    features = torch.randn(3, 4, 12, 12)
    expected = embedding(features, batch)
    codes = shape_codes(
        batch["visual_token_map"],
        batch["num_visual_tokens"].tolist(),
        8,
        map_sizes=batch["map_sizes"].tolist(),
    )
    mask = batch["visual_token_mask"]
    shapes = torch.zeros(*mask.shape, 8, 8, dtype=torch.bool)
    shapes[mask] = codes
    assert torch.equal(embedding(features, {**batch, "visual_token_shapes": shapes}), expected)
    with pytest.raises(ConfigError, match="4 bins per side"):
        embedding(features, {**batch, "visual_token_shapes": shapes[..., :4, :4]})
    with pytest.raises(ConfigError, match="no 'visual_token_boxes'"):
        embedding(features, {k: v for k, v in batch.items() if k != "visual_token_boxes"})
    with pytest.raises(ConfigError, match="feature_dim is 4"):
        embedding(torch.zeros(3, 5, 12, 12), batch)


@pytest.mark.parametrize("mode", ["autocast", "module", "features"])
def test_bf16_neither_empties_nor_misplaces_a_token(mode):
    # Two tokens one pixel apart at the far end of a 1,024-pixel canvas: bf16 boxes would coincide.
    token = torch.zeros(1, 1024, 1024, dtype=torch.int64)
    token[0, 1000:1010, 1020] = 1
    token[0, 1000:1010, 1021] = 2
    boxes = (
        torch.tensor([[[0, 0, 1, 1], [1020, 1000, 1021, 1010], [1021, 1000, 1022, 1010]]]) / 1024.0
    )
    boxes[0, 0] = torch.tensor([0, 0, 1.0, 1.0])
    batch = {
        "pixel_values": torch.zeros(1, 3, 1024, 1024),
        "visual_token_map": token.to(torch.int32),
        "num_visual_tokens": torch.tensor([3]),
        "visual_token_mask": torch.ones(1, 3, dtype=torch.bool),
        "visual_token_boxes": boxes,
    }
    seen = {}

    def record(module, inputs):
        seen["hidden"] = inputs[0]

    torch.manual_seed(0)
    embedding = TokenEmbedding(8, 64, shape_size=4)
    with torch.no_grad():  # the position alone, scaled so that one pixel is more than a bf16 step
        embedding.content.weight.zero_()
        embedding.position.bias.zero_()
        embedding.position.weight.zero_()
        embedding.position.weight[0, 0] = 1024.0
        embedding.position.weight[0, 4:] = -1020.0 / 16
    features = torch.ones(1, 8, 64, 64)
    embedding.head.register_forward_pre_hook(record)
    if mode == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = embedding(features, batch)
    elif mode == "module":
        out = embedding.bfloat16()(features.bfloat16(), batch)
    else:
        out = embedding(features.bfloat16(), batch)
    assert torch.isfinite(out.float()).all()
    # Centres are 1020.5 and 1021.5 pixels; 1020 was taken off before anything was rounded.
    assert seen["hidden"][1, 0].item() == pytest.approx(0.5, abs=0.01)
    assert seen["hidden"][2, 0].item() == pytest.approx(1.5, abs=0.01)
    content = pool_tokens(
        features.bfloat16(),
        token_cells(token, [3], (64, 64), pixel_size=(1024, 1024)),
    )
    torch.testing.assert_close(content, torch.ones(3, 8), rtol=1e-4, atol=0)


def test_roi_pooling_is_the_mean_of_a_rectangle():
    token = torch.zeros(1, 32, 32, dtype=torch.int64)
    token[0, :, 16:] = 1
    features = torch.zeros(1, 2, 32, 32)
    features[0, 1, :, 16:] = 1.0
    content, masks = roi_pool_tokens(features, token, [2], 8)
    torch.testing.assert_close(content, torch.tensor([[0.0, 0.0], [0.0, 1.0]]), atol=0.07, rtol=0)
    assert masks.shape == (2, 8, 8)
    assert masks.flatten(1).any(1).all()


def test_paper_variant_has_the_papers_layers():
    embedding = TokenEmbedding.paper(384, 32)
    linears = [m for m in embedding.modules() if isinstance(m, nn.Linear)]
    assert all(m.bias is None for m in linears)
    assert sum(m.weight.numel() for m in linears) == 1412 * 32 + 32 * 128 + 128 * 32
    assert embedding(torch.randn(3, 384, 6, 6), make_batch(0, padded=False)).shape[1] == 32


def test_bad_options_are_refused():
    with pytest.raises(ConfigError, match="choose 'area'"):
        TokenEmbedding(4, 8, pooling="max")
    with pytest.raises(ConfigError, match="shape_size"):
        TokenEmbedding(4, 8, pooling="roi", shape_size=0)
    assert (
        TokenEmbedding(4, 8, shape_size=0)(torch.randn(3, 4, 12, 12), make_batch(1)).shape[1] == 8
    )
