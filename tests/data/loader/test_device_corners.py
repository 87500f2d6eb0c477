"""Odd batches, several loaders on one model, and workers beside an accelerator."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from helpers.batches import assert_same_batches, faulty_tokenizer
from helpers.fake_cuda import FakeCuda
from helpers.faulty import CodedImages
from helpers.tiny_tokenizers import word_tokenizer

from subtok_data import SubobjectCollator, SubobjectLoader, SubobjectTokenizer, TextConfig

TEXT = TextConfig(word_tokenizer(), caption="caption")
TEXTS = [{"image": [], "caption": f"caption {i}"} for i in range(4)]
DOTS = [{"image": np.full((1, 1, 3), 50 * i, np.uint8), "caption": "dot"} for i in range(3)]
SIZES = [
    {"image": np.full((1 + i, 40 - i, 3), i, np.uint8), "caption": "of its own size"}
    for i in range(30)
]


@pytest.mark.parametrize("rows", [TEXTS, DOTS, SIZES], ids=["texts", "dots", "sizes"])
def test_odd_batches_on_a_device_are_those_of_the_cpu(monkeypatch, rows):
    collator = SubobjectCollator(faulty_tokenizer(), text=TEXT)

    def load(device: str | None) -> list[Any]:
        options = {"batch_size": 30, "executor": "inline", "device": device}
        with SubobjectLoader(rows, collator=collator, **options) as loader:
            return list(loader)

    expected = load(None)
    FakeCuda(monkeypatch)
    assert_same_batches(load("cuda:3"), expected)


def test_three_loaders_at_once_on_one_model_have_its_maps():
    tokenizer = SubobjectTokenizer(size=96, device="cpu")
    rows = CodedImages(6)
    expected = [tokenizer(rows[i]["image"]).token_map for i in range(6)]
    found: dict[int, list[Any]] = {}

    def load(number: int) -> None:
        with SubobjectLoader(rows, tokenizer, executor="inline") as loader:
            found[number] = [batch["visual_token_map"][0].numpy() for batch in loader]

    threads = [threading.Thread(target=load, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    for maps in found.values():
        for one, other in zip(maps, expected, strict=True):
            assert np.array_equal(one, other)


class Observed(CodedImages):
    """Says of each row in which process it was loaded, and whether CUDA was opened there."""

    def __getitem__(self, index: int):
        info = torch.utils.data.get_worker_info()
        opened = bool(torch.cuda._initialized)
        return {**super().__getitem__(index), "worker": info is not None, "opened": opened}


@pytest.mark.parametrize(
    "method", [None, "fork", "forkserver", pytest.param("spawn", marks=pytest.mark.slow)]
)
def test_workers_beside_an_accelerator_in_use_never_open_it(monkeypatch, method):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    options = {"num_workers": 1, "executor": "inline", "multiprocessing_context": method}
    with SubobjectLoader(Observed(4), faulty_tokenizer(), batch_size=2, **options) as loader:
        batches = list(loader)
        (process,) = loader._iterator._workers
        kind = type(process).__name__
    assert len(batches) == 2
    assert all(bool(batch["worker"].all()) for batch in batches)
    assert not any(bool(batch["opened"].any()) for batch in batches)
    wanted = {"fork": "ForkProcess", "spawn": "SpawnProcess"}
    assert kind == wanted.get(method or "", "ForkServerProcess")


def test_workers_are_forked_before_the_loader_opens_a_device(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    opened: list[bool] = []

    def started(*_: Any) -> bool:
        opened.append(bool(cuda.of("current_device", "set_device")))
        return opened[-1]

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: started())
    options = {"num_workers": 1, "executor": "inline", "device": "cuda"}
    with SubobjectLoader(CodedImages(2), faulty_tokenizer(), **options) as loader:
        assert len(list(loader)) == 2
    assert opened
    assert not opened[0]
