"""Real annotations through the loader: none is lost, and the contract holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.batches import assert_same_batches
from helpers.tiny_tokenizers import byte_tokenizer
from torchvision.transforms import v2

from subtok_data import (
    PatchSegmenter,
    SubobjectCollator,
    SubobjectLoader,
    SubobjectTokenizer,
    validate_batch,
)
from subtok_data.data import (
    CocoRegions,
    LargeScaleJitter,
    MixedDataset,
    PanopticRegions,
    RegionDataset,
    TextSafeHorizontalFlip,
)
from subtok_data.data.loader import batch_sampler as sampler
from subtok_data.segmenters import PromptedSegmenter
from subtok_data.text import RegionText

pytestmark = [pytest.mark.data, pytest.mark.slow]

JITTER = v2.Compose([LargeScaleJitter(192, (0.5, 2.0)), TextSafeHorizontalFlip()])


def readers(folder: Path) -> tuple[CocoRegions, PanopticRegions]:
    coco = folder / "coco"
    return (
        CocoRegions(coco / "instances.json", coco / "images"),
        PanopticRegions(coco / "panoptic.json", coco / "panoptic", coco / "images"),
    )


def loader(dataset, **options) -> SubobjectLoader:
    collator = SubobjectCollator(
        SubobjectTokenizer(PromptedSegmenter(PatchSegmenter(32)), size=192),
        region_text=RegionText.sca(byte_tokenizer()),
        columns=["regions_annotated", "regions_lost", "regions_capped", "image_id"],
    )
    return SubobjectLoader(dataset, collator=collator, batch_size=8, **options)


def test_every_region_of_the_annotation_files_arrives(data_dir):
    instances, panoptic = readers(data_dir)
    files = {
        "instances": [
            one["id"]
            for one in json.loads((data_dir / "coco/instances.json").read_text())["annotations"]
            if not one["iscrowd"]
        ],
        "panoptic": [
            one["id"]
            for image in json.loads((data_dir / "coco/panoptic.json").read_text())["annotations"]
            for one in image["segments_info"]
            if not one["iscrowd"]
        ],
    }
    for rows, names in zip((instances, panoptic), files.values(), strict=True):
        assert rows.num_regions == len(names)
        dataset = RegionDataset(rows, train=False, task="recognition")
        with loader(dataset, executor="thread") as batches:
            found = 0
            for batch in batches:
                validate_batch(batch)
                found += len(batch["region_to_token"])
                assert (batch["region_task"] == 0).all()
                assert not batch["regions_lost"].any()
        assert found == len(names)


def mixed(data_dir: Path) -> MixedDataset:
    options = {"transform": JITTER, "max_regions": 16, "task": "recognition", "min_side": 2}
    parts = [RegionDataset(rows, **options) for rows in readers(data_dir)]
    return MixedDataset(parts, [2, 1], seed=1)


def test_training_batches_of_a_mixture_keep_the_contract_and_resume(data_dir):
    with loader(mixed(data_dir), num_workers=2, executor="process") as batches:
        whole = []
        annotated = lost = capped = kept = 0
        for number, batch in enumerate(batches):
            validate_batch(batch)
            whole.append(batch)
            annotated += int(batch["regions_annotated"].sum())
            lost += int(batch["regions_lost"].sum())
            capped += int(batch["regions_capped"].sum())
            kept += len(batch["region_to_token"])
            assert batch["region_to_image"].bincount().max() <= 16
            if number == 11:
                state = batches.state_dict()
            if number == 14:
                break
    assert annotated == lost + capped + kept
    assert lost > 0
    assert capped > 0
    with loader(mixed(data_dir), executor="inline") as again:
        again.load_state_dict(state)
        rest = []
        for batch in again:
            rest.append(batch)
            if len(rest) == 3:
                break
    assert_same_batches(whole[12:], rest)


def test_two_ranks_share_a_mixture_of_real_rows(data_dir, monkeypatch):
    found = []
    for rank in range(2):
        monkeypatch.setattr(sampler, "rank_and_world_size", lambda rank=rank: (rank, 2))
        dataset = mixed(data_dir)
        running = loader(dataset, executor="inline", drop_last=True)
        found.append({index for batch in running.batch_sampler for index in batch})
        running.close()
    assert not found[0] & found[1]
    assert len(found[0]) == len(found[1])
    numbers = torch.tensor([dataset.locate(index)[0] for index in sorted(found[0] | found[1])])
    assert len(numbers) == len(dataset) // 16 * 16
    whole = len(numbers) // 3
    assert (numbers[: 3 * whole].reshape(whole, 3).sum(1) == 1).all(), "2 : 1 in every block"
