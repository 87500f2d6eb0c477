"""Prompts through collator and loader: region k keeps its token, its text and its image."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers.batches import assert_same, assert_same_batches
from skimage import data
from torchvision.transforms import v2

from subtok_data import (
    PatchSegmenter,
    SubobjectCollator,
    SubobjectDataset,
    SubobjectIterableDataset,
    SubobjectLoader,
    SubobjectTokenizer,
    validate_batch,
)
from subtok_data.batch.validate import BatchError
from subtok_data.data import PromptColumns, tokenize_dataset
from subtok_data.errors import ConfigError, PromptError, SampleError
from subtok_data.segment import Prompts
from subtok_data.segmenters import PromptedSegmenter

COLUMNS = PromptColumns(boxes="boxes", texts="phrases")


def tokenizer() -> SubobjectTokenizer:
    return SubobjectTokenizer(PatchSegmenter(32), size=128)


def rows(count: int = 7) -> list[dict]:
    """Ragged regions, none at all among them, on photos of several sizes."""
    photos = [data.astronaut(), data.coffee(), data.chelsea()]
    rng = np.random.default_rng(0)
    made: list[dict] = []
    for place in range(count):
        image = photos[place % 3][: 200 + 10 * place]
        height, width = image.shape[:2]
        corner = rng.uniform(0, 0.7, (place % 4, 2)) * (width, height)
        boxes = np.concatenate([corner, corner + rng.uniform(4, 60, corner.shape)], axis=1)
        phrases = [f"{place}-{k}" for k in range(len(boxes))]
        made.append({"image": image, "boxes": boxes, "phrases": phrases, "id": place})
    return made


def best_token(batch: dict, region: int) -> int:
    """Token of the highest IoU with the rounded box of a region, in plain loops."""
    image = int(batch["region_to_image"][region])
    height, width = batch["map_sizes"][image].tolist()
    token_map = batch["visual_token_map"][image, :height, :width].numpy()
    box = batch["region_boxes"][region].numpy() * np.array([width, height, width, height])
    mask = np.zeros((height, width), bool)
    x0, y0, x1, y1 = (round(float(side)) for side in box)
    mask[y0:y1, x0:x1] = True
    scores = []
    for token in range(int(batch["num_visual_tokens"][image])):
        own = token_map == token
        scores.append((own & mask).sum() / (own | mask).sum())
    return int(np.argmax(scores))


def test_each_region_gets_the_token_that_fits_it_best() -> None:
    batch = SubobjectCollator(tokenizer(), prompts=COLUMNS)(rows())
    validate_batch(batch)
    assert batch["region_to_image"].tolist() == [1, 2, 2, 3, 3, 3, 5, 6, 6]
    assert batch["region_prompt"].tolist() == [0, 0, 1, 0, 1, 2, 0, 0, 1]
    found = [best_token(batch, region) for region in range(9)]
    assert batch["region_to_token"].tolist() == found
    assert "boxes" not in batch
    assert batch["id"].tolist() == list(range(7))


@pytest.mark.parametrize(
    ("executor", "num_workers"), [("inline", 0), ("thread", 0), ("process", 2)]
)
def test_every_executor_gives_the_same_regions(executor: str, num_workers: int) -> None:
    dataset = SubobjectDataset(rows(), prompts=COLUMNS)
    expected = [
        SubobjectCollator(tokenizer(), prompts=COLUMNS)([dataset[k] for k in group])
        for group in ([0, 1, 2], [3, 4, 5], [6])
    ]
    with SubobjectLoader(
        dataset,
        tokenizer(),
        batch_size=3,
        executor=executor,
        num_workers=num_workers,
        segment_workers=2,
    ) as loader:
        assert_same_batches(list(loader), expected)


def test_augmentation_is_the_same_for_any_number_of_workers() -> None:
    transform = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomCrop(150, pad_if_needed=True)])
    batches = []
    for num_workers in (0, 2):
        dataset = SubobjectDataset(rows(), prompts=COLUMNS, transform=transform)
        with SubobjectLoader(
            dataset, tokenizer(), batch_size=3, executor="inline", num_workers=num_workers
        ) as loader:
            batches.append(list(loader))
    assert_same_batches(*batches)
    for batch in batches[0]:
        validate_batch(batch)


def test_streams_bring_prompts_too() -> None:
    stream = SubobjectIterableDataset(rows(), prompts=COLUMNS)
    with SubobjectLoader(stream, tokenizer(), batch_size=7, executor="inline") as loader:
        (batch,) = list(loader)
    expected = SubobjectCollator(tokenizer(), prompts=COLUMNS)(rows())
    for key in ("region_to_image", "region_to_token", "region_prompt", "region_boxes"):
        assert torch.equal(batch[key], expected[key])


def test_several_images_per_sample() -> None:
    first, second = rows()[2], rows()[3]
    row = {key: [first[key], second[key]] for key in ("image", "boxes", "phrases")}
    batch = SubobjectCollator(tokenizer(), prompts=COLUMNS)([row])
    alone = SubobjectCollator(tokenizer(), prompts=COLUMNS)([first, second])
    validate_batch(batch)
    assert batch["image_to_sample"].tolist() == [0, 0]
    assert torch.equal(batch["region_to_image"], alone["region_to_image"])
    assert torch.equal(batch["region_to_token"], alone["region_to_token"])


def test_stored_tokens_are_matched_like_live_ones(tmp_path) -> None:
    tokenize_dataset(rows(), tokenizer(), tmp_path, executor="inline")
    live = SubobjectDataset(rows(), prompts=COLUMNS)
    stored = SubobjectDataset(rows(), prompts=COLUMNS, tokens=tmp_path)
    collator = SubobjectCollator(tokenizer())
    a = collator([live[k] for k in range(7)])
    b = collator([stored[k] for k in range(7)])
    for key in ("region_to_image", "region_to_token", "region_prompt"):
        assert torch.equal(a[key], b[key])
    validate_batch(b)


def test_regions_are_painted_over_stored_tokens(tmp_path) -> None:
    prompted = SubobjectTokenizer(PromptedSegmenter(PatchSegmenter(32)), size=128)
    tokenize_dataset(rows(), prompted, tmp_path, executor="inline")
    live = SubobjectDataset(rows(), prompts=COLUMNS)
    stored = SubobjectDataset(rows(), prompts=COLUMNS, tokens=tmp_path)
    collator = SubobjectCollator(prompted)
    a = collator([live[k] for k in range(7)])
    b = collator([stored[k] for k in range(7)])
    validate_batch(b)
    # Everything but the images, which stored tokens leave at the size that was cut.
    for key in [key for key in a if key.startswith(("visual_", "region_", "num_", "map_"))]:
        if isinstance(a[key], torch.Tensor):
            assert torch.equal(a[key], b[key]), key
    assert (a["visual_token_prompt"] >= 0).sum() >= 9


def test_stored_tokens_with_prompts_keep_the_budget(tmp_path) -> None:
    prompted = SubobjectTokenizer(PromptedSegmenter(), size=128, num_tokens=9)
    tokenize_dataset(rows(), prompted, tmp_path, executor="inline")
    stored = SubobjectDataset(rows(), prompts=COLUMNS, tokens=tmp_path)
    batch = SubobjectCollator(prompted)([stored[k] for k in range(7)])
    validate_batch(batch)
    assert batch["num_visual_tokens"].tolist() == [9] * 7


def test_no_prompt_in_a_whole_batch() -> None:
    batch = SubobjectCollator(tokenizer(), prompts=COLUMNS)([rows()[0], rows()[4]])
    validate_batch(batch)
    assert batch["region_to_token"].shape == (0,)
    assert batch["region_boxes"].shape == (0, 4)


def test_a_bad_prompt_raises_or_is_replaced_and_counted() -> None:
    bad = rows()
    bad[2]["boxes"] = np.array([[0, 0, 5000, 10]])
    bad[2]["phrases"] = ["far"]
    with SubobjectLoader(
        SubobjectDataset(bad, prompts=COLUMNS), tokenizer(), batch_size=3, executor="inline"
    ) as loader:
        with pytest.raises(SampleError, match=r"sample 2 failed in decode: prompt 0: box"):
            list(loader)
    dataset = SubobjectDataset(bad, prompts=COLUMNS, on_error="replace")
    with SubobjectLoader(
        dataset, tokenizer(), batch_size=3, executor="inline", on_error="replace"
    ) as loader:
        batches = list(loader)
        assert len(batches) == 3
        assert [one.index for one in loader.stats().replaced] == [2]
    for batch in batches:
        validate_batch(batch)


def test_mixing_rows_with_and_without_columns_of_prompts_is_refused() -> None:
    one = SubobjectDataset(rows(), prompts=COLUMNS)[1]
    other = SubobjectDataset([{"image": data.coffee()}])[0]
    with pytest.raises(ConfigError, match="mixes samples with prompts"):
        SubobjectCollator(tokenizer(), columns=[])([one, other])


def test_a_batch_whose_regions_point_nowhere_is_found() -> None:
    batch = SubobjectCollator(tokenizer(), prompts=COLUMNS)(rows())
    assert isinstance(batch, dict)
    for key, value, message in (
        ("region_to_token", 500, "token 500 of image 1"),
        ("region_to_image", 9, "names images outside"),
        ("region_to_image", 6, "not in the order"),
        ("region_boxes", 2.0, "region 0: box"),
    ):
        broken = {**batch, key: batch[key].clone()}
        broken[key][0] = value
        with pytest.raises(BatchError, match=message):
            validate_batch(broken)


def test_the_tokenizer_matches_prompts_of_one_image() -> None:
    image = data.coffee()
    prompts = Prompts.of(image.shape[:2], boxes=[[0, 0, 150, 150], [10, 10, 600, 400]])
    tokens = tokenizer()(image, prompts=prompts)
    assert tokens.prompt_tokens is not None
    assert tokens.prompt_tokens.shape == (2,)
    both = tokenizer()([image, image], prompts=[None, prompts])
    assert both[0].prompt_tokens is None
    assert both[1].prompt_tokens.tolist() == tokens.prompt_tokens.tolist()
    with pytest.raises(PromptError, match="image 0 has 400 × 600 pixels, its prompts are for 4 ×"):
        tokenizer()(image, prompts=Prompts.of((4, 4), boxes=[[0, 0, 1, 1]]))
    with pytest.raises(PromptError, match="1 entries of prompts for 2 images"):
        tokenizer()([image, image], prompts=[prompts])


@pytest.mark.data
def test_annotated_boxes_of_real_photos(data_dir) -> None:
    annotations = json.loads((data_dir / "coco" / "instances.json").read_text())
    of_image: dict[int, list[list[float]]] = {}
    for one in annotations["annotations"]:
        if one["bbox"][2] > 0 and one["bbox"][3] > 0:
            of_image.setdefault(one["image_id"], []).append(one["bbox"])
    images = annotations["images"][:24]
    table = [
        {
            "image": str(data_dir / "coco" / "images" / image["file_name"]),
            "boxes": of_image.get(image["id"], []),
        }
        for image in images
    ]
    columns = PromptColumns(boxes="boxes", box_format="xywh")
    dataset = SubobjectDataset(table, prompts=columns)
    regions = 0
    with SubobjectLoader(dataset, SubobjectTokenizer(), batch_size=8, num_workers=2) as loader:
        for batch in loader:
            validate_batch(batch)
            regions += len(batch["region_to_token"])
            sample = range(0, len(batch["region_to_token"]), 9)
            found = [best_token(batch, region) for region in sample]
            assert batch["region_to_token"][list(sample)].tolist() == found
    assert regions == sum(len(row["boxes"]) for row in table) > 100


def _same_but_regions(first: dict, second: dict) -> None:
    keys = [key for key in first if not key.startswith("region_")]
    assert_same({k: first[k] for k in keys}, {k: second[k] for k in keys})


def test_matching_does_not_change_the_tokens() -> None:
    with_prompts = SubobjectCollator(tokenizer(), prompts=COLUMNS)(rows())
    without = SubobjectCollator(tokenizer(), columns=["id"])(rows())
    _same_but_regions(dict(with_prompts), dict(without))
