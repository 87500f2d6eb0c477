"""Damaged files, odd modes and arrays of all types: an image comes out, or an ImageError."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features

from subtok_data.errors import ImageError
from subtok_data.images import to_rgb

LIMIT = 1 << 20
WRITTEN = ("BMP", "DDS", "GIF", "ICNS", "ICO", "JPEG", "MPO", "MSP", "PCX", "PNG", "PPM")
WRITTEN += ("SGI", "SPIDER", "TGA", "TIFF", "XBM")
OPTIONAL = {"webp": "WEBP", "avif": "AVIF", "jpg_2000": "JPEG2000"}
FORMATS = [*WRITTEN, *(name for part, name in OPTIONAL.items() if features.check(part))]
MODES = ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA")
MODES += ("RGBX", "RGBa", "La", "I;16", "I;16B", "I;16L")
DTYPES = [np.dtype(code) for code in "?bBhHiIlLqQefdgFDGSUVOMm"]
TENSORS = [
    kind
    for kind in vars(torch).values()
    # torch warns when it makes one of these
    if isinstance(kind, torch.dtype) and not re.search(r"\.q|complex32", str(kind))
]


def read(value: Any, **options: Any) -> bool:
    """Whether it became an image; any other error, or warning of ours, fails the test."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        warnings.filterwarnings("ignore", message="Image was not the expected size")
        try:
            found = to_rgb(value, **{"max_pixels": LIMIT, **options})
        except ImageError:
            return False
    assert found.dtype == np.uint8
    assert found.ndim == 3
    assert found.shape[2] == 3
    assert 0 < found.shape[0] * found.shape[1] <= LIMIT
    assert found.flags.c_contiguous
    assert found.flags.writeable
    return True


def random_image(random: np.random.Generator, mode: str | None = None) -> Image.Image:
    height, width = (int(side) for side in random.integers(1, 40, 2))
    mode = mode or str(random.choice(MODES))
    values = random.integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode.startswith("I;16"):
        return Image.frombytes(mode, (width, height), values[..., :2].tobytes())
    if mode in ("I", "F"):
        kind = np.int32 if mode == "I" else np.float32
        return Image.fromarray((values[..., 0] * random.choice([-1, 1, 257])).astype(kind))
    bands = len(Image.new(mode, (1, 1)).getbands())
    image = (
        Image.frombytes(mode, (width, height), values[..., :bands].tobytes())
        if (mode not in ("1", "RGBX", "RGB", "YCbCr", "LAB", "HSV", "LA", "PA", "La"))
        else Image.new(mode, (width, height))
    )
    if mode in ("P", "PA"):
        image.putpalette(random.integers(0, 256, 768, dtype=np.uint8).tobytes())
    return image


def encode(random: np.random.Generator, format: str) -> bytes:
    """A file of a format: random mode where the format takes it, random orientation."""
    exif = Image.Exif()
    exif[0x0112] = int(random.integers(0, 12))
    for mode in (str(random.choice(MODES)), "RGB", "L", "1"):
        image = random_image(random, mode)
        for options in ({"exif": exif}, {}):
            stream = io.BytesIO()
            try:
                image.save(stream, format, **options)
            except (OSError, ValueError, TypeError, KeyError, AttributeError):
                continue
            return stream.getvalue()
    raise AssertionError(f"no image can be written as {format}")


def damage(random: np.random.Generator, content: bytes) -> bytes:
    """Change, cut, double, drop or insert bytes; mostly in the header, where sizes stand."""
    data = bytearray(content)
    for _ in range(int(random.integers(1, 4))):
        reach = len(data) if random.random() < 0.5 else min(len(data), 64)
        at = int(random.integers(0, max(1, reach)))
        kind = int(random.integers(6))
        if kind == 0 and data:
            data[at] = int(random.integers(256))
        elif kind == 1 and data:
            data[at] = int(random.choice([0, 1, 127, 128, 255]))
        elif kind == 2:
            del data[int(random.integers(at, len(data) + 1)) :]
        elif kind == 3:
            del data[at : at + int(random.integers(1, 16))]
        elif kind == 4:
            data[at:at] = random.integers(0, 256, int(random.integers(1, 16)), np.uint8).tobytes()
        else:
            data[at : at + 4] = b"\xff\xff\xff\x7f"
    return bytes(data)


def check_files(seeds: Iterator[int] | range) -> int:
    """Damaged files of every format; returns how many could be read all the same."""
    good = 0
    for seed in seeds:
        random = np.random.default_rng(seed)
        format = FORMATS[seed % len(FORMATS)]
        content = damage(random, encode(random, format))
        try:
            good += read(content)
        except Exception as error:
            raise AssertionError(f"seed {seed}, {format}, {len(content)} bytes") from error
    return good


def test_damaged_files_of_every_format():
    assert 20 < check_files(range(400)) < 400


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_damaged_files_of_every_format_at_length():
    assert check_files(range(1000, 13_000)) > 1000


def test_every_format_is_read_undamaged():
    random = np.random.default_rng(0)
    for format in FORMATS:
        # SPIDER holds floats of any range.
        assert read(encode(random, format)) or format == "SPIDER", format


@pytest.mark.parametrize("mode", MODES)
def test_random_images_of_every_mode(mode):
    for seed in range(12):
        image = random_image(np.random.default_rng(seed), mode)
        if mode not in ("I", "F"):  # negative values, and floats of no range
            assert read(image)
        else:
            read(image)


def arrays(seed: int) -> Iterator[Any]:
    random = np.random.default_rng(seed)
    for dtype in DTYPES:
        shape = tuple(random.integers(0, 6, int(random.integers(0, 5))))
        values = random.integers(0, 256, shape)
        with np.errstate(all="ignore"):
            try:
                array = values.astype(dtype)
            except (TypeError, ValueError):
                array = np.zeros(shape, dtype)
        yield array
        yield array.T
        yield np.asfortranarray(array)
        if array.dtype.kind == "f":
            yield array / 255
            yield np.where(random.random(shape) < 0.1, np.nan, array)


def tensors(seed: int) -> Iterator[torch.Tensor]:
    random = np.random.default_rng(seed)
    for dtype in TENSORS:
        shape = tuple(int(side) for side in random.integers(0, 6, int(random.integers(0, 5))))
        try:
            tensor = torch.from_numpy(random.integers(0, 2, shape).astype(np.uint8)).to(dtype)
        except (RuntimeError, TypeError, NotImplementedError):
            tensor = torch.empty(shape, dtype=dtype, device="meta")
        yield tensor
        yield torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize("make", [arrays, tensors])
def test_arrays_and_tensors_of_every_type_and_shape(make: Callable[[int], Iterator[Any]]):
    read_ones = total = 0
    for seed in range(20):
        for value in make(seed):
            total += 1
            read_ones += read(value)
    assert 0 < read_ones < total
