"""Large-scale jitter, and flips that leave left and right alone."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from helpers.region_rows import coloured_row
from hypothesis import given, strategies as st
from torch import nn
from torchvision import transforms as v1, tv_tensors
from torchvision.transforms import v2

from subtok_data import SubobjectCollator, SubobjectDataset, SubobjectTokenizer, validate_batch
from subtok_data.data import (
    LargeScaleJitter,
    RegionDataset,
    TextSafeHorizontalFlip,
    tokenize_dataset,
)
from subtok_data.data.datasets.transforms import names_a_side, refuse_plain_flips
from subtok_data.errors import ConfigError

SAYS = [
    *("left", "Right", "the LEFT one", "left.", "on the right, below", "left/right", "far-right"),
    *("lefthand side", "right-hand", "righthanded", "left handed", "leftmost", "rightmost pen"),
    *("leftward", "rightwards", "left_ear", "leftside", "2nd from left", "“left”", "right?"),
]
SAYS_NOT = [
    *("leftover rice", "leftovers", "bright light", "upright piano", "copyright", "cleft", "deft"),
    *("rightful owner", "a frightened cat", "righteous", "", "lefty", "brightly", "outright"),
]


@pytest.mark.parametrize("text", SAYS)
def test_texts_that_name_a_side(text):
    assert names_a_side(text)


@pytest.mark.parametrize("text", SAYS_NOT)
def test_texts_that_name_none(text):
    assert not names_a_side(text)


def test_other_languages_name_their_sides():
    assert names_a_side("das linke Haus links", ("links", "rechts"))
    assert not names_a_side("rechtschaffen", ("links", "rechts"))


def test_rows_that_name_a_side_are_never_flipped_and_others_half_the_time():
    rows = [coloured_row(seed, most=3) for seed in (2, 3)]
    rows[0]["regions"][-1]["phrases"] = ["the box on the left"]
    for region in rows[1]["regions"]:
        region["phrases"] = ["a bright box"]
    dataset = RegionDataset(rows, transform=TextSafeHorizontalFlip())
    flips = [0, 0]
    for epoch in range(100):
        dataset.set_epoch(epoch)
        for index in range(2):
            sample = dataset[index]
            flipped = not np.array_equal(sample.image, rows[index]["image"])
            flips[index] += flipped
            if flipped:
                assert np.array_equal(sample.image, rows[index]["image"][:, ::-1])
    assert flips[0] == 0
    assert 30 < flips[1] < 70


def test_other_texts_of_the_row_hold_a_flip_back_too():
    row = coloured_row(2, most=3)
    flip = TextSafeHorizontalFlip(1.0)
    for column, flipped in (
        ({"caption": "Turn Left at the sign"}, False),
        ({"messages": [{"role": "user", "content": "What is on the right?"}]}, False),
        ({"caption": "a bright day", "number": 3}, True),
    ):
        image = RegionDataset([row | column], transform=flip)[0].image
        assert np.array_equal(image, row["image"][:, ::-1] if flipped else row["image"])


class Hidden:
    """A transform of the user's own, with a flip in an attribute."""

    def __init__(self) -> None:
        self.steps = {"first": [v2.RandomHorizontalFlip(0.1)]}

    def __call__(self, inputs):
        return self.steps["first"][0](inputs)


def _in_closure():
    flip = v2.RandomHorizontalFlip()
    return lambda inputs: flip(inputs)


class HorizontalFlip:
    """As other libraries of augmentation call it."""

    def __call__(self, inputs):
        return inputs


PLAIN = [
    v2.RandomHorizontalFlip(),
    v1.RandomHorizontalFlip(),
    v2.Compose([v2.Resize(8), v2.RandomHorizontalFlip()]),
    v1.Compose([v1.RandomHorizontalFlip()]),
    v2.RandomApply([v2.RandomHorizontalFlip()]),
    v2.Compose([v2.RandomChoice([v2.Identity(), v2.RandomHorizontalFlip()])]),
    nn.Sequential(v2.RandomHorizontalFlip()),
    Hidden(),
    Hidden().__call__,
    _in_closure(),
    functools.partial(Hidden().__call__),
    v2.Compose([HorizontalFlip()]),
    v2.Lambda(v2.functional.horizontal_flip),
]


