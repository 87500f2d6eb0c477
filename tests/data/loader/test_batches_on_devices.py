"""Batches on a device: those of the CPU, without a wait in the thread that takes them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from helpers.batches import assert_same, assert_same_batches, faulty_tokenizer
from helpers.fake_cuda import FakeCuda
from helpers.faulty import RAISE, CodedImages
from helpers.tiny_tokenizers import word_tokenizer

from subtok_data import SubobjectCollator, SubobjectLoader, TextConfig

TEXT = TextConfig(word_tokenizer(), caption="caption")
ROWS = CodedImages(6)


def make(device: str | None = None, rows: Any = ROWS, **options: Any) -> SubobjectLoader:
    collator = SubobjectCollator(
        faulty_tokenizer(), text=TEXT, on_error="replace", **options.pop("collator", {})
    )
    return SubobjectLoader(
        rows, collator=collator, batch_size=2, device=device, executor="thread", **options
    )


def load(device: str | None = None, **options: Any) -> list[Any]:
    with make(device, **options) as loader:
        return list(loader)


@pytest.mark.parametrize("look_ahead", [0, 3])
@pytest.mark.parametrize("packing", [False, True])
def test_batches_are_those_of_the_cpu(monkeypatch, look_ahead, packing):
    options = {"prefetch_batches": look_ahead, "collator": {"packing": packing}}
    expected = load(**options)
    FakeCuda(monkeypatch)
    assert_same_batches(load("cuda:1", **options), expected)


def test_two_copies_a_batch_on_one_stream_of_the_loader(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    with make("cuda:1") as loader:
        for _ in range(2):
            list(loader)
    copies = cuda.of("upload")
    assert len(copies) == 2 * 3 * 2
    assert all(copy.pinned and copy.non_blocking for copy in copies)
    assert len({copy.stream for copy in copies}) == 1
    assert {copy.thread for copy in copies} == {"subtok-finisher"}
    assert "default" not in {copy.stream for copy in copies}


def test_the_thread_that_takes_batches_only_lets_its_stream_wait(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    with make("cuda:1") as loader:
        side = torch.cuda.Stream("cuda:1")
        with torch.cuda.stream(side):
            running = iter(loader)
            batches = [next(running)]
            with refused_syncs(monkeypatch):
                batches += running
    assert loader.stats().text_padding_fraction > 0
    waits = cuda.of("wait_event")
    assert [(wait.thread, wait.stream) for wait in waits] == [("MainThread", side.name)] * 3
    assert [wait.event for wait in waits] == [note.event for note in cuda.of("record")]
    kept = {note.of for note in cuda.of("record_stream") if note.for_ == side.name}
    tensors = [one for batch in batches for one in batch.values() if isinstance(one, torch.Tensor)]
    assert kept >= {one.data_ptr() for one in tensors}


@contextmanager
def refused_syncs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In this thread, refuse to read the value of a tensor: on a device that would be a wait."""
    main = threading.current_thread()
    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "__int__", "__bool__", "__float__", "cpu", "nonzero"):
            read = getattr(torch.Tensor, name)

            def refuse(tensor, *args, read=read, name=name):
                assert threading.current_thread() is not main, f"a wait for the device: {name}"
                return read(tensor, *args)

            patch.setattr(torch.Tensor, name, refuse)
        yield


def test_a_batch_with_a_replaced_sample_is_that_of_the_cpu(monkeypatch):
    rows = CodedImages(6, {3: RAISE})
    expected = load(rows=rows)
    FakeCuda(monkeypatch)
    assert_same_batches(load("cuda:1", rows=rows), expected)


def test_counts_are_those_of_batches_on_the_cpu(monkeypatch):
    with make() as loader:
        list(loader)
        expected = loader.stats()
    FakeCuda(monkeypatch)
    with make("cuda:1") as loader:
        list(loader)
        found = loader.stats()
    for name in ("batches", "images", "tokens", "padding_fraction", "text_padding_fraction"):
        assert getattr(found, name) == getattr(expected, name), name


# --- on a device ------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("packing", [False, True])
def test_gpu_batches_are_those_of_the_cpu(packing):
    options = {"collator": {"packing": packing}}
    for found, expected in zip(load("cuda", **options), load(**options), strict=True):
        for value in found.values():
            assert not isinstance(value, torch.Tensor) or value.is_cuda
        moved = {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in found.items()}
        assert_same(moved, expected)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.*synchronization debug mode.*")
def test_gpu_no_wait_in_the_thread_that_takes_batches():
    with make("cuda") as loader:
        list(loader)  # memory is pinned, kernels are loaded
        batches = iter(loader)
        first = next(batches)
        torch.cuda.set_sync_debug_mode("error")  # in this process, so other threads raise too
        try:
            rest = list(batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len([first, *rest]) == 3


@pytest.mark.gpu
def test_gpu_batches_come_while_the_stream_of_training_is_busy():
    with make("cuda") as loader:
        list(loader)
        done = torch.cuda.Event()
        torch.cuda._sleep(2_000_000_000)  # about a second
        done.record()
        batches = list(loader)
        assert not done.query(), "a batch waited for the training stream"
    torch.cuda.synchronize()
    for found, expected in zip(batches, load(), strict=True):
        assert torch.equal(found["pixel_values"].cpu(), expected["pixel_values"])


@pytest.mark.gpu
def test_gpu_a_side_stream_sees_whole_batches_and_their_memory_stays():
    expected = [batch["pixel_values"].double().sum().item() for batch in load()]
    side = torch.cuda.Stream()
    sums = []
    with torch.cuda.stream(side), make("cuda") as loader:
        for _ in range(3):
            for batch in loader:
                torch.cuda._sleep(50_000_000)
                sums.append(batch["pixel_values"].double().sum())
                del batch  # the next one must not get its memory before the sum is made
    torch.cuda.synchronize()
    assert [one.item() for one in sums] == pytest.approx(expected * 3)
