"""Every segmenter through the loader on photos: valid batches, the budget, equal executors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_panoptic, tiny_sam
from helpers.batches import assert_same
from helpers.segmenters import MAKERS, Models, sam, unsure
from skimage import data

from subtok_data import (
    ImageFiles,
    PromptColumns,
    Prompts,
    SubobjectCollator,
    SubobjectDataset,
    SubobjectLoader,
    SubobjectTokenizer,
    validate_batch,
)
from subtok_data.images import to_rgb
from subtok_data.segmenters import PROMPTERS, SEGMENTERS, SAMPrompter

MAX_TOKENS = 9
BOXES = [[0.1, 0.2, 0.5, 0.9], [0.3, 0.1, 0.95, 0.6]]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


def make_dataset(name: str, photos: list[np.ndarray]) -> SubobjectDataset:
    rows: list[dict[str, Any]] = [{"image": photo, "label": i} for i, photo in enumerate(photos)]
    if not name.startswith("prompted"):
        return SubobjectDataset(rows)
    for row in rows:
        height, width = row["image"].shape[:2]
        row["boxes"] = np.array(BOXES) * (width, height, width, height)
    return SubobjectDataset(rows, prompts=PromptColumns(boxes="boxes"))


def check(batch: Any, name: str) -> None:
    validate_batch(batch)
    counts = batch["num_visual_tokens"]
    assert 1 < int(counts.max()) <= MAX_TOKENS
    assert batch["visual_token_areas"].sum(1).tolist() == pytest.approx([1] * len(counts))
    if name.startswith("prompted"):
        assert batch["region_to_image"].tolist() == [i for i in range(len(counts)) for _ in BOXES]
        assert 2 in batch["visual_token_source"]


@pytest.mark.parametrize("name", MAKERS)
def test_photos_through_the_loader(models, name, no_leaks):
    photos = [data.coffee()[:, :500], data.chelsea(), data.astronaut()]
    tokenizer = SubobjectTokenizer(MAKERS[name](models), max_tokens=MAX_TOKENS, size=96)
    dataset = make_dataset(name, photos)
    expected = SubobjectCollator(tokenizer)([dataset[i] for i in range(3)])
    check(expected, name)
    for executor in ("process", "thread", "inline"):
        loader = SubobjectLoader(
            dataset, tokenizer, batch_size=3, segment_workers=1, executor=executor
        )
        with loader:
            (batch,) = loader
        assert_same(batch, expected)


@pytest.mark.data
@pytest.mark.parametrize("name", MAKERS)
def test_open_photos_through_the_loader(models, data_dir, name):
    files = ImageFiles(data_dir / "photos" / "open")
    photos = [to_rgb(files[place]["image"]) for place in range(0, 300, 50)]
    tokenizer = SubobjectTokenizer(MAKERS[name](models), max_tokens=MAX_TOKENS, size=128)
    dataset = make_dataset(name, photos)
    loader = SubobjectLoader(dataset, tokenizer, batch_size=3, segment_workers=1, executor="thread")
    with loader:
        batches = list(loader)
    assert len(batches) == 2
    for batch in batches:
        check(batch, name)


def test_every_segmenter_is_here(models):
    made = [MAKERS[name](models) for name in MAKERS if name != "efficient-sam-onnx"]
    assert {segmenter.name for segmenter in made} == set(SEGMENTERS)
    prompters = [segmenter.prompter for segmenter in made if segmenter.takes_prompts]
    assert {prompter.name for prompter in prompters if prompter is not None} == set(PROMPTERS)


def test_tokens_come_with_their_fields(models):
    found: dict[str, set[str]] = {}
    for name in ("sam", "efficient-sam", "mask2former", "epoc"):
        tokens = SubobjectTokenizer(MAKERS[name](models), size=96)(data.chelsea())
        found[name] = set(tokens.token_fields)
        for values in tokens.token_fields.values():
            assert len(values) == tokens.num_tokens
            assert np.isfinite(values).all()
    assert found["sam"] == found["efficient-sam"] == {"source", "score"}
    assert found["mask2former"] == {"source", "score", "class"}
    assert found["epoc"] == set()


def test_the_generator_of_torch_is_left_alone(models):
    """Inference draws nothing: a training run sees the same numbers with any segmenter."""
    image = np.ascontiguousarray(data.chelsea()[::4, ::4])
    for name in ("sam", "efficient-sam", "eomt"):
        segmenter = MAKERS[name](models)
        segmenter.infer([image], [image.shape[:2]])
        state = torch.random.get_rng_state()
        segmenter.infer([image], [image.shape[:2]])
        assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("name", [*tiny_sam.MODELS, *tiny_panoptic.MODELS])
def test_files_in_half_precision_run_as_they_are(models, name, tmp_path):
    make, folder = (sam if name in tiny_sam.MODELS else unsure), tmp_path / name
    make(models, name).model.to(torch.bfloat16).save_pretrained(folder)
    for file in models.folder(name).glob("*.json"):
        if not (folder / file.name).exists():
            (folder / file.name).write_bytes(file.read_bytes())
    segmenter = make(Models(tmp_path), name)
    assert segmenter.model.dtype == torch.bfloat16
    tokenizer = SubobjectTokenizer(segmenter, max_tokens=MAX_TOKENS, size=96)
    assert tokenizer(data.chelsea()).num_tokens >= 1
    if name in tiny_sam.MODELS:
        image = np.ascontiguousarray(data.chelsea()[::4, ::4])
        mask = np.zeros(image.shape[:2], bool)
        mask[20:50, 20:60] = True
        prompts = Prompts.of(image.shape[:2], boxes=[[15, 15, 65, 55]], masks=[mask])
        prompter = SAMPrompter(segmenter.decoder, refine_rounds=1)
        (found,) = prompter.prompt_masks([image], [prompts])
        assert np.isfinite(found.scores).all()
