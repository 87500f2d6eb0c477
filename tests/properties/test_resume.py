"""Restore at every step: what was yielded plus the rest is the whole, and nothing is redone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.batches import assert_same_batches, faulty_tokenizer
from helpers.faulty import CodedImages, Rows, shard_rows
from torchvision.transforms import v2

from subtok_data import SubobjectDataset, SubobjectIterableDataset, SubobjectLoader
from subtok_data.errors import ConfigError

pytestmark = pytest.mark.usefixtures("no_leaks")

LENGTH, BATCH = 18, 4


def make(look_ahead: int = 4, **options) -> SubobjectLoader:
    dataset = SubobjectDataset(CodedImages(LENGTH), transform=v2.RandomCrop(48))
    return SubobjectLoader(
        dataset,
        faulty_tokenizer(),
        **{
            "batch_size": BATCH,
            "shuffle": True,
            "executor": "thread",
            "segment_workers": 2,
            "prefetch_batches": look_ahead,
            **options,
        },
    )


@pytest.fixture(scope="module")
def epochs() -> list[list]:
    with make() as loader:
        return [list(loader) for _ in range(3)]


def take(loader: SubobjectLoader, count: int) -> list:
    iterator = iter(loader)
    return [next(iterator) for _ in range(count)]


def through_json(state: dict) -> dict:
    return json.loads(json.dumps(state))


@pytest.mark.parametrize("look_ahead", [0, 4])
@pytest.mark.parametrize("epoch", [0, 2])
def test_restore_at_every_step(epochs, look_ahead, epoch):
    for step in range(len(epochs[epoch])):
        with make(look_ahead) as loader:
            loader.set_epoch(epoch)
            seen = take(loader, step)
            state = through_json(loader.state_dict())
        assert_same_batches(seen, epochs[epoch][:step])
        with make(look_ahead) as loader:
            loader.load_state_dict(state)
            assert_same_batches(list(loader), epochs[epoch][step:])
            if epoch < 2:
                assert_same_batches(list(loader), epochs[epoch + 1])


def test_twice_in_one_epoch(epochs):
    with make() as loader:
        take(loader, 1)
        state = loader.state_dict()
    with make() as loader:
        loader.load_state_dict(state)
        assert loader.state_dict() == state
        seen = take(loader, 2)
        assert_same_batches(seen, epochs[0][1:3])
        state = loader.state_dict()
    with make() as loader:
        loader.load_state_dict(state)
        assert_same_batches(list(loader), epochs[0][3:])


def test_after_the_last_batch_comes_the_next_epoch(epochs):
    with make() as loader:
        take(loader, len(epochs[0]))
        state = loader.state_dict()
    with make() as loader:
        loader.load_state_dict(state)
        assert_same_batches(list(loader), epochs[1])


def test_load_in_the_middle_of_an_iteration(epochs):
    with make() as loader:
        take(loader, 1)
        state = loader.state_dict()
        take(loader, 3)
        loader.load_state_dict(state)
        assert_same_batches(list(loader), epochs[0][1:])


def test_skipped_batches_are_not_decoded(epochs):
    with make(num_workers=0, prefetch_batches=0, executor="inline") as loader:
        loader.skip(3)
        assert_same_batches(list(loader), epochs[0][3:])
        loaded = loader.dataset.dataset.loaded
    expected = [i for batch in epochs[0][3:] for i in batch["sample_index"].tolist()]
    assert loaded == expected


def test_worker_count_may_change(epochs):
    with make(num_workers=2) as loader:
        take(loader, 2)
        state = loader.state_dict()
    with make(num_workers=1, executor="inline") as loader:
        loader.load_state_dict(state)
        assert_same_batches(list(loader), epochs[0][2:])


def test_early_break_then_next_epoch(epochs):
    with make(num_workers=2) as loader:
        for batch in loader:
            first = batch
            break
        assert_same_batches([first], epochs[0][:1])
        assert_same_batches(list(loader), epochs[1])


def test_set_epoch_keeps_a_position_of_that_epoch(epochs):
    with make() as loader:
        loader.set_epoch(2)
        take(loader, 2)
        state = loader.state_dict()
    with make() as loader:
        loader.load_state_dict(state)
        loader.set_epoch(2)
        assert_same_batches(list(loader), epochs[2][2:])
        loader.load_state_dict(state)
        loader.set_epoch(0)
        assert_same_batches(list(loader), epochs[0])


def test_state_of_another_run_is_refused():
    with make() as loader:
        state = loader.state_dict()
    with make(batch_size=3) as loader, pytest.raises(ConfigError, match="batch_size was 4, is 3"):
        loader.load_state_dict(state)
    with make() as loader, pytest.raises(ConfigError, match="version 99"):
        loader.load_state_dict({**state, "version": 99})


# --- streams --------------------------------------------------------------------------------------


def hugging_face_stream():
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    return datasets.IterableDataset.from_generator(
        shard_rows, gen_kwargs={"shards": [0, 1, 2]}, features=features
    )


def make_stream(rows, workers: int) -> SubobjectLoader:
    dataset = SubobjectIterableDataset(rows, on_error="replace")
    return SubobjectLoader(
        dataset,
        faulty_tokenizer(),
        batch_size=3,
        num_workers=workers,
        executor="thread",
        segment_workers=2,
        prefetch_batches=2,
    )


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("source", [Rows, hugging_face_stream])
def test_stream_restores_at_every_step(source, workers):
    # Each step with workers starts them twice; all steps are tried without.
    steps = {0: None, 1: [3], 2: [4]}[workers]
    with make_stream(source(), workers) as loader:
        whole = list(loader)
        second = list(loader)
    labels = torch.cat([batch["label"] for batch in whole]).tolist()
    assert set(labels) >= set(range(21)) - {3, 4, 11}
    for step in steps or range(len(whole)):
        with make_stream(source(), workers) as loader:
            seen = take(loader, step)
            state = through_json(loader.state_dict())
        assert_same_batches(seen, whole[:step])
        with make_stream(source(), workers) as loader:
            loader.load_state_dict(state)
            assert_same_batches(list(loader), whole[step:])
            if not workers:
                assert_same_batches(list(loader), second)


def test_shuffled_stream_warns_at_resume():
    stream = hugging_face_stream().shuffle(seed=1, buffer_size=5)
    with make_stream(stream, 0) as loader:
        take(loader, 2)
        state = loader.state_dict()
    with make_stream(stream, 0) as loader, pytest.warns(UserWarning, match="buffer"):
        loader.load_state_dict(state)


# --- kills ----------------------------------------------------------------------------------------

TRAINER = """
import hashlib, json, sys, time
from pathlib import Path
import torch
from helpers.batches import faulty_tokenizer
from helpers.faulty import CodedImages, Rows
from helpers.region_rows import coloured_row
from helpers.tiny_tokenizers import byte_tokenizer
from subtok_data import (
    PatchSegmenter, SubobjectCollator, SubobjectDataset, SubobjectIterableDataset, SubobjectLoader,
    SubobjectTokenizer,
)
from subtok_data.data import LargeScaleJitter, RegionDataset
from subtok_data.segmenters import PromptedSegmenter
from subtok_data.text import RegionText

