"""Maps averaged over scales: their definition, what is refused, and what identifies them."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.boundary_networks import Constant, Red, pictures
from hypothesis import given, strategies as st

from subtok_data.boundary import BoundaryModel
from subtok_data.boundary.scales import MAX_SCALE, check_scales, scaled_size
from subtok_data.errors import ConfigError, ImageError, WeightsError


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    planes = F.interpolate(planes, size, mode="bicubic", align_corners=False, antialias=True)
    return planes.round().clamp(0, 255).to(torch.uint8)[0].permute(1, 2, 0).numpy()


def test_against_the_definition():
    """Each scale by a model of its own, brought back to the image's size, and averaged."""
    image = pictures((70, 90))[0]
    one = BoundaryModel.from_pretrained(device="cpu", dtype="float32")
    total = torch.zeros(70, 90)
    for scale in (0.5, 1.0, 1.5):
        size = (round(70 * scale), round(90 * scale))
        levels = torch.from_numpy(one.predict([resized(image, size)])[0]).float()
        total += F.interpolate(
            levels[None, None], (70, 90), mode="bilinear", align_corners=False, antialias=True
        )[0, 0]
    model = BoundaryModel.from_pretrained(device="cpu", dtype="float32", scales=(1.5, 0.5, 1))
    assert model.scales == (0.5, 1.0, 1.5)
    # The reference rounds to levels before the mean, the model only after it.
    assert np.abs(model.predict([image])[0] - (total / 3).numpy()).max() <= 1.01


def test_one_scale_gives_the_bits_of_no_scales():
    images = pictures((40, 70), (64, 64), (1, 200))
    plain = BoundaryModel.from_pretrained(device="cpu")
    given_one = BoundaryModel.from_pretrained(device="cpu", scales=[1])
    assert given_one.config_hash == plain.config_hash
    for one, two in zip(plain.predict(images), given_one.predict(images), strict=True):
        assert np.array_equal(one, two)


def test_a_map_does_not_depend_on_its_batch():
    images = pictures((64, 64), (96, 70), (64, 64), (64, 65))
    model = BoundaryModel.from_pretrained(device="cpu", scales=(1.0, 1.5))
    for image, found in zip(images, model.predict(images), strict=True):
        assert np.array_equal(model.predict([image])[0], found)
        assert np.array_equal(model.predict_on_device([torch.from_numpy(image)])[0].numpy(), found)


@given(
    st.tuples(st.integers(32, 80), st.integers(32, 80)),
    st.lists(st.floats(1, 2), min_size=1, max_size=3, unique=True),
)
def test_a_constant_map_stays_constant_at_any_scales(size, scales):
    model = BoundaryModel(Constant(0.7), dtype="float32", scales=scales)
    levels = model.predict([np.zeros((*size, 3), np.uint8)])[0]
    assert levels.shape == size
    assert np.unique(levels).tolist() == [round(255 / (1 + np.exp(-0.7)))]


def test_tiles_at_every_scale():
    seen: list[tuple[int, ...]] = []

    class Spy(Red):
        def forward(self, pixels):
            seen.append(tuple(pixels.shape[-2:]))
            return super().forward(pixels)

    image = pictures((64, 192))[0]
    options = {"mean": (0.5, 0, 0), "std": (0.25, 1, 1), "dtype": "float32", "scales": (1.0, 2.0)}
    whole = BoundaryModel(Red(), **options).predict([image])[0].astype(int)
    tiled = BoundaryModel(Spy(), tile=128, overlap=32, **options).predict([image])[0]
    assert np.abs(whole - tiled).max() <= 1
    assert {max(sides) for sides in seen} == {128}


def test_scales_identify_the_map():
    def hash_of(**options: object) -> str:
        torch.manual_seed(0)
        return BoundaryModel(Red(), **options).config_hash

    found = [hash_of(scales=s) for s in ((1.0,), (1.5,), (1.0, 1.5), (1.0, 2.0))]
    assert len(set(found)) == 4
    assert hash_of(scales=(1.5, 1.0)) == found[2]


def test_scales_show_and_travel():
    model = BoundaryModel.from_pretrained(device="cpu", scales=(1.0, 1.5))
    assert "scales=(1.0, 1.5)" in repr(model)
    copy = pickle.loads(pickle.dumps(model))
    assert copy.scales == model.scales
    assert copy.config_hash == model.config_hash


