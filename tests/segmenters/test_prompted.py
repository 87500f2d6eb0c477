"""Prompts to tokens through tokenizer and loader, with and without a promptable model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.batches import assert_same_batches
from helpers.tiny_sam import tiny_sam
from skimage import data

from subtok_data import (
    EPOCSegmenter,
    PatchSegmenter,
    PromptColumns,
    Prompts,
    SubobjectDataset,
    SubobjectLoader,
    SubobjectTokenizer,
    validate_batch,
)
from subtok_data.errors import ConfigError, PromptError
from subtok_data.segment import FillRules, RLEMasks
from subtok_data.segmenters import PromptedSegmenter, SAMPrompter

PHOTOS = [data.astronaut(), data.coffee(), data.chelsea()]
BOXES = [
    [[100, 0, 310, 290], [300, 20, 512, 330]],  # head, shuttle
    [[190, 80, 500, 350]],  # cup
    [],
]


class Disks:
    """Finds a disk in each box, and nothing in the last one."""

    name = "disks"

    def prompt_masks(self, images, prompts):
        return [None if one is None else self.disks(one) for one in prompts]

    def disks(self, prompts):
        v, u = np.indices(prompts.size) + 0.5
        masks = []
        for place, (x0, y0, x1, y1) in enumerate(prompts.boxes):
            radius = 0 if place == len(prompts) - 1 else min(x1 - x0, y1 - y0) / 2
            masks.append(np.hypot(v - (y0 + y1) / 2, u - (x0 + x1) / 2) < radius)
        return RLEMasks.from_masks(masks, np.full(len(masks), 0.5), size=prompts.size)


def prompts_of(photo: np.ndarray, boxes: list) -> Prompts:
    return Prompts.of(photo.shape[:2], boxes=boxes)


def test_every_prompt_of_a_photo_finds_its_token():
    tokenizer = SubobjectTokenizer(PromptedSegmenter(), max_tokens=64, size=256)
    assert tokenizer.budget.strength == EPOCSegmenter.default_strength  # as without prompts
    asked = [prompts_of(*pair) for pair in zip(PHOTOS, BOXES, strict=True)]
    for photo, prompts, tokens in zip(PHOTOS, asked, tokenizer(PHOTOS, prompts=asked), strict=True):
        assert tokens.num_tokens <= 64
        assert tokens.areas.sum() == tokens.token_map.size
        found = tokens.token_fields["prompt"]
        assert set(found.tolist()) == {-1, *range(len(prompts))}
        assert (tokens.token_fields["source"] == 2).tolist() == (found >= 0).tolist()
        assert found[tokens.prompt_tokens].tolist() == list(range(len(prompts)))
        alone = tokenizer(photo, prompts=prompts)
        assert np.array_equal(alone.token_map, tokens.token_map)
    without = tokenizer(PHOTOS[0])
    plain = SubobjectTokenizer(EPOCSegmenter(), max_tokens=64, size=256)(PHOTOS[0])
    assert np.array_equal(without.token_map, plain.token_map)
    assert without.prompt_tokens is None
    assert without.token_fields["prompt"].max() == -1


def test_a_model_finds_the_regions_and_what_it_misses_falls_back():
    segmenter = PromptedSegmenter(PatchSegmenter(8), prompter=Disks(), rules=FillRules(1))
    tokenizer = SubobjectTokenizer(segmenter, size=None)
    photo = np.zeros((64, 96, 3), np.uint8)
    prompts = Prompts.of((64, 96), boxes=[[0, 0, 30, 30], [50, 10, 80, 40], [40, 40, 64, 64]])
    tokens = tokenizer(photo, prompts=prompts)
    disks = Disks().disks(prompts)
    for prompt in (0, 1):
        own = tokens.token_map == tokens.prompt_tokens[prompt]
        assert np.array_equal(own, disks.mask(prompt))
    own = tokens.token_map == tokens.prompt_tokens[2]
    assert own[40:64, 40:64].all()
    assert own.sum() == 24 * 24
    scores = tokens.token_fields["score"][tokens.prompt_tokens]
    assert scores.tolist() == [0.5, 0.5, 0]
    # What a prompt brought along stays where the model finds nothing.
    mask = np.zeros((64, 96), bool)
    mask[50:, 90:] = True
    both = Prompts.of((64, 96), boxes=[[80, 40, 96, 64]], masks=[mask])
    tokens = tokenizer(photo, prompts=both)
    assert np.array_equal(tokens.token_map == tokens.prompt_tokens[0], mask)


def test_prompted_regions_alone():
    segmenter = PromptedSegmenter(PatchSegmenter(8), automatic=False, rules=FillRules(1, 1))
    tokens = SubobjectTokenizer(segmenter, size=None)(
        np.zeros((64, 96, 3), np.uint8),
        prompts=Prompts.of((64, 96), boxes=[[40, 0, 56, 64], [0, 0, 8, 8]]),
    )
    assert tokens.num_tokens == 4
    assert tokens.token_fields["source"].tolist() == [1, 1, 2, 2]
    assert tokens.token_fields["prompt"].tolist() == [-1, -1, 0, 1]
    assert tokens.areas.tolist() == [40 * 64, 40 * 64 - 64, 16 * 64, 64]


def test_inference_beside_the_host():
    class Later:
        """A segmenter that launches, as on a CUDA device."""

        partitioner = PatchSegmenter(16).partitioner
        is_asynchronous = True

        def infer(self, images, sizes, prompts=None):
            assert prompts is None  # they are for the segmenter around it
            return [{"there": np.array(size)} for size in sizes]

        def launch(self, images, sizes, prompts=None):
            found = self.infer(images, sizes, prompts)

            class Launch:
                def result(self):
                    return found

            return Launch()

    images, sizes = [np.zeros((32, 32, 3), np.uint8)] * 2, [(32, 32)] * 2
    asked = [None, Prompts.of((32, 32), boxes=[[0, 0, 9, 9]])]
    segmenter = PromptedSegmenter(Later())
    assert segmenter.is_asynchronous
    launched = segmenter.launch(images, sizes, asked).result()
    assert [sorted(one) for one in launched] == [
        sorted(one) for one in segmenter.infer(images, sizes, asked)
    ]
    assert "prompt_boxes" not in launched[0]
    assert launched[1]["prompt_boxes"].tolist() == [[0, 0, 9, 9]]
    assert not PromptedSegmenter(Later(), prompter=Disks()).is_asynchronous
    assert not PromptedSegmenter(PatchSegmenter(16)).is_asynchronous
    with pytest.raises(PromptError, match="1 entries of prompts for 2 images"):
        segmenter.infer(images, sizes, asked[:1])
    with pytest.raises(PromptError, match="image 1 has 32 × 32 pixels, its prompts are for 8 × 8"):
        segmenter.infer(images, sizes, [None, Prompts.of((8, 8), boxes=[[0, 0, 8, 8]])])


def test_saved_with_its_parts(tmp_path: Path):
    tiny_sam(tmp_path / "sam")
    segmenter = PromptedSegmenter(
        PatchSegmenter(16),
        prompter=SAMPrompter(tmp_path / "sam"),
        automatic=False,
        rules=FillRules(4, None),
        min_iou=0.25,
    )
    tokenizer = SubobjectTokenizer(segmenter, max_tokens=20, size=64)
    prompts = prompts_of(PHOTOS[0], BOXES[0])
    tokens = tokenizer(PHOTOS[0], prompts=prompts)
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = SubobjectTokenizer.from_pretrained(tmp_path / "saved")
    assert loaded.config() == tokenizer.config()
    assert loaded.config_hash == tokenizer.config_hash
    assert loaded.segmenter.partitioner == segmenter.partitioner
    assert np.array_equal(loaded(PHOTOS[0], prompts=prompts).token_map, tokens.token_map)
    other = SubobjectTokenizer(PromptedSegmenter(PatchSegmenter(16)), max_tokens=20, size=64)
    assert other.config_hash != tokenizer.config_hash
    other.save_pretrained(tmp_path / "other")
    assert SubobjectTokenizer.from_pretrained(tmp_path / "other").config_hash == other.config_hash
    assert loaded.to("cpu").device == torch.device("cpu")
    config = json.loads((tmp_path / "saved" / "subtok_config.json").read_text())
    config["prompter"]["prompter"] = "mine"
    (tmp_path / "saved" / "subtok_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="saved with 'mine'"):
        SubobjectTokenizer.from_pretrained(tmp_path / "saved")
    own = SubobjectTokenizer(PromptedSegmenter(PatchSegmenter(16), prompter=Disks()))
    own.save_pretrained(tmp_path / "own")  # by name only, as any segmenter without a config
    with pytest.raises(ConfigError, match="no config"):
        own.config()


def load(rows: list[dict], executor: str, num_workers: int, **options) -> list[dict]:
    columns = PromptColumns(boxes="boxes", box_format=options.pop("box_format", "xyxy"))
    with SubobjectLoader(
        SubobjectDataset(rows, prompts=columns),
        SubobjectTokenizer(PromptedSegmenter(), max_tokens=100, size=128),
        batch_size=3,
        executor=executor,
        num_workers=num_workers,
        segment_workers=2,
        **options,
    ) as loader:
        return list(loader)


def check(batch: dict) -> None:
    validate_batch(batch)
    images, tokens = batch["region_to_image"], batch["region_to_token"]
    assert (batch["visual_token_source"][images, tokens] == 2).float().mean() > 0.8
    asked = batch["visual_token_prompt"] >= 0
    assert torch.equal(asked, batch["visual_token_source"] == 2)


def test_every_executor_gives_the_same_tokens(no_leaks):
    rows = [
        {"image": photo, "boxes": boxes} for photo, boxes in zip(PHOTOS, BOXES, strict=True)
    ] * 2
    expected = load(rows, "inline", 0)
    for batch in expected:
        check(batch)
        found = batch["visual_token_prompt"][batch["region_to_image"], batch["region_to_token"]]
        assert torch.equal(found, batch["region_prompt"])
    for executor, num_workers in (("thread", 0), ("process", 1)):
        assert_same_batches(load(rows, executor, num_workers), expected)


@pytest.mark.data
def test_boxes_of_real_annotations(data_dir: Path):
    folder = data_dir / "coco"
    described = json.loads((folder / "instances.json").read_text())
    rows = {
        one["id"]: {"image": str(folder / "images" / one["file_name"]), "boxes": []}
        for one in described["images"]
    }
    for one in described["annotations"]:
        if not one["iscrowd"] and min(one["bbox"][2:]) >= 1:
            rows[one["image_id"]]["boxes"].append(one["bbox"])
    chosen = [row for row in rows.values() if Path(row["image"]).is_file()][:24]
    batches = load(chosen, "process", 2, box_format="xywh")
    assert sum(len(batch["region_prompt"]) for batch in batches) == sum(
        len(row["boxes"]) for row in chosen
    )
    for batch in batches:
        check(batch)
    assert_same_batches(load(chosen[:6], "inline", 0, box_format="xywh"), batches[:2])
