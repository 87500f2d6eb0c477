"""Only the main process touches an accelerator, whichever segmenter or prompter it is."""

from __future__ import annotations

import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.segmenters import MAKERS, Models

from subtok_data import BoundaryModel, EPOCSegmenter, Prompts
from subtok_data.devices import DeviceError
from subtok_data.segmenters.sam.efficient_sam import open_efficient_sam

MODELLESS = {"patch", "slic", "felzenszwalb"}
WITH_MODEL = [name for name in MAKERS if name not in MODELLESS]
IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def cuda(monkeypatch) -> None:
    """Let torch believe that there are CUDA devices, of which number 3 is current."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)


@pytest.fixture
def enter_worker(monkeypatch):
    """Call it to be in a DataLoader worker from then on."""
    inside = {"info": None}
    monkeypatch.setattr("subtok_data.devices.get_worker_info", lambda: inside["info"])
    return lambda: inside.update(info=SimpleNamespace(id=5))


def infer(segmenter: Any) -> Any:
    prompts = Prompts.of(IMAGE.shape[:2], boxes=[[5, 5, 40, 30]])
    asked = [prompts] if segmenter.takes_prompts else None
    return segmenter.infer([IMAGE], [IMAGE.shape[:2]], asked)


@pytest.mark.parametrize("name", WITH_MODEL)
def test_in_a_worker_the_choice_is_the_cpu(models, cuda, enter_worker, name):
    enter_worker()
    segmenter = MAKERS[name](models, None)
    assert len(infer(segmenter)) == 1
    assert segmenter.device == torch.device("cpu")


@pytest.mark.parametrize("name", WITH_MODEL)
def test_an_accelerator_is_refused_in_a_worker(models, cuda, enter_worker, name):
    enter_worker()
    segmenter = MAKERS[name](models, "cuda")
    for use in (infer, lambda one: one.to("cuda")):
        with pytest.raises(DeviceError, match="inside DataLoader worker 5"):
            use(segmenter)


@pytest.mark.parametrize("name", WITH_MODEL)
def test_a_model_that_was_moved_before_is_refused_too(models, monkeypatch, enter_worker, name):
    segmenter = MAKERS[name](models)
    infer(segmenter)
    # Stands for an accelerator: not the CPU, and there on every machine. TorchScript has no such.
    monkeypatch.setattr(torch.jit.RecursiveScriptModule, "to", lambda module, _: module)
    segmenter.to("meta")
    assert segmenter.device.type == "meta"
    with pytest.raises(DeviceError, match="not pickled"):
        pickle.dumps(segmenter)
    enter_worker()
    with pytest.raises(DeviceError, match="inside DataLoader worker 5"):
        infer(segmenter)


def test_threads_that_need_a_model_load_one(monkeypatch):
    loaded = []
    load = BoundaryModel.from_pretrained

    def slow(*given, **options):
        loaded.append(threading.get_ident())
        time.sleep(0.2)
        return load(*given, **options)

    monkeypatch.setattr(BoundaryModel, "from_pretrained", slow)
    segmenter = EPOCSegmenter(device="cpu")
    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(lambda _: segmenter.model, range(4)))
    assert len(loaded) == 1
    assert all(model is models[0] for model in models)
    assert pickle.loads(pickle.dumps(segmenter)).name == "epoc"


@pytest.mark.parametrize("name", WITH_MODEL)
def test_cuda_is_the_current_device_of_the_caller(models, cuda, monkeypatch, name):
    assert MAKERS[name](models, "cuda").device == torch.device("cuda", 3)
    assert MAKERS[name](models, None).device == torch.device("cuda", 3)
    assert MAKERS[name](models, "cuda:1").device == torch.device("cuda", 1)
    segmenter = MAKERS[name](models, None).to("cuda")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert segmenter.device == torch.device("cuda", 3)


@pytest.mark.parametrize("name", sorted(MODELLESS))
def test_without_a_model_there_is_nothing_to_move(models, cuda, enter_worker, name):
    enter_worker()
    segmenter = MAKERS[name](models, "cuda").to("cuda")
    assert segmenter.device == torch.device("cpu")
    assert len(infer(segmenter)) == 1


def test_onnxruntime_gets_the_number_of_the_device(models, cuda, monkeypatch):
    runtime = pytest.importorskip("onnxruntime")
    file = models.onnx()
    asked: list[Any] = []
    start = runtime.InferenceSession

    def session(path, options, providers):
        asked.append(providers[0])
        return start(path, options, providers=["CPUExecutionProvider"])

    there = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(runtime, "get_available_providers", lambda: there)
    monkeypatch.setattr(runtime, "InferenceSession", session)
    assert open_efficient_sam(file, "cuda").device == torch.device("cuda", 3)
    open_efficient_sam(file, "cuda:1")
    numbers = [options["device_id"] for _, options in asked]
    assert numbers == [3, 3, 1, 1]
