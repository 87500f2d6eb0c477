"""Which device and stream each thread of the loader works on, seen on devices that are none."""

from __future__ import annotations

import threading

import pytest
import torch
from helpers.batches import faulty_tokenizer
from helpers.fake_cuda import CURRENT, FakeCuda
from helpers.faulty import CodedImages, FaultyPartitioner, FaultySegmenter
from helpers.segmenters import MAKERS, Models

from subtok_data import SubobjectLoader, SubobjectTokenizer, devices
from subtok_data.data.loader import accelerate

HERE = torch.device("cuda", CURRENT)
THREADS = {"subtok-feeder", "subtok-collector", "subtok-finisher"}
WITH_MODEL = sorted(set(MAKERS) - {"patch", "slic", "felzenszwalb"})


@pytest.fixture
def cuda(monkeypatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


class OnDevice(FaultySegmenter):
    """Says that it runs on the device that was current where it was loaded."""

    device = torch.device("cpu")

    def load(self) -> None:
        self.loaded_in = threading.current_thread()
        self.device = torch.device("cuda", torch.cuda.current_device())

    def infer(self, images, sizes, prompts=None):
        self.stream = torch.cuda.current_stream()
        return super().infer(images, sizes, prompts)


@pytest.mark.parametrize("device", ["cuda", "cuda:2", torch.device("cuda")])
def test_devices_are_those_of_the_thread_that_iterates(cuda, device):
    segmenter = OnDevice(FaultyPartitioner())
    tokenizer = SubobjectTokenizer(segmenter, size=None)
    with SubobjectLoader(CodedImages(4), tokenizer, batch_size=2, device=device) as loader:
        assert loader.device == torch.device(device), "as given, for frameworks that build it anew"
        list(loader)
    assert segmenter.loaded_in is threading.main_thread()
    assert {note.thread for note in cuda.of("current_device")} == {"MainThread"}
    assert {note.device for note in cuda.of("upload")} == {HERE}
    begun = {note.thread: note.device for note in cuda.of("set_device")}
    assert begun == dict.fromkeys(THREADS, HERE)
    first = {name: next(n for n in cuda.notes if n.thread == name).what for name in THREADS}
    assert set(first.values()) == {"set_device"}


def test_the_bare_device_of_accelerate_gets_its_number(cuda, monkeypatch):
    class State:
        _shared_state = {"device": "cuda"}  # noqa: RUF012
        device = torch.device("cuda")

    monkeypatch.setattr(accelerate, "PartialState", State)
    assert accelerate.accelerate_device() == HERE


def test_models_run_on_one_stream_of_their_own_that_waits_for_their_weights(cuda):
    segmenter = OnDevice(FaultyPartitioner())
    tokenizer = SubobjectTokenizer(segmenter, size=None)
    streams = []
    with SubobjectLoader(CodedImages(4), tokenizer, batch_size=2) as loader:
        for _ in range(2):
            for _ in loader:
                streams.append(segmenter.stream)
    assert len({stream.name for stream in streams}) == 1, "memory of each stream is apart"
    assert streams[0].priority == -1
    assert streams[0].device == HERE
    waits = [(note.stream, note.other) for note in cuda.of("wait_stream")]
    assert [other for _, other in waits] == ["default"] * 2


def test_without_an_accelerator_nothing_is_asked_of_one(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    with SubobjectLoader(CodedImages(4), faulty_tokenizer(), batch_size=2) as loader:
        list(loader)
    assert not [note.what for note in cuda.notes]


@pytest.mark.parametrize("name", WITH_MODEL)
def test_models_are_loaded_in_the_thread_that_iterates(tmp_path_factory, monkeypatch, name):
    models = Models(tmp_path_factory.getbasetemp())
    segmenter = MAKERS[name](models)
    found: list[str] = []
    check = devices.check_device

    def spy(device):
        found.append(threading.current_thread().name)
        return check(device)

    monkeypatch.setattr("subtok_data.devices.check_device", spy)
    tokenizer = SubobjectTokenizer(segmenter, size=64)
    with SubobjectLoader(CodedImages(1), tokenizer, executor="inline") as loader:
        assert len(list(loader)) == 1
    assert set(found) <= {"MainThread"}
    assert found
