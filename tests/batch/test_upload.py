"""Batches on their way to a device: the same bits, one copy, and who waits for whom."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.fake_cuda import FakeCuda
from hypothesis import given, settings, strategies as st

from subtok_data.batch import BatchUpload, PixelConfig, stack_pixels
from subtok_data.batch.pixels import normalise_bytes
from subtok_data.batch.upload import Packed

DTYPES = (torch.bool, torch.uint8, torch.int32, torch.int64, torch.float32, torch.bfloat16)
sides = st.integers(1, 40)
CUDA = torch.device("cuda", 2)


def filled(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    made = torch.randint(0, 256, (*shape, dtype.itemsize), generator=torch.manual_seed(seed))
    found = made.to(torch.uint8)
    if dtype is torch.bool:
        return found.squeeze(-1) > 99
    return found.view(dtype).squeeze(-1)


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    def as_bytes(tensor: torch.Tensor) -> bytes:
        own = tensor.clone(memory_format=torch.contiguous_format)
        return (own.view(torch.int16) if own.dtype == torch.bfloat16 else own).numpy().tobytes()

    same_kind = first.dtype == second.dtype and first.shape == second.shape
    return same_kind and as_bytes(first) == as_bytes(second)


@given(
    st.lists(
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 9), max_size=3)), max_size=5
    )
)
def test_packed_tensors_come_out_as_they_went_in(kinds):
    tensors = {str(i): filled(tuple(shape), kind, i) for i, (kind, shape) in enumerate(kinds)}
    packed = Packed.of(tensors)
    found = packed.tensors()
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert same_bits(found[name], tensor)
        assert (
            found[name].untyped_storage().data_ptr() == packed.buffer.untyped_storage().data_ptr()
        )
        assert (found[name].storage_offset() * tensor.dtype.itemsize) % 256 == 0


def test_views_are_packed_as_what_they_show():
    tensor = filled((6, 8), torch.int64)
    views = {
        "turned": tensor.T,
        "cut": tensor[::2, 1:5],
        "spread": tensor[0].expand(3, 8),
        "none, without a step": tensor.as_strided((0,), (0,)),
        "one, without a step": tensor.as_strided((1,), (0,)),
    }
    found = Packed.of(views).tensors()
    for name, view in views.items():
        assert same_bits(found[name], view), name


@settings(deadline=None)  # the first example compiles the kernels
@given(
    sizes=st.lists(st.tuples(sides, sides), min_size=1, max_size=4),
    mean=st.tuples(*[st.floats(0, 1)] * 3),
    std=st.tuples(*[st.floats(0.01, 2)] * 3),
    dtype=st.sampled_from(["float32", "bfloat16", "uint8"]),
)
def test_pixels_made_of_bytes_have_the_bits_of_those_made_on_the_cpu(sizes, mean, std, dtype):
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    config = PixelConfig(mean=mean, std=std, dtype=dtype)
    canvas = [max(side) for side in zip(*sizes, strict=True)]
    raw = torch.full((len(images), *canvas, 3), 99, dtype=torch.uint8)  # beside images: anything
    for row, image in zip(raw, images, strict=True):
        row[: image.shape[0], : image.shape[1]] = torch.from_numpy(image)
    found = normalise_bytes(raw, sizes, config)
    assert same_bits(found, stack_pixels(images, config, None))
    assert found.is_contiguous()


def test_to_cuda_all_but_the_pixels_goes_in_one_copy_from_pinned_memory(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    batch = {
        "pixel_values": torch.zeros(2),
        "a": filled((3, 5), torch.int64),
        "text": ["x"],
        "b": filled((), torch.bool),
        "c": filled((300,), torch.float32),
    }
    upload = BatchUpload(CUDA, own_stream=True)
    with upload.entered():
        sent = upload.send(batch, made_there={"pixel_values": batch["pixel_values"]})
        event = upload.sent()
    assert list(sent) == list(batch)
    assert sent["pixel_values"] is batch["pixel_values"]
    assert sent["text"] is batch["text"]
    for name in "abc":
        assert same_bits(sent[name], batch[name])
    (copy,) = cuda.of("upload")
    assert (copy.pinned, copy.non_blocking, copy.device, copy.stream) == (
        True,
        True,
        CUDA,
        "stream 1",
    )
    assert event is not None


def test_what_is_more_than_its_bytes_goes_by_itself(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    sparse = torch.eye(3).to_sparse()
    trained = torch.ones(2, requires_grad=True)
    sent = BatchUpload(CUDA).send({"a": sparse, "b": trained, "c": torch.ones(4)})
    assert sent["a"].is_sparse
    assert sent["b"].requires_grad
    assert len(cuda.of("upload")) == 3


def test_the_consumer_waits_on_its_stream_and_keeps_the_memory(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    upload = BatchUpload(CUDA, own_stream=True)
    with upload.entered():
        batch = upload.send({"a": torch.ones(3), "b": "text", "c": torch.ones(2)})
        sent = upload.sent()
    side = torch.cuda.Stream(CUDA)
    with torch.cuda.stream(side):
        upload.receive(batch, sent)
    record, wait = cuda.of("record")[0], cuda.of("wait_event")[0]
    assert cuda.notes.index(cuda.of("upload")[0]) < cuda.notes.index(record)
    assert record.on == "stream 1"
    assert (wait.event, wait.stream) == (record.event, side.name)
    kept = {(note.of, note.for_) for note in cuda.of("record_stream")}
    assert kept == {(batch[name].data_ptr(), side.name) for name in "ac"}
    assert not cuda.of("synchronize")


def test_in_the_stream_of_the_caller_there_is_nothing_to_wait_for(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    upload = BatchUpload(CUDA)
    with upload.entered():
        batch = upload.send({"a": torch.ones(3)})
        sent = upload.sent()
    upload.receive(batch, sent)
    assert {note.what for note in cuda.notes} == {"upload"}
    assert cuda.of("upload")[0].stream == "default"


@pytest.mark.parametrize("images", [[], [(1, 1)], [(1, 1), (3, 2)]])
def test_few_and_tiny_images(monkeypatch, images):
    FakeCuda(monkeypatch)
    random = np.random.default_rng(0)
    pixels = [random.integers(0, 256, (*size, 3), np.uint8) for size in images]
    expected = stack_pixels(pixels, PixelConfig(), None)
    assert same_bits(stack_pixels(pixels, PixelConfig(), CUDA), expected)
