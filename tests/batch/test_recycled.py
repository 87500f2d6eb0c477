"""Memory of batches that are gone is used again; that of batches in use never is."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch

from subtok_data.batch import RecycledArrays


def test_memory_comes_back_with_the_last_tensor():
    arrays = RecycledArrays()
    first = torch.from_numpy(arrays.empty((4, 5), np.float32))
    place = first.data_ptr()
    row = first[2:3]
    del first
    other = arrays.empty((4, 5), np.float32)
    assert other.ctypes.data != place
    del row
    assert arrays.empty((5, 4), np.float32).ctypes.data == place


@pytest.mark.parametrize(
    "keep",
    [
        lambda tensor: tensor.numpy(),
        lambda tensor: np.asarray(tensor)[1:],
        lambda tensor: tensor.untyped_storage(),
        lambda tensor: np.from_dlpack(tensor),
        lambda tensor: memoryview(tensor.numpy()),
        lambda tensor: tensor.view(torch.int32).detach(),
        lambda tensor: torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(tensor)),
    ],
)
def test_whatever_shows_a_tensor_keeps_its_memory(keep):
    arrays = RecycledArrays()
    tensor = torch.from_numpy(arrays.empty((4, 5), np.float32))
    place, shown = tensor.data_ptr(), keep(tensor)
    del tensor
    gc.collect()
    other = arrays.empty((4, 5), np.float32)
    assert other.ctypes.data != place
    del shown
    gc.collect()
    assert arrays.empty((4, 5), np.float32).ctypes.data == place


def test_memory_fits_and_is_bounded():
    arrays = RecycledArrays()
    small = arrays.empty((10,), np.uint8)
    del small
    large = arrays.empty((1000,), np.uint8)  # too large for it
    place = large.ctypes.data
    del large
    assert arrays.empty((10,), np.int32).ctypes.data != place  # far too small for it
    assert arrays.empty((125,), np.int64).ctypes.data == place
    many = [arrays.empty((1000,), np.uint8) for _ in range(20)]
    blocks = [weakref.ref(array.base) for array in many]
    many.clear()
    assert sum(block() is not None for block in blocks) <= 4


def test_arrays_of_nothing():
    assert RecycledArrays().empty((0, 3), np.float32).shape == (0, 3)
