"""Large images in tiles: they cover, blend without a seam, and change nothing they need not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.boundary_networks import Constant, Red, pictures
from hypothesis import given, settings, strategies as st

from subtok_data.boundary import BoundaryModel
from subtok_data.boundary.tiles import axis_starts, axis_weights, plan_tiles


class FadesAtItsFrame(Red):
    """Adds a lump of 16 pixels at the frame of whatever it sees, as zero padding does."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits = super().forward(pixels)
        inside = F.pad(torch.ones_like(logits[..., 4:-4, 4:-4]), (4, 4, 4, 4))
        return logits + 3 * (1 - inside)


@pytest.fixture(scope="module")
def packaged() -> BoundaryModel:
    return BoundaryModel.from_pretrained(device="cpu")


@settings(deadline=None)  # the first call of an operation of torch may take long
@given(
    st.integers(1, 60),
    st.integers(2, 12),
    st.data(),
)
def test_tiles_cover_and_weights_sum_to_one(length, tile, data):
    overlap = data.draw(st.integers(1, tile // 2))
    starts = axis_starts(length * 32, tile * 32, overlap * 32, 32)
    side = min(tile, length) * 32
    assert starts[0] == 0
    assert starts[-1] + side == length * 32
    gaps = np.diff(starts)
    assert (gaps > 0).all()
    assert (gaps <= (tile - overlap) * 32).all()
    small = [start // 4 for start in starts]
    total = torch.zeros(length * 8)
    for start, weight in zip(small, axis_weights(small, side // 4, length * 8), strict=True):
        assert (weight > 0).all()
        total[start : start + side // 4] += weight
    torch.testing.assert_close(total, torch.ones(length * 8))


@pytest.mark.parametrize("size", [(300, 500), (96, 800), (640, 640)])
def test_tiles_of_a_constant_are_constant(size):
    for value in (0.7, -2.0):
        model = BoundaryModel(Constant(value), dtype="float32", tile=128, overlap=32)
        levels = model.predict(pictures(size))[0]
        expected = round(255 / (1 + np.exp(-value)))
        assert (levels == expected).all()


def test_tiles_of_a_pointwise_network_change_nothing():
    images = pictures((300, 420))
    options = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2), "dtype": "float32"}
    whole = BoundaryModel(Red(), **options).predict(images)[0].astype(int)
    tiled = BoundaryModel(Red(), **options, tile=128, overlap=64).predict(images)[0]
    assert np.abs(tiled - whole).max() <= 1


def test_no_seam_where_the_network_errs_at_its_frame():
    flat = np.full((256, 640, 3), 90, np.uint8)
    tiled = BoundaryModel(FadesAtItsFrame(), dtype="float32", tile=256, overlap=96)
    assert len(plan_tiles((256, 640), 256, 96, 32).corners) == 4
    levels = tiled.predict([flat])[0].astype(int)
    plain = BoundaryModel(Red(), dtype="float32").predict([flat])[0].astype(int)
    middle = levels[128, 64:-64]
    # The lump of 16 pixels at each tile's frame weighs little where it meets the neighbour, and
    # no step is larger than the ramp of the blend.
    lump = np.abs(levels[128, 0] - plain[128, 0])
    assert lump > 100
    assert np.abs(middle - plain[128, 64:-64]).max() < lump / 6
    assert np.abs(np.diff(middle)).max() <= 3
    # At the frame of the image itself nothing is attenuated: as in a single tile.
    one = BoundaryModel(FadesAtItsFrame(), dtype="float32").predict([flat])[0].astype(int)
    assert np.array_equal(levels[:, :32], one[:, :32])


@pytest.mark.parametrize("tile", [96, 128, 4096])
def test_tile_as_large_as_the_image_is_the_untiled_map(packaged, tile):
    images = pictures((90, 96), (64, 80), (96, 96))
    whole = packaged.predict(images)
    tiled = BoundaryModel.from_pretrained(device="cpu", tile=tile, overlap=32).predict(images)
    for one, two in zip(whole, tiled, strict=True):
        assert np.array_equal(one, two)


def test_tiled_maps_resemble_whole_ones(packaged):
    images = pictures((256, 384), seed=4)
    whole = packaged.predict(images)[0].astype(int)
    tiled = BoundaryModel.from_pretrained(device="cpu", tile=128, overlap=64)
    assert np.abs(tiled.predict(images)[0] - whole).mean() < 12
    with_mates = tiled.predict([*pictures((64, 64)), *images, *pictures((256, 384), seed=5)])[1]
    assert np.array_equal(with_mates, tiled.predict(images)[0])
