"""``pixel_values``: the bits of numpy's own arithmetic, whatever the sizes and the memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from subtok_data.batch import PixelConfig, stack_pixels

sides = st.integers(1, 40)


def normalised(images, config: PixelConfig) -> np.ndarray:
    """Multiply, add and pad, one array operation after the other."""
    height = max(image.shape[0] for image in images)
    width = max(image.shape[1] for image in images)
    scale, shift = (np.array(values, np.float32)[:, None, None] for values in config.affine)
    stacked = np.zeros((len(images), 3, height, width), np.float32)
    for slot, image in zip(stacked, images, strict=True):
        planes = image.transpose(2, 0, 1).astype(np.float32)
        slot[:, : image.shape[0], : image.shape[1]] = planes * scale + shift
    return stacked


@settings(deadline=None)  # the first example compiles the kernels
@given(
    sizes=st.lists(st.tuples(sides, sides), min_size=1, max_size=4),
    mean=st.tuples(*[st.floats(0, 1)] * 3),
    std=st.tuples(*[st.floats(0.01, 2)] * 3),
    seed=st.integers(0, 99),
)
def test_pixels_have_the_bits_of_plain_arithmetic(sizes, mean, std, seed):
    random = np.random.default_rng(seed)
    images = [random.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    config = PixelConfig(mean=mean, std=std)
    found = stack_pixels(images, config, None).numpy()
    expected = normalised(images, config)
    assert found.dtype == np.float32
    assert found.tobytes() == expected.tobytes()
    half = stack_pixels(images, PixelConfig(mean=mean, std=std, dtype="bfloat16"), None)
    assert torch.equal(half, torch.from_numpy(expected).bfloat16())
    raw = stack_pixels(images, PixelConfig(dtype="uint8"), None).numpy()
    for slot, image in zip(raw, images, strict=True):
        rows, columns = image.shape[:2]
        assert (slot[:, :rows, :columns] == image.transpose(2, 0, 1)).all()
        assert not slot[:, rows:].any()
        assert not slot[:, :, columns:].any()


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_images_may_be_views_and_read_only(dtype):
    image = np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8)
    read_only = image.copy()
    read_only.flags.writeable = False
    config = PixelConfig(dtype=dtype)
    expected = stack_pixels([image[::2, ::-1].copy()], config, None)
    assert torch.equal(stack_pixels([image[::2, ::-1]], config, None), expected)
    assert torch.equal(stack_pixels([read_only], config, None), stack_pixels([image], config, None))
