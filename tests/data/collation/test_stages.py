"""The stages of a batch: asynchronous inference, single samples, and what may hold memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.batches import assert_same, assert_same_batches
from helpers.faulty import CodedImages, FaultyPartitioner, FaultySegmenter, coded_image
from PIL import Image

from subtok_data import (
    BoundaryModel,
    EPOCSegmenter,
    ImageFiles,
    SampleError,
    SubobjectCollator,
    SubobjectDataset,
    SubobjectLoader,
    SubobjectTokenizer,
)
from subtok_data.data.collation import BatchInProgress, BatchOptions, BatchStages
from subtok_data.devices import DEVICE_FAILURES, DeviceMemoryError
from subtok_data.errors import ConfigError, SubtokError


class AsyncSegmenter(FaultySegmenter):
    """Gives evidence later, as a device does; fails when it starts or when it ends."""

    is_asynchronous = True
    fails_in = "result"
    error: Exception | None = None

    def launch(self, images, sizes, prompts=None):
        return _Pending(self, images) if self.fails_in == "result" else self._ready(images)

    def _ready(self, images):
        evidence = self._infer(images)
        pending = _Pending(self, [])
        pending.result = lambda: evidence
        return pending

    def _infer(self, images):
        if self.error is not None:
            raise self.error
        return super().infer(images, [])


class _Pending:
    def __init__(self, segmenter, images):
        self.segmenter, self.images = segmenter, images

    def result(self):
        return self.segmenter._infer(self.images)


def tokenizer_of(
    fail_on: int = -1, fails_in: str = "result", error: Exception | None = None
) -> SubobjectTokenizer:
    segmenter = AsyncSegmenter(FaultyPartitioner(), fail_on)
    segmenter.fails_in, segmenter.error = fails_in, error
    return SubobjectTokenizer(segmenter, size=None)


@pytest.mark.parametrize("look_ahead", [0, 2])
@pytest.mark.parametrize("fails_in", ["launch", "result"])
def test_asynchronous_inference_blames_the_image(fails_in, look_ahead):
    options = {"batch_size": 4, "executor": "thread", "prefetch_batches": look_ahead}
    with SubobjectLoader(CodedImages(12), tokenizer_of(), **options) as loader:
        expected = list(loader)
    with SubobjectLoader(CodedImages(12), tokenizer_of(7, fails_in), **options) as loader:
        iterator = iter(loader)
        assert_same(next(iterator), expected[0])
        with pytest.raises(SampleError, match="sample 7 failed in infer: .*no evidence"):
            next(iterator)
    options["on_error"] = "replace"
    with SubobjectLoader(CodedImages(12), tokenizer_of(7, fails_in), **options) as loader:
        batches = list(loader)
        (replaced,) = loader.stats().replaced
    assert batches[1]["sample_index"].tolist() == [4, 5, 6, replaced.used]
    assert_same_batches(batches[::2], expected[::2])


@pytest.mark.parametrize("error", [*DEVICE_FAILURES, DeviceMemoryError])
@pytest.mark.parametrize("fails_in", ["launch", "result"])
def test_failure_of_the_device_is_no_fault_of_an_image(fails_in, error):
    tokenizer = tokenizer_of(fails_in=fails_in, error=error("gone"))
    collate = SubobjectCollator(tokenizer, on_error="replace")
    with pytest.raises(error, match="gone"):
        collate([{"image": coded_image(0)}])


def test_failure_of_the_device_while_images_are_inferred_one_by_one():
    class Full(FaultySegmenter):
        def infer(self, images, sizes, prompts=None):
            if len(images) > 1:
                raise ValueError("one of them is bad")
            raise torch.OutOfMemoryError("full")

    collate = SubobjectCollator(
        SubobjectTokenizer(Full(FaultyPartitioner()), size=None), on_error="replace"
    )
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        collate([{"image": coded_image(0)}, {"image": coded_image(1)}])


class SpoilsWhite(torch.nn.Module):
    """The red channel as logits; not a number where an image has a white pixel."""

    def forward(self, pixels):
        white = pixels.amax((1, 2, 3), keepdim=True) >= 1
        return torch.where(white, torch.nan, pixels[:, :1, ::4, ::4])


@pytest.mark.parametrize("look_ahead", [0, 2])
def test_an_image_without_a_map_fails_alone_as_on_a_cpu(monkeypatch, look_ahead, tmp_path):
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 200, (40, 60, 3), np.uint8) for _ in range(6)]
    photos[1][3, 5] = 255
    for index, photo in enumerate(photos):
        Image.fromarray(photo).save(tmp_path / f"{index}.png")
    model = BoundaryModel(SpoilsWhite(), mean=(0, 0, 0), std=(1, 1, 1), name="spoilt")
    launches = []
    launch = BoundaryModel.launch
    monkeypatch.setattr(
        BoundaryModel,
        "launch",
        lambda self, images: launches.append(len(images)) or launch(self, images),
    )

    def epoch(on_error):
        tokenizer = SubobjectTokenizer(EPOCSegmenter(model), size=None, num_tokens=5)
        options = {"batch_size": 3, "executor": "inline", "prefetch_batches": look_ahead}
        with SubobjectLoader(
            ImageFiles(tmp_path), tokenizer, on_error=on_error, num_workers=0, **options
        ) as loader:
            return list(loader), loader.stats().replaced

    wanted, _ = epoch("replace")
    with pytest.raises(SampleError) as on_cpu:
        epoch("raise")
    assert not launches
    monkeypatch.setattr(EPOCSegmenter, "is_asynchronous", True)
    monkeypatch.setattr(EPOCSegmenter, "infer", None)  # nothing is inferred a second time
    batches, replaced = epoch("replace")
    assert launches.count(3) == 2
    assert [one.index for one in replaced] == [1]
    assert_same_batches(batches, wanted)
    with pytest.raises(SampleError, match=r"sample 1 \('.*1\.png'\) failed in infer: .*NaN") as own:
        epoch("raise")
    assert str(own.value) == str(on_cpu.value)


def test_finished_batch_is_built_once_and_logged_once():
    dataset = SubobjectDataset(CodedImages(8))
    collate = SubobjectCollator(tokenizer_of(3), on_error="replace")
    log = []
    stages = collate.stages(logs=(log,))
    batch = stages.run(collate.worker.collate([dataset[i] for i in range(2, 6)]))
    assert batch.has_failures
    finished = stages.finish(batch)
    assert finished is batch.finished
    assert log == collate.replaced == batch.replaced
    assert [one.index for one in log] == [3]


def test_batch_of_bad_samples_alone():
    collate = SubobjectCollator(tokenizer_of(0), on_error="replace")
    with pytest.raises(SubtokError, match="inference failed on every image of a batch"):
        collate([{"image": coded_image(0)}, {"image": coded_image(0)}])


def test_samples_can_pass_the_stages_without_a_collator():
    tokenizer = tokenizer_of()
    stages = BatchStages(tokenizer=tokenizer, options=BatchOptions())
    raw = SubobjectCollator(tokenizer).worker.collate([{"image": coded_image(i)} for i in (4, 2)])
    batch = BatchInProgress.of(raw)
    stages.infer(batch)
    stages.segment(batch)
    assert not any(sample.evidence for sample in batch.samples)  # maps are held no longer
    stages.collect(batch)
    found = [sample.segmented[0].token_map for sample in batch.samples]
    for index, token_map in zip((4, 2), found, strict=True):
        assert np.array_equal(token_map, tokenizer(coded_image(index)).token_map)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"on_error": "skip"}, "on_error='skip': expected one of"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of=0: expected a whole number of at least 1"),
        ({"shape_size": 0}, "shape_size=0: expected a whole number of at least 1"),
        ({"packing": True}, "packing=True .* give text="),
    ],
)
def test_options_that_cannot_be(options, words):
    with pytest.raises(ConfigError, match=words):
        SubobjectCollator(tokenizer_of(), **options)