def test_scales_are_saved_and_loaded(tmp_path):
    model = BoundaryModel.from_pretrained(device="cpu", scales=(1.0, 1.5))
    model.save_pretrained(tmp_path)
    again = BoundaryModel.from_pretrained(tmp_path, device="cpu")
    assert again.scales == (1.0, 1.5)
    assert again.config_hash == model.config_hash
    plain = BoundaryModel.from_pretrained(tmp_path, device="cpu", scales=[1.0])
    assert plain.scales == (1.0,)
    plain.save_pretrained(tmp_path)
    assert BoundaryModel.from_pretrained(tmp_path, device="cpu").scales == (1.0,)


@pytest.mark.parametrize(
    "values",
    [
        {"tile": None, "overlap": 128, "scales": "1", "canvas_step": 32},
        {"tile": None, "overlap": 128, "scales": [1], "canvas_step": 32},
        {"tile": None, "overlap": 128, "canvas_step": 32},
        {"tile": 1.5, "overlap": 128, "scales": [1.0], "canvas_step": 32},
        {"tile": None, "overlap": 128, "scales": [1.0], "canvas_step": "32"},
    ],
)
def test_damaged_options_are_refused(tmp_path, values):
    BoundaryModel.from_pretrained(device="cpu", scales=(1.0, 1.5)).save_pretrained(tmp_path)
    (tmp_path / "maps.json").write_text(json.dumps(values))
    with pytest.raises(WeightsError, match=r"maps\.json holds .*scales"):
        BoundaryModel.from_pretrained(tmp_path, device="cpu")
    values = {"tile": None, "overlap": 128, "scales": [9.0], "canvas_step": 32}
    (tmp_path / "maps.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"scales\[0\]=9"):
        BoundaryModel.from_pretrained(tmp_path, device="cpu")


def test_maps_are_ordinary_tensors():
    model = BoundaryModel(Constant(), dtype="float32", scales=(1.0, 1.5))
    with torch.inference_mode():
        maps = model.predict_on_device(pictures((50, 60)))
    assert not maps[0].is_inference()
    assert maps[0].dtype == torch.uint8
    assert maps[0].is_contiguous()


def test_not_finite_at_one_scale_is_found():
    class SpoilsLarge(Constant):
        def forward(self, pixels):
            value = float("nan") if pixels.shape[-1] > 64 else 0.0
            return super().forward(pixels) + value

    model = BoundaryModel(SpoilsLarge(), dtype="float32", scales=(1.0, 2.0))
    assert model.predict_on_device(pictures((32, 64), (32, 32))).finite.tolist() == [False, True]


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ((), "scales is empty"),
        ((1.0, 0.0), r"scales\[1\]=0.0 .* above 0 and at most 4"),
        ((-1,), r"scales\[0\]=-1"),
        ((4.01,), r"scales\[0\]=4.01"),
        ((float("nan"),), r"scales\[0\]=nan"),
        ((float("inf"),), r"scales\[0\]=inf"),
        ((1.0, "2"), r"scales\[1\]='2'"),
        ((True,), r"scales\[0\]=True"),
        ((1.5, 1, 1.5), "twice"),
        (1.5, "sequence of numbers"),
        ("1.5", "sequence of numbers"),
    ],
)
def test_refused_scales(scales, message):
    with pytest.raises(ConfigError, match=message):
        BoundaryModel(Constant(), scales=scales)


@given(st.lists(st.floats(0.01, MAX_SCALE), min_size=1, max_size=5, unique=True))
def test_scales_are_sorted_and_kept(scales):
    assert check_scales(scales) == tuple(sorted(scales))


def test_images_too_small_for_a_scale():
    model = BoundaryModel(Constant(), dtype="float32", scales=(0.5, 1.0))
    images = [np.zeros((64, 64, 3), np.uint8), np.zeros((62, 90, 3), np.uint8)]
    with pytest.raises(ImageError, match=r"image 1 of 2 is 62 x 90.*scale 0.5 makes 31 x 45"):
        model.predict(images)
    assert scaled_size((1, 3), 1.0, 0, 1) == (1, 3)
    assert BoundaryModel(Constant(), dtype="float32", scales=(1.0, 1.5)).predict(
        [np.zeros((1, 3, 3), np.uint8)]
    )[0].shape == (1, 3)
