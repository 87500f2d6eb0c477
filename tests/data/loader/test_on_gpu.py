"""What only a GPU can show: its memory, its other streams, the contexts of other processes."""

from __future__ import annotations

import os
import time

import numpy as np
import psutil
import pytest
import torch
from helpers.segmenters import Models, sam, unsure

from subtok_data import BoundaryModel, EPOCSegmenter, SubobjectLoader, SubobjectTokenizer


def photos(count: int, sizes: tuple[tuple[int, int], ...] = ((96, 128),)) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*sizes[at % len(sizes)], 3), np.uint8) for at in range(count)]


def make(rows: list[np.ndarray], device: str = "cuda", **options) -> SubobjectLoader:
    tokenizer = SubobjectTokenizer(EPOCSegmenter(device=device), size=128)
    options = {"batch_size": 4, "segment_workers": 1, **options}
    return SubobjectLoader([{"image": one} for one in rows], tokenizer, device=device, **options)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_maps_and_batches_can_be_saved_for_backward(device):
    images = photos(2)
    model = BoundaryModel.from_pretrained(device=device)
    with torch.inference_mode():  # of the caller, who forgot it
        maps = model.predict_on_device(images)
    scale = torch.ones((), device=device, requires_grad=True)
    (maps[0].float() * scale).sum().backward()
    assert scale.grad == maps[0].sum()
    with make(images, device) as loader:
        (batch,) = loader
    scale.grad = None
    (batch["pixel_values"] * scale).sum().backward()
    torch.testing.assert_close(scale.grad, batch["pixel_values"].sum(), rtol=1e-3, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_gpu_a_loader_of_the_second_device_leaves_the_first_alone():
    before = torch.cuda.memory_allocated(0)
    with make(photos(8), "cuda:1") as loader:
        for batch in loader:
            assert batch["pixel_values"].device == torch.device("cuda", 1)
            assert batch["visual_token_map"].device == torch.device("cuda", 1)
    assert torch.cuda.max_memory_allocated(0) == before
    assert torch.cuda.max_memory_allocated(1) > 0


@pytest.mark.gpu
def test_gpu_training_under_autocast_casts_its_weights_once_a_step():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Casts(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            del types
            self.count += func is torch.ops.aten._to_copy.default
            return func(*args, **(kwargs or {}))

    linear = torch.nn.Linear(64, 64, device="cuda")
    inputs = torch.randn(8, 64, device="cuda")

    def casts_of_a_step() -> int:
        # The weight is used three times and kept for all of them.
        with torch.autocast("cuda", torch.bfloat16), Casts() as seen:
            for _ in range(3):
                linear(inputs)
                time.sleep(0.005)  # the loader's threads run meanwhile
        return seen.count

    alone = casts_of_a_step()
    with make(photos(80)) as loader:
        found = [casts_of_a_step() for _ in loader]
    assert set(found) == {alone}


@pytest.mark.gpu
def test_gpu_later_epochs_take_no_longer():
    took = []
    with make(photos(160), shuffle=True) as loader:
        for _ in range(4):
            began = time.perf_counter()
            for _ in loader:
                pass
            took.append(time.perf_counter() - began)
    # The first loads kernels and code; one of the later ones may meet other load.
    assert min(took[2:]) <= 1.3 * took[1], took


@pytest.mark.gpu
def test_gpu_memory_stays_with_images_of_many_sizes():
    random = np.random.default_rng(0)
    sizes = tuple((int(h), int(w)) for h, w in random.integers(40, 129, (40, 2)))
    model = BoundaryModel.from_pretrained(device="cuda")
    images = photos(200, sizes)
    reserved = []
    for number in range(200):
        at = 4 * number % len(images)
        model.predict(images[at : at + 4])
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[-1] <= 1.2 * reserved[99], reserved[::20]


@pytest.mark.gpu
def test_gpu_a_graph_of_the_users_beside_a_running_loader():
    inputs, weight = torch.ones(4, 8, device="cuda"), torch.full((8, 8), 0.5, device="cuda")
    side = torch.cuda.Stream()
    with make(photos(40)) as loader:
        batches = iter(loader)
        next(batches)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            inputs @ weight  # loads the kernel
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = inputs @ weight
        rest = list(batches)
        inputs.fill_(2)
        graph.replay()
    torch.cuda.synchronize()
    assert len(rest) == 9
    assert torch.equal(outputs, torch.full((4, 8), 8.0, device="cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["sam", "mask2former"])
def test_gpu_models_run_where_they_are_asked_to(tmp_path, kind):
    models = Models(tmp_path)
    segmenter = (sam if kind == "sam" else unsure)(models, kind, "cuda")
    expected = (sam if kind == "sam" else unsure)(models, kind, "cpu")
    (image,) = photos(1)
    found = segmenter.infer([image], [image.shape[:2]])[0]
    assert found.keys() == expected.infer([image], [image.shape[:2]])[0].keys()
    assert segmenter.device.type == "cuda"
    assert segmenter.device.index is not None


@pytest.mark.gpu
def test_gpu_workers_have_no_context():
    torch.cuda.init()
    with make(photos(16), num_workers=2) as loader:
        batches = iter(loader)
        next(batches)
        children = psutil.Process().children(recursive=True)
        assert len(children) >= 3  # two that decode, one that segments
        for child in children:
            folder = f"/proc/{child.pid}/fd"
            links = [os.readlink(os.path.join(folder, name)) for name in os.listdir(folder)]
            assert not [link for link in links if link.startswith("/dev/nvidia")], child.cmdline()
        assert len(list(batches)) == 3
