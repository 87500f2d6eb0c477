"""The form in which a GPU runs a network: the same maps, and nothing of the process is touched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.boundary_networks import Constant, pictures
from hypothesis import given, settings, strategies as st
from torch import nn

from subtok_data.boundary import BoundaryModel, LiteBoundaryNet
from subtok_data.boundary.conversion import FixedConvolutions, inference_copy
from subtok_data.boundary.lite import LiteConfig
from subtok_data.boundary.network import BoundaryNetwork
from subtok_data.errors import ConfigError

DTYPES = {"float32": 1, "tf32": 1, "bfloat16": 25, "float16": 3}
"""Largest difference to float32, in levels."""


@pytest.fixture
def converts(monkeypatch) -> None:
    """Let a CPU run networks as a GPU does."""
    monkeypatch.setattr(BoundaryNetwork, "is_converted", True)


def with_random_norms(module: nn.Module, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.01, 4)
            if part.affine:
                nn.init.uniform_(part.weight, -2, 2)
                nn.init.normal_(part.bias)
    return module.eval()


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 2**31))
def test_folded_is_unfolded(seed):
    net = with_random_norms(LiteBoundaryNet(LiteConfig(decoder_channels=8)), seed).double()
    kept = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    pixels = torch.randn(2, 3, 32, 64, dtype=torch.float64)
    folded = inference_copy(net, torch.float64)
    with torch.inference_mode():
        expected, found = net(pixels), folded(pixels)
    assert (found - expected).abs().max() <= 1e-9 * expected.abs().max()
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, kept[name])
    # One is behind a sum, where there is no convolution to fold it into.
    assert sum(isinstance(part, nn.BatchNorm2d) for part in folded.modules()) == 1


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_any_convolution_folds(bias, affine):
    class Pair(nn.Sequential):
        def foldable(self):
            return [("0", "1")]

    pair = Pair(
        nn.Conv2d(3, 4, 3, stride=2, bias=bias),
        nn.BatchNorm2d(4, eps=0.1, affine=affine),
        nn.ReLU(),
    )
    pixels = torch.randn(2, 3, 9, 9)
    with_random_norms(pair, 1)
    torch.testing.assert_close(inference_copy(pair, torch.float32)(pixels), pair(pixels))


def test_norms_that_remain_keep_their_range():
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.LayerNorm(8)).eval()
    net[1].running_var.fill_(1e6)  # infinite in float16
    half = inference_copy(net, torch.float16)
    assert half[0].weight.dtype == half[2].weight.dtype == torch.float16
    assert half[1].running_var.dtype == torch.float32
    assert net[0].weight.dtype == torch.float32
    assert net[0].weight.requires_grad
    assert not half[0].weight.requires_grad


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 3),
    st.sampled_from([0, 2, (1, 0), "same", "valid"]),
    st.sampled_from([1, 2, (1, 2)]),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 2, 3, (2, 5)]),
    st.booleans(),
)
def test_fixed_convolutions_are_convolutions(stride, padding, dilation, groups, kernel, bias):
    if padding == "same":
        stride = 1
    layer = nn.Conv2d(4, 6, kernel, stride, padding, dilation, groups, bias)
    pixels = torch.randn(2, 4, 13, 17)
    expected = layer(pixels)
    with FixedConvolutions(allow_tf32=False):
        found = layer(pixels)
        one = layer(pixels[0])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(one, layer(pixels[0]))


def test_fixed_convolutions_of_other_kinds():
    pixels = torch.randn(2, 4, 9, 9)
    weight = torch.randn(4, 3, 3, 3)
    for options in ({}, {"stride": 2, "padding": 1, "output_padding": 1, "dilation": (1, 2)}):
        expected = F.conv_transpose2d(pixels, weight, **options)
        with FixedConvolutions(allow_tf32=True):
            torch.testing.assert_close(F.conv_transpose2d(pixels, weight, **options), expected)
    single = nn.Conv1d(4, 2, 3)
    expected = single(pixels[:, :, 0])
    with FixedConvolutions(allow_tf32=True):
        assert torch.equal(single(pixels[:, :, 0]), expected)
        named = torch.conv2d(input=pixels, weight=torch.randn(2, 4, 1, 1))
    assert named.shape == (2, 2, 9, 9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_converted_network_gives_the_maps(converts, monkeypatch, dtype):
    images = pictures((96, 128), (64, 64), (50, 60))
    with monkeypatch.context() as patched:
        patched.setattr(BoundaryNetwork, "is_converted", False)
        exact = BoundaryModel.from_pretrained(device="cpu", dtype="float32").predict(images)
    model = BoundaryModel.from_pretrained(device="cpu", dtype=dtype)
    for one, two in zip(exact, model.predict(images), strict=True):
        assert np.abs(one.astype(int) - two).max() <= DTYPES[dtype]
    # What it is, and what is saved of it, is the network itself.
    assert model.config_hash == BoundaryModel.from_pretrained(device="cpu").config_hash
    assert model.num_parameters > 3_000_000


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_converted_segformer_gives_the_maps(converts, monkeypatch):
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    config = SegformerConfig(num_labels=1, hidden_sizes=[8, 16, 32, 64], decoder_hidden_size=16)
    network = SegformerForSemanticSegmentation(config)
    images = pictures((96, 128), (64, 64))
    found = BoundaryModel(network, dtype="bfloat16").predict(images)
    monkeypatch.setattr(BoundaryNetwork, "is_converted", False)
    exact = BoundaryModel(network, dtype="float32").predict(images)
    for one, two in zip(exact, found, strict=True):
        assert np.abs(one.astype(int) - two).max() <= 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_of_the_process_is_touched(converts, monkeypatch, dtype):
    """Training in another thread keeps its algorithms and its cache of cast weights."""
    images = pictures((64, 64))
    model = BoundaryModel.from_pretrained(device="cpu", dtype=dtype)

    def forbidden(*given):
        raise AssertionError(f"a setting of the process was changed: {given}")

    for name in (
        "_set_cudnn_benchmark",
        "_set_cudnn_deterministic",
        "_set_cudnn_allow_tf32",
        "_set_cublas_allow_tf32",
    ):
        monkeypatch.setattr(torch._C, name, forbidden)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "clear_autocast_cache", forbidden)
        expected = model.predict(images)[0]
    # The user's own autocast is left alone, and changes nothing.
    with torch.autocast("cpu", torch.bfloat16), monkeypatch.context() as patched:
        patched.setattr(torch, "clear_autocast_cache", forbidden)
        assert np.array_equal(model.predict(images)[0], expected)


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", False), ("tf32", True)])
def test_float32_is_not_tf32(converts, monkeypatch, dtype, allowed):
    seen = []
    convolve = FixedConvolutions._convolve

    def spy(self, *arguments):
        seen.append(self._allow_tf32)
        return convolve(self, *arguments)

    monkeypatch.setattr(FixedConvolutions, "_convolve", spy)
    model = BoundaryModel.from_pretrained(device="cpu", dtype=dtype)
    model.predict(pictures((32, 32)))
    assert seen == [allowed] * 62
    assert model.dtype == torch.float32


def test_a_network_that_makes_its_own_float32_says_so(converts):
    class Own(Constant):
        def forward(self, pixels):
            return F.conv2d(pixels, torch.ones(1, 3, 4, 4), stride=4)

    model = BoundaryModel(Own(), dtype="bfloat16", name="own")
    with pytest.raises(ConfigError, match=r"'own' does not run .* bfloat16.*dtype='float32'"):
        model.predict(pictures((32, 32)))
    assert BoundaryModel(Own(), dtype="float32").predict(pictures((32, 32)))
