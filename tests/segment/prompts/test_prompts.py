"""Prompts: what they accept, what they refuse, and how they move with their image."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp
from torchvision.transforms import v2

from subtok_data.data import PromptColumns
from subtok_data.data.datasets.augmentation import (
    augment,
    keyed_randomness,
    prompts_from_tensors,
    prompts_to_tensors,
)
from subtok_data.data.datasets.sample import Sample, decode_row
from subtok_data.errors import ConfigError, PromptError, SampleError
from subtok_data.segment import Prompts, RLEMasks, pixel_box
from subtok_data.segment.masks.rle import encode_mask
from subtok_data.segment.prompts.boxes import box_runs

SIZE = (40, 60)


def sample_with(prompts: Prompts, image: np.ndarray) -> Sample:
    return Sample([image], {}, 0, False, [prompts.size], [None], prompts=[prompts])


@st.composite
def boxes_of(draw: st.DrawFn, size: tuple[int, int] = SIZE) -> tuple[int, int, int, int]:
    x0 = draw(st.integers(0, size[1] - 1))
    y0 = draw(st.integers(0, size[0] - 1))
    return x0, y0, draw(st.integers(x0 + 1, size[1])), draw(st.integers(y0 + 1, size[0]))


@given(boxes_of())
def test_box_runs_are_those_of_the_mask(box: tuple[int, int, int, int]) -> None:
    mask = np.zeros(SIZE, np.bool_)
    mask[box[1] : box[3], box[0] : box[2]] = True
    assert box_runs(box, SIZE).tolist() == encode_mask(mask).tolist()


@given(hnp.arrays(np.float32, 4, elements=st.floats(0, 40, width=32)))
def test_pixels_of_a_box_are_never_none(box: np.ndarray) -> None:
    box = np.concatenate([np.minimum(box[:2], box[2:]), np.maximum(box[:2], box[2:])])
    x0, y0, x1, y1 = pixel_box(box, (40, 40))
    assert 0 <= x0 < x1 <= 40
    assert 0 <= y0 < y1 <= 40
    assert np.abs(np.array([x0, y0, x1, y1]) - box).max() <= 1


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"boxes": [[0, 0, 9, 9], [5, 5, 2, 8]]}, r"prompt 1: box \[5.0, 5.0, 2.0, 8.0\] is empty"),
        ({"boxes": [[5, 5, 5, 8]]}, "is empty"),
        ({"boxes": [[5, 5, 70, 8]]}, "outside the image of 40 × 60 pixels"),
        ({"boxes": [[-5, 5, 20, 8]]}, "outside the image"),
        ({"boxes": [[60, 5, 61, 8]]}, "outside the image"),
        ({"boxes": [[5, 5, np.nan, 8]]}, "NaN or infinite"),
        ({"boxes": [[5, 5, np.inf, 8]]}, "NaN or infinite"),
        ({"boxes": [[np.nan] * 4]}, "neither a box, nor a point with label 1"),
        ({"boxes": [[1, 2, 3]]}, r"boxes of shape \(1, 3\): expected \(P, 4\)"),
        ({"boxes": [["a", 2, 3, 4]]}, "not an array of numbers"),
        ({"boxes": [[0, 0, 4, 4]], "texts": ["a", "b"]}, "1 boxes, 2 texts"),
        ({"points": [[61, 2]]}, "outside the image"),
        ({"points": [[np.nan, 2]]}, "NaN or infinite"),
        ({"points": [[3, 4]], "labels": [0]}, "neither a box"),
        ({"points": [[3, 4]], "labels": [7]}, "expected 1"),
        ({"points": [[3, 4]], "labels": [[1, 1]]}, "labels of shape"),
        ({"points": [3, 4]}, "points of shape"),
        ({"labels": [1]}, "labels without points"),
        ({"masks": [np.ones((4, 4), bool)]}, r"prompt 0: mask of shape \(4, 4\)"),
        ({"masks": [np.full(SIZE, 7)]}, "values other than 0 and 1"),
        ({"masks": [np.zeros(SIZE, bool)]}, "neither a box"),
        ({"masks": RLEMasks.from_masks([np.ones((4, 4), bool)])}, "masks of 4 × 4 pixels"),
        ({}, "no prompts"),
    ],
)
def test_prompts_that_cannot_be_regions_are_refused(given_: dict, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        Prompts.of(SIZE, **given_)


def test_an_unknown_box_format_is_refused() -> None:
    with pytest.raises(ConfigError, match="cxcywh"):
        Prompts.of(SIZE, boxes=[[1, 2, 3, 4]], box_format="cxcywh")  # type: ignore[arg-type]


def test_annotations_that_reach_a_pixel_over_the_edge_are_cut_off() -> None:
    prompts = Prompts.of(SIZE, boxes=[[-0.5, 3, 10, 41]])
    assert prompts.boxes.tolist() == [[0, 3, 10, 40]]


def test_no_prompts_at_all_are_fine() -> None:
    prompts = Prompts.of(SIZE, boxes=[])
    assert len(prompts) == 0
    assert len(prompts.resized((20, 30)).regions()) == 0
    assert prompts_to_tensors(prompts) == {}


def test_kinds_mix_and_travel() -> None:
    mask = np.zeros(SIZE, bool)
    mask[3:9, 4:8] = True
    prompts = Prompts.of(
        SIZE,
        boxes=[[1, 2, 30, 20], [np.nan] * 4, [np.nan] * 4],
        points=[[[0, 0]], [[5.5, 7.5]], [[0, 0]]],
        labels=[[-1], [1], [-1]],
        masks=[np.zeros(SIZE, bool), np.zeros(SIZE, bool), mask],
        texts=["a", "b", "c"],
    )
    regions = pickle.loads(pickle.dumps(prompts)).regions()
    assert regions.areas.tolist() == [29 * 18, 1, 24]
    assert regions.mask(1)[7, 5]
    assert prompts.bounds().tolist() == [[1, 2, 30, 20], [5, 7, 6, 8], [4, 3, 8, 9]]
    back = Prompts.from_evidence(prompts.to_evidence())
    assert back is not None
    assert back.regions().counts.tolist() == regions.counts.tolist()
    assert back.texts is None
    kept = prompts.take([2, 0])
    assert kept.ids.tolist() == [2, 0]
    assert kept.texts == ("c", "a")
    assert kept.regions().areas.tolist() == [24, 29 * 18]


@given(boxes_of(), st.integers(1, 90), st.integers(1, 90))
def test_no_region_gets_lost_by_resizing(
    box: tuple[int, int, int, int], height: int, width: int
) -> None:
    mask = np.zeros(SIZE, bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    prompts = Prompts.of(SIZE, boxes=[box, [np.nan] * 4], masks=[mask & False, mask])
    resized = prompts.resized((height, width))
    assert (resized.regions().areas >= 1).all()
    assert resized.regions().size == (height, width)


# --- with an augmentation --------------------------------------------------------------------


def coloured(boxes: list[tuple[int, int, int, int]]) -> np.ndarray:
    """Paint box k in colour k + 1 on black, later ones on top."""
    image = np.zeros((*SIZE, 3), np.uint8)
    for k, (x0, y0, x1, y1) in enumerate(boxes):
        image[y0:y1, x0:x1] = k + 1
    return image


def visible(boxes: list[tuple[int, int, int, int]], image: np.ndarray) -> list[np.ndarray]:
    return [image[..., 0] == k + 1 for k in range(len(boxes))]


@given(st.lists(boxes_of(), min_size=1, max_size=5), st.integers(0, 2**31), st.data())
def test_masks_and_texts_follow_their_colour(
    boxes: list[tuple[int, int, int, int]], seed: int, data: st.DataObject
) -> None:
    image = coloured(boxes)
    shapes = visible(boxes, image)
    seen = [k for k, shape in enumerate(shapes) if shape.any()]
    prompts = Prompts.of(SIZE, masks=[shapes[k] for k in seen], texts=[str(k + 1) for k in seen])
    crop = data.draw(st.tuples(st.integers(4, 40), st.integers(4, 60)))
    transform = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomCrop(crop)])
    with keyed_randomness(seed):
        moved = augment(sample_with(prompts, image), transform)
    assert moved.prompts is not None
    after = moved.prompts[0]
    assert after.size == crop == moved.images[0].shape[:2]
    assert after.texts is not None
    assert after.masks is not None
    for k, text in enumerate(after.texts):
        assert (after.masks.mask(k) == (moved.images[0][..., 0] == int(text))).all()
    gone = {str(k + 1) for k in seen} - set(after.texts)
    assert not any((moved.images[0][..., 0] == int(text)).any() for text in gone)
    assert after.texts == tuple(str(seen[k] + 1) for k in after.ids)


@given(boxes_of(), st.integers(0, 2**31), st.integers(4, 40), st.integers(4, 60))
def test_a_box_is_what_is_left_of_its_rectangle(
    box: tuple[int, int, int, int], seed: int, height: int, width: int
) -> None:
    image = coloured([box])
    prompts = Prompts.of(SIZE, boxes=[box], points=[[(box[0] + 0.5, box[1] + 0.5)]])
    transform = v2.Compose([v2.RandomVerticalFlip(), v2.RandomCrop((height, width))])
    with keyed_randomness(seed):
        moved = augment(sample_with(prompts, image), transform)
    assert moved.prompts is not None
    after = moved.prompts[0]
    left = moved.images[0][..., 0] == 1
    assert len(after) == int(left.any())
    if len(after):
        rows, columns = np.flatnonzero(left.any(1)), np.flatnonzero(left.any(0))
        expected = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert after.boxes[0].tolist() == expected
        if after.has_point[0]:
            x, y = after.points[0, 0]
            assert left[int(y), int(x)]


def test_overlapping_masks_take_as_few_layers_as_they_need() -> None:
    shapes = [np.zeros(SIZE, bool) for _ in range(3)]
    shapes[0][:20], shapes[1][10:30], shapes[2][30:] = True, True, True
    prompts = Prompts.of(SIZE, masks=shapes)
    layers = prompts_to_tensors(prompts)["masks"]
    assert layers.shape == (2, *SIZE)
    back = prompts_from_tensors(prompts, {"masks": layers}, SIZE)
    assert back.masks is not None
    assert all((back.masks.mask(k) == shapes[k]).all() for k in range(3))


def test_a_transform_that_removes_boxes_is_refused() -> None:
    prompts = Prompts.of(SIZE, boxes=[[0, 0, 3, 3], [30, 20, 60, 40]])
    transform = v2.Compose([v2.CenterCrop(20), v2.SanitizeBoundingBoxes(labels_getter=None)])
    with pytest.raises(ConfigError, match="SanitizeBoundingBoxes"):
        augment(sample_with(prompts, np.zeros((*SIZE, 3), np.uint8)), transform)


def test_a_transform_that_leaves_masks_behind_is_refused() -> None:
    prompts = Prompts.of(SIZE, masks=[np.ones(SIZE, bool)])

    def only_the_image(inputs: dict) -> dict:
        return {**inputs, "image": torch.zeros(3, 8, 8, dtype=torch.uint8)}

    with pytest.raises(ConfigError, match="masks of"):
        augment(sample_with(prompts, np.zeros((*SIZE, 3), np.uint8)), only_the_image)


# --- columns ---------------------------------------------------------------------------------


def test_columns_become_prompts_and_leave_the_row() -> None:
    row = {
        "image": np.zeros((*SIZE, 3), np.uint8),
        "objects": [[1, 2, 3, 4]],
        "names": ["a"],
        "id": 5,
    }
    columns = PromptColumns(boxes="objects", box_format="xywh", texts="names")
    sample = decode_row(row, image_column="image", prompts=columns)
    assert sample.columns == {"id": 5}
    assert sample.prompts is not None
    assert sample.prompts[0].boxes.tolist() == [[1, 2, 4, 6]]
    assert sample.prompts[0].texts == ("a",)


def test_rows_of_several_images_and_rows_without_prompts() -> None:
    image = np.zeros((*SIZE, 3), np.uint8)
    columns = PromptColumns(boxes="boxes", points="points")
    row = {"image": [image, image], "boxes": [[[0, 0, 9, 9]], None], "points": [None, [[3, 4]]]}
    sample = decode_row(row, image_column="image", prompts=columns)
    assert sample.prompts is not None
    assert [len(one) for one in sample.prompts] == [1, 1]
    empty = {"image": image, "boxes": None, "points": None}
    sample = decode_row(empty, image_column="image", prompts=columns)
    assert sample.prompts is not None
    assert len(sample.prompts[0]) == 0
    with pytest.raises(ConfigError, match="3 entries for 2 images"):
        decode_row({**row, "boxes": [None] * 3}, image_column="image", prompts=columns)


def test_a_bad_prompt_names_its_sample() -> None:
    row = {"image": np.zeros((*SIZE, 3), np.uint8), "boxes": [[0, 0, 9, 9], [0, 0, 900, 9]]}
    with pytest.raises(SampleError, match=r"sample 7 failed in decode: prompt 1: box .* outside"):
        decode_row(row, image_column="image", index=7, prompts=PromptColumns(boxes="boxes"))


def test_columns_that_are_missing_or_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="name a column"):
        PromptColumns(texts="phrases")
    with pytest.raises(ConfigError, match="column of points"):
        PromptColumns(boxes="boxes", labels="labels")
    with pytest.raises(ConfigError, match="no prompt column 'boxes'"):
        decode_row(
            {"image": np.zeros((4, 4), np.uint8)},
            image_column="image",
            prompts=PromptColumns(boxes="boxes"),
        )
