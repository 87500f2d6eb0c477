"""Datasets of regions with texts: what is drawn, kept, lost, counted and replaced."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.batches import assert_same_batches
from helpers.region_rows import COLOURS, colour_of, coloured_row
from helpers.tiny_tokenizers import byte_tokenizer
from hypothesis import HealthCheck, given, settings, strategies as st
from torchvision.transforms import v2

from subtok_data import (
    PatchSegmenter,
    PromptColumns,
    SubobjectCollator,
    SubobjectLoader,
    SubobjectTokenizer,
    validate_batch,
)
from subtok_data.batch.validate import BatchError
from subtok_data.data import (
    LargeScaleJitter,
    MixedDataset,
    RegionColumns,
    RegionDataset,
    TextSafeHorizontalFlip,
)
from subtok_data.errors import ConfigError, SampleError
from subtok_data.segmenters import PromptedSegmenter
from subtok_data.text import RegionText

ROWS = [coloured_row(seed) for seed in range(12)]
COUNTS = [len(row["regions"]) for row in ROWS]


def tokenizer(size: int | None = None) -> SubobjectTokenizer:
    return SubobjectTokenizer(PromptedSegmenter(PatchSegmenter(16)), size=size)


def loader(dataset: RegionDataset, **options) -> SubobjectLoader:
    collator = SubobjectCollator(
        tokenizer(96), region_text=RegionText(byte_tokenizer()), on_error="replace"
    )
    defaults = {"batch_size": 3, "executor": "inline"}
    return SubobjectLoader(dataset, collator=collator, **{**defaults, **options})


def jitter(size: int = 96) -> v2.Transform:
    return v2.Compose([LargeScaleJitter(size, (0.4, 2.0)), TextSafeHorizontalFlip(0.5)])


# --- region k keeps its text, its box and its token ---------------------------------------------


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.integers(0, 10_000), min_size=1, max_size=3),
    st.integers(0, 5),
    st.sampled_from(["mask", "box"]),
    st.booleans(),
)
def test_text_box_and_token_of_a_region_stay_together(seeds, epoch, prompt, train):
    rows = [coloured_row(seed) for seed in seeds]
    dataset = RegionDataset(
        rows,
        train=train,
        transform=jitter() if train else None,
        prompt=prompt,
        max_regions=5 if train else None,
        min_side=3,
        empty="keep",
    )
    dataset.set_epoch(epoch)
    words = byte_tokenizer()
    collate = SubobjectCollator(tokenizer(), region_text=RegionText(words))
    batch = collate([dataset[index] for index in range(len(rows))])
    validate_batch(batch)
    pictures = [dataset[index].image for index in range(len(rows))]
    kept = batch["regions_annotated"] - batch["regions_lost"] - batch["regions_capped"]
    assert batch["region_to_image"].bincount(minlength=len(rows)).tolist() == kept.tolist()
    for region, text in enumerate(batch["region_texts"]):
        ids = batch["region_input_ids"][region][batch["region_attention_mask"][region] == 1]
        assert words.decode(ids, skip_special_tokens=True) == text
        image = int(batch["region_to_image"][region])
        annotated = rows[image]["regions"][int(batch["region_prompt"][region])]
        assert text in annotated["phrases"]
        picture = pictures[image].astype(int)
        token = int(batch["region_to_token"][region])
        inside = batch["visual_token_map"][image, : picture.shape[0], : picture.shape[1]] == token
        assert int(batch["visual_token_prompt"][image, token]) == int(
            batch["region_prompt"][region]
        )
        for pixels in (picture[inside.numpy()], _in_box(picture, batch["region_boxes"][region])):
            nearest = _nearest_colour(pixels)
            assert nearest == colour_of(text), (nearest, text)


def _in_box(picture: np.ndarray, box: torch.Tensor) -> np.ndarray:
    height, width = picture.shape[:2]
    x0, y0, x1, y1 = (box * torch.tensor([width, height, width, height])).round().int().tolist()
    return picture[y0:y1, x0:x1].reshape(-1, 3)


def _nearest_colour(pixels: np.ndarray) -> tuple[int, int, int]:
    middle = np.median(pixels, axis=0)
    return min(COLOURS.values(), key=lambda colour: np.abs(middle - colour).sum())


def test_no_region_is_lost_for_raggedness_in_batches_of_any_size():
    for batch_size in (1, 2, 5, 12):
        with loader(RegionDataset(ROWS, train=False), batch_size=batch_size) as batches:
            found = list(batches)
        pairs = [
            (int(batch["image_id"][image]), int(prompt))
            for batch in found
            for image, prompt in zip(batch["region_to_image"], batch["region_prompt"], strict=True)
        ]
        assert pairs == [(seed, k) for seed, count in enumerate(COUNTS) for k in range(count)]
        names = [name for batch in found for names in batch["region_ids"] for name in names]
        assert names == [100 * seed + k for seed, k in pairs]
        assert sum(int(batch["regions_annotated"].sum()) for batch in found) == sum(COUNTS)


def test_evaluation_keeps_first_phrases_order_and_all_phrases():
    sample = RegionDataset(ROWS, train=False)[5]
    regions = ROWS[5]["regions"]
    assert sample.prompts[0].texts == tuple(region["phrases"][0] for region in regions)
    assert sample.columns["region_phrases"] == [region["phrases"] for region in regions]
    assert sample.prompts[0].ids.tolist() == list(range(len(regions)))


# --- what is drawn is keyed ---------------------------------------------------------------------


def test_workers_change_nothing():
    def batches(workers: int, executor: str) -> list:
        dataset = RegionDataset(ROWS, transform=jitter(), max_regions=4)
        with loader(dataset, num_workers=workers, executor=executor) as running:
            return [batch for _ in range(2) for batch in running]

    expected = batches(0, "inline")
    assert_same_batches(expected, batches(2, "thread"))
    half = len(expected) // 2
    texts = [
        [text for batch in part for text in batch["region_texts"]]
        for part in (expected[:half], expected[half:])
    ]
    assert texts[0] != texts[1], "another epoch draws other phrases"


def test_resume_in_the_middle():
    def run() -> SubobjectLoader:
        return loader(RegionDataset(ROWS, transform=jitter(), max_regions=4), shuffle=True, seed=2)

    with run() as whole:
        expected = list(whole)
    with run() as first:
        for number, _ in enumerate(first):
            if number == 1:
                state = first.state_dict()
                break
    with run() as second:
        second.load_state_dict(state)
        assert_same_batches(expected[2:], list(second))


def test_every_phrase_comes_and_each_as_often():
    row = coloured_row(1, most=8)
    dataset = RegionDataset([row])
    counts: dict[str, int] = {}
    for epoch in range(300):
        dataset.set_epoch(epoch)
        for text in dataset[0].prompts[0].texts:
            counts[text] = counts.get(text, 0) + 1
    assert set(counts) == {text for region in row["regions"] for text in region["phrases"]}
    assert min(counts.values()) > 60
    assert max(counts.values()) < 140


def test_cap_is_a_random_choice_and_counted():
    row = next(r for r in ROWS if len(r["regions"]) >= 5)
    dataset = RegionDataset([row], max_regions=2, shuffle_regions=False)
    chosen = set()
    for epoch in range(60):
        dataset.set_epoch(epoch)
        sample = dataset[0]
        ids = sample.prompts[0].ids.tolist()
        assert ids == sorted(ids)
        assert sample.columns["regions_capped"] == len(row["regions"]) - 2
        chosen.add(tuple(ids))
    assert {k for ids in chosen for k in ids} == set(range(len(row["regions"])))
    dataset = RegionDataset([row], max_regions=3)
    orders = {tuple(dataset[0].prompts[0].ids.tolist()) for dataset.seed in range(20)}
    assert any(list(order) != sorted(order) for order in orders)


# --- regions that cannot stay -------------------------------------------------------------------


def test_lost_regions_are_counted_and_the_empty_replaced_kept_or_an_error():
    corner = {"image": ROWS[0]["image"], "regions": [_region(0, 0, 5, 5)]}
    whole = {"image": ROWS[0]["image"], "regions": [_region(0, 0, 30, 30), _region(0, 0, 2, 2)]}
    cut = v2.Lambda(lambda x: v2.functional.crop(x, 8, 8, 20, 20), *_moving())
    options = {"transform": cut}
    sample = RegionDataset([corner, whole], **options)[1]
    assert sample.columns["regions_lost"] == 1
    assert sample.prompts[0].ids.tolist() == [0]
    replaced = RegionDataset([corner, whole], **options)[0]
    assert (replaced.index, replaced.replaced[0].index) == (1, 0)
    assert "none of 1 regions is left" in replaced.replaced[0].reason
    kept = RegionDataset([corner, whole], empty="keep", **options)[0]
    assert (len(kept.prompts[0]), kept.columns["regions_lost"]) == (0, 1)
    with pytest.raises(SampleError, match=r"sample 0 failed in decode: none of 1 regions"):
        RegionDataset([corner, whole], empty="error", **options)[0]
    with pytest.raises(SampleError, match="samples tried in its place"):
        RegionDataset([corner, corner], **options)[0]


def test_a_batch_without_any_region_is_a_batch():
    rows = [{"image": ROWS[0]["image"], "regions": []}] * 3
    with loader(RegionDataset(rows, empty="keep", train=False), batch_size=2) as batches:
        found = list(batches)
    assert [len(batch["sample_index"]) for batch in found] == [2, 1]
    for batch in found:
        validate_batch(batch)
        assert batch["region_to_token"].shape == (0,)
        assert batch["region_input_ids"].shape == (0, 0)
        assert batch["region_texts"] == []


def test_replaced_samples_are_listed_and_batches_keep_their_number():
    rows = [*ROWS, {"image": ROWS[0]["image"], "regions": []}]
    with loader(RegionDataset(rows)) as batches:
        found = list(batches)
        empty = {index for index, count in enumerate([*COUNTS, 0]) if not count}
        assert {one.index for one in batches.collator.replaced} == empty
    assert sum(len(batch["sample_index"]) for batch in found) == len(rows)
    assert all((batch["region_to_image"].bincount(minlength=1) > 0).all() for batch in found)


@pytest.mark.parametrize("box", [(-20, -20, 5, 5), (500, 3, 9, 9), (4, 4, 0, 7), (3, 4, 5, -2)])
def test_empty_boxes_are_lost_in_training_and_a_pixel_in_evaluation(box):
    rows = [{"image": ROWS[0]["image"], "regions": [_region(*box), _region(2, 2, 9, 9)]}]
    trained = RegionDataset(rows)[0]
    assert trained.columns["regions_lost"] == 1
    assert trained.prompts[0].ids.tolist() == [1]
    prompts = RegionDataset(rows, train=False)[0].prompts[0]
    assert prompts.ids.tolist() == [0, 1]
    x0, y0, x1, y1 = prompts.boxes[0]
    assert (x1 - x0) * (y1 - y0) >= 1


def test_boxes_over_the_edge_are_cut_and_small_ones_lost_by_rule():
    width = ROWS[0]["image"].shape[1]
    regions = [_region(width - 10, -3, 40, 9), _region(5, 5, 3.5, 20)]
    rows = [{"image": ROWS[0]["image"], "regions": regions}]
    prompts = RegionDataset(rows, shuffle_regions=False)[0].prompts[0]
    assert prompts.boxes[0].tolist() == [width - 10, 0, width, 6]
    assert RegionDataset(rows, min_side=4)[0].prompts[0].ids.tolist() == [0]


def test_a_corner_of_a_box_without_its_mask_is_lost():
    mask = np.tri(40, dtype=bool)  # the lower left half
    region = {"bbox": [0, 0, 40, 40], "segmentation": mask, "phrase": "a slope"}
    rows = [{"image": np.zeros((40, 40, 3), np.uint8), "regions": [region, _region(20, 0, 9, 9)]}]
    cut = v2.Lambda(lambda x: v2.functional.crop(x, 0, 20, 15, 15), *_moving())
    sample = RegionDataset(rows, transform=cut)[0]
    assert sample.prompts[0].texts == ("a thing",)
    assert sample.columns["regions_lost"] == 1
    assert "regions_masked" not in sample.columns


# --- points -------------------------------------------------------------------------------------


def test_points_lie_in_their_region():
    row = coloured_row(3)
    dataset = RegionDataset([row], prompt="point", shuffle_regions=False)
    places = set()
    for epoch in range(10):
        dataset.set_epoch(epoch)
        sample = dataset[0]
        prompts = sample.prompts[0]
        assert np.isnan(prompts.boxes).all()
        for text, (x, y) in zip(prompts.texts, prompts.points[:, 0], strict=True):
            assert tuple(sample.image[int(y), int(x)]) == colour_of(text)
        places.add(tuple(prompts.points.ravel().tolist()))
    assert len(places) == 10
    middle = RegionDataset([row], prompt="point", train=False)[0].prompts[0]
    first = row["regions"][0]
    expected = [first["x"] + first["width"] / 2, first["y"] + first["height"] / 2]
    assert middle.points[0, 0].tolist() == expected


# --- what cannot work ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_regions": 0}, "max_regions=0"),
        ({"max_regions": 4, "train": False}, "evaluation takes all regions"),
        ({"prompt": "boxes"}, "prompt='boxes'"),
        ({"empty": "drop"}, "empty='drop'"),
        ({"transform": v2.RandomHorizontalFlip()}, "TextSafeHorizontalFlip"),
        ({"on_error": "skip"}, "on_error"),
        ({"prompts": PromptColumns(boxes="regions")}, "give columns="),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        RegionDataset(ROWS, **options)


def test_rows_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="no region column 'objects'.*image_id"):
        RegionDataset(ROWS, columns=RegionColumns("objects"))[0]
    with pytest.raises(ConfigError, match="one image a row"):
        RegionDataset([{**ROWS[0], "image": [ROWS[0]["image"]] * 2}])[0]
    with pytest.raises(ConfigError, match="'task_type', which a RegionDataset adds"):
        RegionDataset([{**ROWS[1], "task_type": "x"}], task="caption")[0]
    collate = SubobjectCollator(tokenizer(), region_text=RegionText(byte_tokenizer()))
    with pytest.raises(SampleError, match="regions with texts"):
        collate([{"image": ROWS[0]["image"]}])


def test_task_of_each_region():
    config = RegionText.sca(byte_tokenizer())
    caption, recognition = (
        RegionDataset(ROWS, task=task, max_regions=2) for task in ("caption", "recognition")
    )
    mixed = MixedDataset([caption, recognition], [1, 3], shuffle=False)
    collate = SubobjectCollator(tokenizer(), region_text=config)
    batch = collate([mixed[index] for index in range(8)])
    validate_batch(batch)
    expected = (batch["source_dataset"] == 0).long()[batch["region_to_image"]]
    assert batch["region_task"].tolist() == expected.tolist()
    assert set(batch["region_task"].tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("region_texts", lambda v: v[:-1], "'region_texts' has R = "),
        ("region_labels", lambda v: torch.zeros_like(v), "not -100 in front of the text"),
        ("region_labels", lambda v: v[:, 2:], r"columns for \d+ tokens"),
        ("region_labels", lambda v: v[:-1], "has R = "),
        ("region_attention_mask", lambda v: v * 2, "other than 0 and 1"),
        ("region_attention_mask", lambda v: v.flip(1), "not padded on the right"),
        ("region_input_ids", lambda v: v.int(), "dtype"),
        ("region_task", lambda v: v[:0], "has R = 0"),
    ],
)
def test_the_contract_sees_broken_region_texts(key, change, message):
    dataset = RegionDataset(ROWS, train=False, task="caption")
    config = RegionText.sca(byte_tokenizer())
    batch = SubobjectCollator(tokenizer(), region_text=config)([dataset[k] for k in range(4)])
    validate_batch(batch)
    with pytest.raises(BatchError, match=message):
        validate_batch({**batch, key: change(batch[key])})


def _region(x: float, y: float, width: float, height: float) -> dict:
    return {"x": x, "y": y, "width": width, "height": height, "phrase": "a thing"}


def _moving() -> tuple[type, ...]:
    from torchvision import tv_tensors

    return tv_tensors.Image, tv_tensors.BoundingBoxes, tv_tensors.Mask