@pytest.mark.parametrize("transform", PLAIN, ids=lambda t: type(t).__name__)
def test_plain_flips_are_refused(transform):
    with pytest.raises(ConfigError, match="TextSafeHorizontalFlip"):
        RegionDataset([coloured_row(1)], transform=transform)


def test_other_transforms_are_not():
    for transform in (
        None,
        v2.RandomVerticalFlip(),
        TextSafeHorizontalFlip(),
        v2.Compose([LargeScaleJitter(64), v2.RandomApply([TextSafeHorizontalFlip()])]),
        functools.partial(v2.functional.resize, size=[8]),
    ):
        refuse_plain_flips(transform)


@given(
    st.integers(8, 80),
    st.integers(8, 80),
    st.integers(8, 64),
    st.floats(0.1, 2.0),
    st.integers(0, 1000),
)
def test_jitter_moves_boxes_masks_and_pixels_alike(height, width, size, scale, seed):
    """A rectangle of a colour, its mask and its box stay one."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    y0, x0 = height // 4, width // 4
    y1, x1 = y0 + max(3, height // 2), x0 + max(3, width // 2)
    image[:, y0:y1, x0:x1] = 255
    inputs = {
        "image": tv_tensors.Image(image),
        "masks": tv_tensors.Mask((image[:1] > 0).int()),
        "boxes": tv_tensors.BoundingBoxes(
            torch.tensor([[x0, y0, x1, y1]], dtype=torch.float32),
            format="XYXY",
            canvas_size=(height, width),
        ),
    }
    torch.manual_seed(seed)
    moved = LargeScaleJitter(size, (scale, scale), fill=(7, 7, 7))(inputs)
    picture, mask = moved["image"][0].int(), moved["masks"][0].bool()
    assert picture.shape == mask.shape == (size, size)
    assert moved["image"].dtype == torch.uint8
    sure = (picture > 250) | (picture < 5)
    if sure.any():
        assert ((picture > 128) == mask)[sure].float().mean() > 0.9
    left, top, right, bottom = moved["boxes"][0].tolist()
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    if len(rows):
        found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        expected = [left, top, right, bottom]
        assert np.abs(np.array(found) - expected).max() <= 1 + 1e-3


def test_scale_is_drawn_over_the_whole_range_and_padding_is_the_mean_colour():
    image = tv_tensors.Image(torch.full((3, 64, 64), 200, dtype=torch.uint8))
    shares = []
    for seed in range(300):
        torch.manual_seed(seed)
        moved = LargeScaleJitter(64, (0.1, 1.0))({"image": image})["image"]
        shares.append(float((moved == 200).all(0).float().mean()) ** 0.5)
    assert min(shares) < 0.15
    assert max(shares) > 0.97
    assert abs(np.mean(shares) - 0.55) < 0.05
    assert moved[:, -1, -1].tolist() == [124, 116, 104]


def test_without_padding_small_pictures_stay_small():
    torch.manual_seed(0)
    image = tv_tensors.Image(torch.zeros(3, 40, 80, dtype=torch.uint8))
    moved = LargeScaleJitter(64, (0.5, 0.5), pad=False)({"image": image})["image"]
    assert moved.shape == (3, 16, 32)


def test_stored_tokens_move_and_padding_is_a_token_of_its_own(tmp_path):
    rows = [coloured_row(seed, most=4) for seed in range(3)]
    tokenizer = SubobjectTokenizer(size=64)
    tokenize_dataset(rows, tokenizer, tmp_path / "tokens")
    transform = LargeScaleJitter(64, (0.5, 0.8))
    stored = RegionDataset(rows, tokens=tmp_path / "tokens", transform=transform, empty="keep")
    batch = SubobjectCollator(tokenizer)([stored[index] for index in range(3)])
    validate_batch(batch)
    for image in range(3):
        corner = batch["visual_token_map"][image, -1, -1]
        inside = batch["visual_token_map"][image] == corner
        assert (stored[image].image[inside.numpy()] == (124, 116, 104)).all()
    plain = SubobjectDataset(rows, tokens=tmp_path / "tokens", transform=transform)
    assert plain[0].token_maps[0].shape == (64, 64)


@pytest.mark.parametrize("options", [{"size": 0}, {"scale": (0, 1)}, {"scale": (2, 1)}])
def test_jitter_that_cannot_work_is_refused(options):
    with pytest.raises(ConfigError, match="LargeScaleJitter"):
        LargeScaleJitter(**{"size": 64, **options})
