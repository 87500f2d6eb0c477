"""No copy goes on after its call unless it is from pinned memory to CUDA, or back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.batches import faulty_tokenizer
from helpers.fake_cuda import FakeCuda
from helpers.faulty import CodedImages

from subtok_data import SubobjectCollator, SubobjectLoader
from subtok_data.batch import PixelConfig, stack_pixels
from subtok_data.boundary.padding import stack
from subtok_data.data import SubobjectDataset
from subtok_data.device_streams import move_to

IMAGES = [np.random.default_rng(i).integers(0, 256, (40, 30 + i, 3), np.uint8) for i in range(3)]


def finish_pending(device: str, *, twice: bool = False) -> None:
    collator = SubobjectCollator(faulty_tokenizer())
    with collator.deferred():
        rows = SubobjectDataset(CodedImages(2))
        pending = collator([rows[0], rows[1]])
    if twice:
        pending.finish()
    pending.to(device, non_blocking=True)


def load(device: str) -> None:
    with SubobjectLoader(CodedImages(4), faulty_tokenizer(), batch_size=2, device=device) as loader:
        list(loader)


WAYS = {
    "loader": load,
    "pending": finish_pending,
    "pending, finished before": lambda device: finish_pending(device, twice=True),
    "pixels": lambda device: stack_pixels(IMAGES, PixelConfig(), torch.device(device)),
    "canvas": lambda device: stack(IMAGES, (64, 64), torch.device(device)),
    "tensor": lambda device: move_to(torch.ones(3), torch.device(device)),
}


@pytest.mark.parametrize("way", WAYS)
def test_to_a_device_that_is_not_cuda_every_copy_is_waited_for(monkeypatch, way):
    # Stands for MPS: not the CPU, and there on every machine.
    hasty: list[tuple] = []
    to, copy = torch.Tensor.to, torch.Tensor.copy_

    def spied_to(tensor, *args, **options):
        if options.get("non_blocking"):
            hasty.append((args, tensor.shape))
        return to(tensor, *args, **options)

    def spied_copy(tensor, source, non_blocking=False):
        if non_blocking:
            hasty.append((tensor.shape, source.shape))
        return copy(tensor, source, non_blocking)

    monkeypatch.setattr(torch.Tensor, "to", spied_to)
    monkeypatch.setattr(torch.Tensor, "copy_", spied_copy)
    WAYS[way]("meta")
    assert not hasty


@pytest.mark.parametrize("way", WAYS)
def test_to_cuda_copies_go_on_from_pinned_memory_only(monkeypatch, way):
    cuda = FakeCuda(monkeypatch)
    WAYS[way]("cuda:2")
    copies = cuda.of("upload", "copy")
    assert copies
    assert all(note.pinned for note in copies if note.non_blocking)