kind, log = sys.argv[1], Path("log.jsonl")
options = {"batch_size": 2, "num_workers": 2, "segment_workers": 1, "shuffle": kind != "stream"}
if kind == "map":
    loader = SubobjectLoader(
        SubobjectDataset(CodedImages(40)), faulty_tokenizer(sleep_s=0.1), **options
    )
elif kind == "stream":
    dataset = SubobjectIterableDataset(Rows(), on_error="replace")
    loader = SubobjectLoader(dataset, faulty_tokenizer(sleep_s=0.1), **options)
else:
    rows = [coloured_row(seed) for seed in range(40)]
    tokenizer = SubobjectTokenizer(PromptedSegmenter(PatchSegmenter(16)), size=96)
    loader = SubobjectLoader(
        RegionDataset(rows, transform=LargeScaleJitter(96, (0.4, 2.0)), max_regions=4),
        collator=SubobjectCollator(
            tokenizer, region_text=RegionText(byte_tokenizer()), on_error="replace"
        ),
        **options,
    )
if log.exists():
    loader.load_state_dict(json.loads(log.read_text().splitlines()[-1])["state"])
for batch in loader:
    tensors = {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}
    bits = b"".join(value.contiguous().numpy().tobytes() for value in tensors.values())
    found = {
        "samples": batch["sample_index"].tolist(), "keys": list(batch),
        "bits": hashlib.sha256(bits).hexdigest(), "state": loader.state_dict(),
    }
    with log.open("a") as file:
        file.write(json.dumps(found) + "\\n")
    if kind == "regions":
        time.sleep(0.1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["map", "stream", "regions"])
def test_killed_again_and_again_at_random_positions(tmp_path, kind):
    """What a training run saw, with SIGKILLs in between, is what an undisturbed one sees."""
    helpers = str(Path(__file__).parents[1])
    random = np.random.default_rng()

    def run(folder: Path, kill_after: int | None) -> list[dict]:
        folder.mkdir(exist_ok=True)
        log = folder / "log.jsonl"
        process = subprocess.Popen(
            [sys.executable, "-c", TRAINER, kind],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": helpers},
        )
        while kill_after is not None and process.poll() is None:
            if log.exists() and log.read_bytes().count(b"\n") >= kill_after:
                process.kill()
            time.sleep(0.005)
        assert process.wait(200) in ((0,) if kill_after is None else (0, -9))
        lines = log.read_text().splitlines(keepends=True)
        log.write_text("".join(line for line in lines if line.endswith("\n")))
        return [json.loads(line) for line in log.read_text().splitlines()]

    whole = run(tmp_path / "whole", None)
    place = 0
    for _ in range(2):
        place = len(run(tmp_path / "killed", place + int(random.integers(1, 4))))
    resumed = run(tmp_path / "killed", None)
    for one in (*whole, *resumed):
        del one["state"]
    assert resumed == whole
