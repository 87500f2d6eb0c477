"""Everything that can be an image becomes RGB uint8, or one error that says why not."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image, ImageFile
from torchvision import tv_tensors

from subtok_data.errors import ConfigError, ImageError, SubtokError
from subtok_data.images import DEFAULT_MAX_PIXELS, canvas_size, image_path, resize, to_rgb

HEIGHT, WIDTH = 6, 9
NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
RGB = np.ascontiguousarray(NOISE[..., :3])
GREY = np.ascontiguousarray(NOISE[..., 0])
ALPHA = NOISE[..., 3]
GREY_RGB = np.repeat(GREY[..., None], 3, axis=2)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def over(colour: np.ndarray, alpha: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    share = alpha[..., None] / 255
    return colour * share + np.array(background) * (1 - share)


def same_image(result: np.ndarray, expected: np.ndarray, tolerance: float = 0) -> None:
    assert result.dtype == np.uint8
    assert result.shape == (*expected.shape[:2], 3)
    assert result.flags.c_contiguous
    assert result.flags.writeable
    assert np.abs(result.astype(float) - expected).max() <= tolerance


# --- Pillow modes ------------------------------------------------------------------------------


def test_mode_1():
    same_image(to_rgb(Image.fromarray(GREY > 127)), np.where(GREY > 127, 255, 0)[..., None])


def test_modes_l_and_rgb():
    same_image(to_rgb(Image.fromarray(GREY)), GREY_RGB)
    same_image(to_rgb(Image.fromarray(RGB)), RGB)


@pytest.mark.parametrize("background", [(255, 255, 255), (10, 200, 30)])
def test_alpha_modes(background):
    grey_alpha = Image.fromarray(np.stack([GREY, ALPHA], axis=2))
    rgba = Image.fromarray(NOISE)
    assert (grey_alpha.mode, rgba.mode) == ("LA", "RGBA")
    same_image(to_rgb(grey_alpha, background=background), over(GREY_RGB, ALPHA, background), 1)
    same_image(to_rgb(rgba, background=background), over(RGB, ALPHA, background), 1)
    # Premultiplying rounds the colour by at most half a level before it is divided again.
    tolerance = 2
    same_image(
        to_rgb(grey_alpha.convert("La"), background=background),
        over(GREY_RGB, ALPHA, background),
        tolerance,
    )
    same_image(
        to_rgb(rgba.convert("RGBa"), background=background),
        over(RGB, ALPHA, background),
        tolerance,
    )


def test_opaque_alpha_changes_nothing():
    opaque = np.dstack([RGB, np.full((HEIGHT, WIDTH), 255, np.uint8)])
    same_image(to_rgb(Image.fromarray(opaque)), RGB)
    same_image(to_rgb(np.dstack([RGB, np.zeros_like(GREY)])), np.full_like(RGB, 255))


def palette_image() -> tuple[Image.Image, np.ndarray]:
    index = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH) % 7
    colours = np.random.default_rng(1).integers(0, 256, (7, 3), dtype=np.uint8)
    image = Image.fromarray(index).convert("L")
    image.putpalette(colours.tobytes())
    return image, index


def test_palette():
    image, index = palette_image()
    assert image.mode == "P"
    colours = np.array(image.getpalette()).reshape(-1, 3)
    same_image(to_rgb(image), colours[index])


@pytest.mark.parametrize("kind", ["one index", "bytes"])
def test_palette_with_transparency(kind):
    image, index = palette_image()
    colours = np.array(image.getpalette()).reshape(-1, 3)
    if kind == "one index":
        alpha = np.where(index == 3, 0, 255)
        content = encoded(image, "PNG", transparency=3)
    else:
        table = np.array([0, 40, 80, 120, 160, 200, 255])
        alpha = table[index]
        content = encoded(image, "PNG", transparency=bytes(table.tolist()))
    same_image(to_rgb(content), over(colours[index], alpha, (255, 255, 255)), 1)


def test_palette_with_alpha_colours_and_pa():
    image, index = palette_image()
    table = np.random.default_rng(2).integers(0, 256, (7, 4), dtype=np.uint8)
    image.putpalette(table.tobytes(), "RGBA")
    expected = over(table[index][..., :3], table[index][..., 3], (255, 255, 255))
    same_image(to_rgb(image), expected, 1)
    pa = Image.new("PA", (3, 2), (1, 128))
    pa.putpalette([0, 0, 0, 200, 100, 0])
    same_image(
        to_rgb(pa), over(np.full((2, 3, 3), (200, 100, 0)), np.full((2, 3), 128), (255,) * 3), 1
    )


def test_single_transparent_colour():
    grey = Image.fromarray(GREY)
    hidden = int(GREY[2, 3])
    expected = np.where((hidden == GREY)[..., None], 255, GREY_RGB)
    same_image(to_rgb(encoded(grey, "PNG", transparency=hidden)), expected)
    colour = tuple(RGB[2, 3].tolist())
    expected = np.where((colour == RGB).all(axis=2, keepdims=True), 255, RGB)
    same_image(to_rgb(encoded(Image.fromarray(RGB), "PNG", transparency=colour)), expected)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB", "HSV"])
def test_colour_spaces(mode):
    image = Image.new("RGB", (WIDTH, HEIGHT), (200, 60, 30))
    image.paste((20, 90, 180), (0, 0, 4, 4))
    if mode == "LAB":
        from PIL import ImageCms

        lab = ImageCms.createProfile("LAB")
        source = ImageCms.profileToProfile(
            image, ImageCms.createProfile("sRGB"), lab, outputMode="LAB"
        )
    else:
        source = image.convert(mode)
    assert source.mode == mode
    same_image(to_rgb(source), np.asarray(image), 4)


def test_cmyk_jpeg():
    content = encoded(Image.fromarray(RGB).resize((90, 60)).convert("CMYK"), "JPEG", quality=95)
    expected = np.asarray(Image.fromarray(RGB).resize((90, 60)))
    assert np.abs(to_rgb(content).astype(int) - expected).mean() < 6


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
def test_16_bit_grey_is_scaled(mode):
    values = (GREY.astype(np.uint16) * 257)[:, :8]
    order = ">u2" if mode.endswith("B") else "<u2"
    image = Image.frombytes(mode, (8, HEIGHT), values.astype(order).tobytes())
    assert image.mode == mode
    same_image(to_rgb(image), GREY_RGB[:, :8])


def test_16_bit_png_and_tiff():
    values = np.array([[0, 128, 129, 257, 40000, 65535]], np.uint16)
    levels = [0, 0, 1, 1, 156, 255]
    for format in ("PNG", "TIFF"):
        result = to_rgb(encoded(Image.fromarray(values), format))
        assert result[0, :, 0].tolist() == levels
    same = to_rgb(encoded(Image.fromarray(values), "PNG", transparency=40000))
    assert same[0, :, 1].tolist() == [0, 0, 1, 1, 255, 255]


def test_mode_i():
    same_image(to_rgb(Image.fromarray(GREY.astype(np.int32))), GREY_RGB)
    same_image(to_rgb(Image.fromarray(GREY.astype(np.int32) * 257)), GREY_RGB)
    with pytest.raises(ImageError, match="values -5 to"):
        to_rgb(Image.fromarray(GREY.astype(np.int32) - 5 - GREY.min()))
    with pytest.raises(ImageError, match="to 70000"):
        to_rgb(Image.fromarray(np.full((2, 2), 70000, np.int32)))


def test_mode_f():
    same_image(to_rgb(Image.fromarray(GREY / np.float32(255))), GREY_RGB)
    same_image(to_rgb(Image.fromarray(GREY.astype(np.float32))), GREY_RGB)
    for wrong in (-3.0, 300.0, np.nan, np.inf):
        with pytest.raises(ImageError, match=r"float values"):
            to_rgb(Image.fromarray(np.array([[0.0, wrong]], np.float32)))


# --- arrays and tensors ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["hw", "hw1", "rgb"])
@pytest.mark.parametrize(
    "kind", ["uint8", "uint16", ">u2", "bool", "float16", "float32", "float64"]
)
def test_numpy(shape, kind):
    source, expected = {
        "hw": (GREY, GREY_RGB),
        "hw1": (GREY[..., None], GREY_RGB),
        "rgb": (RGB, RGB),
    }[shape]
    if kind == "bool":
        same_image(to_rgb(source > 99), np.where(expected > 99, 255, 0))
    elif kind.startswith("float"):
        same_image(to_rgb((source / 255).astype(kind)), expected)
    else:
        same_image(
            to_rgb(source.astype(kind) * np.array(1 if kind == "uint8" else 257, kind)), expected
        )


def test_numpy_alpha():
    white = (255, 255, 255)
    same_image(to_rgb(NOISE), over(RGB, ALPHA, white), 1)
    same_image(to_rgb(NOISE.astype(np.uint16) * 257), over(RGB, ALPHA, white), 1)
    same_image(to_rgb(np.dstack([GREY, ALPHA])), over(GREY_RGB, ALPHA, white), 1)


def test_numpy_layouts_and_sharing():
    assert to_rgb(RGB) is RGB or np.shares_memory(to_rgb(RGB), RGB)
    same_image(to_rgb(RGB[:, ::-1]), RGB[:, ::-1])
    same_image(to_rgb(np.asfortranarray(RGB)), RGB)
    locked = RGB.copy()
    locked.flags.writeable = False
    same_image(to_rgb(locked), RGB)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((2, 2, 3), 1.5), r"from 1\.5 to 1\.5 lie outside"),
        (np.array([[-0.25, 0.5]]), r"from -0\.25 to 0\.5"),
        (np.array([[np.nan, 0.5]]), "1 of 2 float values are NaN"),
        (np.zeros((2, 2), np.int64), "dtype int64"),
        (np.zeros((2, 2), complex), "dtype complex128"),
        (np.zeros((3, 8, 8), np.uint8), r"shape \(3, 8, 8\)"),
        (np.zeros((1, 2, 2, 3), np.uint8), r"shape \(1, 2, 2, 3\)"),
        (np.zeros(5, np.uint8), r"shape \(5,\)"),
        (np.zeros((0, 4, 3), np.uint8), "no pixel: height 0, width 4"),
        (np.zeros((4, 0), np.float32), "no pixel: height 4, width 0"),
    ],
)
def test_refused_arrays(array, message):
    with pytest.raises(ImageError, match=message):
        to_rgb(array)


def test_float_rounding_error_is_not_out_of_range():
    assert to_rgb(np.array([[-1e-4, 1.0001]]))[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize("wrap", [torch.as_tensor, tv_tensors.Image])
def test_torch(wrap):
    chw = np.ascontiguousarray(RGB.transpose(2, 0, 1))
    same_image(to_rgb(wrap(chw)), RGB)
    same_image(to_rgb(wrap(chw / np.float32(255))), RGB)
    same_image(to_rgb(wrap(chw.astype(np.uint16) * 257)), RGB)
    same_image(to_rgb(wrap(chw > 99)), np.where(RGB > 99, 255, 0))
    same_image(to_rgb(wrap(GREY)), GREY_RGB)
    rgba = np.ascontiguousarray(NOISE.transpose(2, 0, 1))
    same_image(to_rgb(wrap(rgba)), to_rgb(NOISE))


def test_torch_bfloat16_and_gradient():
    chw = torch.tensor([0.0, 0.5, 1.0], dtype=torch.bfloat16).view(1, 1, 3)
    assert to_rgb(chw)[0, :, 0].tolist() == [0, 128, 255]
    assert to_rgb(chw.float().requires_grad_())[0, :, 0].tolist() == [0, 128, 255]


def test_torch_refused():
    with pytest.raises(ImageError, match=r"tensor of shape \(8, 8, 3\)"):
        to_rgb(torch.zeros(8, 8, 3))
    with pytest.raises(ImageError, match=r"no pixel"):
        to_rgb(torch.zeros(3, 0, 8))
    with pytest.raises(ImageError, match="int64"):
        to_rgb(torch.zeros(3, 2, 2, dtype=torch.int64))


# --- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "WEBP", "PPM", "TGA"])
def test_every_way_to_name_a_file(tmp_path: Path, format):
    options = {"lossless": True} if format == "WEBP" else {}
    content = encoded(Image.fromarray(RGB), format, **options)
    path = tmp_path / "picture.dat"  # the content decides, not the name
    path.write_bytes(content)
    for value in (
        path,
        str(path),
        content,
        bytearray(content),
        memoryview(content),
        {"bytes": content, "path": None},
        {"bytes": content, "path": "gone.png"},
        {"bytes": None, "path": str(path)},
    ):
        same_image(to_rgb(value), RGB)
    with Image.open(path) as lazy:
        same_image(to_rgb(lazy), RGB)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(orientation, format):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    blocks = np.repeat(np.repeat(RGB, 8, axis=0), 8, axis=1)
    content = encoded(Image.fromarray(blocks), format, exif=exif)
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        assert expected.shape == ((48, 72, 3) if orientation < 5 else (72, 48, 3))
        same_image(to_rgb(content), expected)
        if format != "TIFF":  # Pillow turns a TIFF when it loads it
            with Image.open(io.BytesIO(content)) as again:
                same_image(to_rgb(again), expected)


def test_broken_exif_is_no_reason_to_refuse():
    content = encoded(Image.fromarray(RGB), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff broken")
    same_image(to_rgb(content), RGB)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_animations(format):
    frames = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in (250, 10, 90)]
    options = {"lossless": True} if format == "WEBP" else {}
    content = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(content)).n_frames == 3
    same_image(to_rgb(content), np.full((8, 8, 3), (250, 0, 0)))


PHOTO = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_truncated(tmp_path: Path, format, share):
    content = encoded(Image.fromarray(PHOTO), format)
    path = tmp_path / f"cut.{format.lower()}"
    path.write_bytes(content[: max(1, int(share * len(content)))])
    with pytest.raises(ImageError, match=r"cut\.") as caught:
        to_rgb(path)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, SubtokError)


@pytest.mark.parametrize(
    "format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "ICO", "TGA"]
)
def test_corrupt_files_give_pixels_or_one_error(format):
    content = encoded(Image.fromarray(PHOTO), format)
    rng = np.random.default_rng(5)
    for _ in range(60):
        damaged = np.frombuffer(content, np.uint8).copy()
        places = rng.integers(0, min(len(damaged), 400), 6)
        damaged[places] = rng.integers(0, 256, 6)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Pillow on odd TIFF tags
            try:
                result = to_rgb(damaged.tobytes(), max_pixels=10**6)
            except ImageError:
                continue
        assert result.ndim == 3


def test_corrupt_names_cause_and_path(tmp_path: Path):
    path = tmp_path / "noise.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0" + bytes(200))
    with pytest.raises(ImageError, match=r"noise\.jpg.*JPEG"):
        to_rgb(str(path))
    content = encoded(Image.fromarray(PHOTO), "JPEG")[:2000]
    with pytest.raises(ImageError, match=r"'row\.jpg'.*cannot be decoded.*truncated") as caught:
        to_rgb({"bytes": content, "path": "row.jpg"})
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "empty"),
        (b"hello, this is text", "not an image"),
        ({"bytes": b"", "path": "void.png"}, r"'void\.png'.*empty"),
        ({"bytes": None, "path": None}, "needs 'bytes' or 'path'"),
        ({"image": 3}, "'image': 'int'"),
        ("no/such/file.jpg", r"no/such/file\.jpg.*No such file"),
        ("https://example.org/cat.jpg", "download"),
        ("nul\0byte", "cannot be opened"),
        (None, "NoneType"),
        ([[0, 1]], "list"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image"),
    ],
)
def test_refused_values(value, message):
    with pytest.raises(ImageError, match=message):
        to_rgb(value)


def test_folder_and_empty_file(tmp_path: Path):
    with pytest.raises(ImageError, match="cannot be opened"):
        to_rgb(tmp_path)
    empty = tmp_path / "empty.png"
    empty.touch()
    with pytest.raises(ImageError, match=r"empty\.png.*0 bytes"):
        to_rgb(empty)


# --- pixel limit and global state --------------------------------------------------------------


def huge_png(width: int, height: int) -> bytes:
    """A PNG whose header promises far more pixels than it holds."""
    import struct
    import zlib

    content = encoded(Image.new("1", (8, 8)), "PNG")
    header = b"IHDR" + struct.pack(">II", width, height) + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


def test_pixel_limit_is_read_from_the_header(monkeypatch):
    def refuse(*_):
        raise AssertionError("decoded before the size was checked")

    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    for content in (huge_png(40_000, 40_000), huge_png(13_000, 13_800)):
        with pytest.raises(ImageError, match=f"max_pixels={DEFAULT_MAX_PIXELS}"):
            to_rgb(content)
    with pytest.raises(ImageError, match=r"8 x 9 = 72 pixels exceed max_pixels=71"):
        to_rgb(encoded(Image.new("RGB", (9, 8)), "JPEG"), max_pixels=71)


def test_pixel_limit_holds_for_every_kind():
    for value in (RGB, torch.as_tensor(RGB.transpose(2, 0, 1).copy()), Image.fromarray(RGB)):
        assert to_rgb(value, max_pixels=HEIGHT * WIDTH).shape == RGB.shape
        with pytest.raises(ImageError, match="max_pixels=53"):
            to_rgb(value, max_pixels=HEIGHT * WIDTH - 1)


def test_limit_is_ours_alone(monkeypatch):
    # A global limit of Pillow neither warns nor forbids, and no limit is possible.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    content = encoded(Image.fromarray(RGB), "PNG")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        same_image(to_rgb(content), RGB)
        same_image(to_rgb(content, max_pixels=None), RGB)
    assert not caught
    assert Image.MAX_IMAGE_PIXELS == 10


def test_globals_stay(tmp_path: Path):
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    to_rgb(encoded(Image.fromarray(RGB), "PNG"))
    with pytest.raises(ImageError, match="not an image"):
        to_rgb(b"not an image at all")
    after = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    assert after == before


@pytest.mark.parametrize(
    "options", [{"max_pixels": 0}, {"background": (0, 0)}, {"background": (0, 0, 256)}]
)
def test_options_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        to_rgb(RGB, **options)


def test_threads_agree():
    contents = [encoded(Image.fromarray(NOISE), format) for format in ("PNG", "TIFF", "WEBP")]
    expected = [to_rgb(content) for content in contents]
    wrong: list[int] = []

    def work():
        for _ in range(30):
            for index, content in enumerate(contents):
                if not np.array_equal(to_rgb(content), expected[index]):
                    wrong.append(index)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_import_brings_no_torch():
    code = (
        "import sys, subtok_data.images as i, numpy as np\n"
        "i.to_rgb(np.zeros((2, 2, 3), np.uint8))\n"
        "assert not {'torch', 'torchvision', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# --- names, canvas, resize ---------------------------------------------------------------------


def test_image_path(tmp_path: Path):
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    assert image_path(path) == str(path)
    assert image_path("a.png") == "a.png"
    assert image_path({"bytes": b"", "path": path}) == str(path)
    with Image.open(path) as image:
        assert image_path(image) == str(path)
    for value in (
        b"x",
        {"bytes": b"x", "path": None},
        {"bytes": b"x"},
        Image.new("L", (1, 1)),
        RGB,
        None,
        3,
    ):
        assert image_path(value) is None


SIDE = st.integers(1, 5000)


@given(SIDE, SIDE, st.integers(1, 2048), st.sampled_from([1, 14, 16, 32]))
def test_canvas_size(height, width, size, multiple):
    new = canvas_size(height, width, size, multiple=multiple)
    for side, old in zip(new, (height, width), strict=True):
        assert side % multiple == 0
        exact = old * size / max(height, width)
        assert side >= multiple
        assert abs(side - exact) <= multiple / 2 + 1e-6 or side == multiple
    assert canvas_size(width, height, size, multiple=multiple) == new[::-1]
    assert canvas_size(height, width, None) == (height, width)
    assert canvas_size(height, width, size, square=True) == (size, size)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 5, 32), {}, "height=0"),
        ((5, 0, 32), {}, "width=0"),
        ((5, 5, 0), {}, "size=0"),
        ((5, 5, 32), {"multiple": 0}, "multiple=0"),
        ((5, 5, None), {"square": True}, "square=True needs a size"),
    ],
)
def test_canvas_size_refused(arguments, options, message):
    with pytest.raises(ConfigError, match=message):
        canvas_size(*arguments, **options)


def test_resize():
    assert resize(RGB, (HEIGHT, WIDTH)) is RGB
    expected = np.asarray(Image.fromarray(RGB).resize((4, 5), Image.Resampling.BICUBIC))
    same_image(resize(RGB, (5, 4)), expected)
    same_image(resize(RGB[:, ::-1], (5, 4)), expected[:, ::-1], 1)
    flat = np.full((37, 53, 3), 77, np.uint8)
    same_image(resize(flat, (96, 64)), np.full((96, 64, 3), 77))
    with pytest.raises(ConfigError, match="at least 1 pixel"):
        resize(RGB, (0, 4))


# --- memory --------------------------------------------------------------------------------------


def icon_with(content: bytes, side: int = 16) -> bytes:
    """An ICO file whose only entry says ``side``, whatever the image inside is."""
    import struct

    entry = struct.pack("<BBBBHHII", side, side, 0, 0, 1, 32, len(content), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + content


def apple_icon_with(content: bytes) -> bytes:
    """An ICNS file that says 128 x 128, whatever the image inside is."""
    import struct

    part = b"ic07" + struct.pack(">I", 8 + len(content)) + content
    return b"icns" + struct.pack(">I", 8 + len(part)) + part


@pytest.mark.parametrize("wrap", [icon_with, apple_icon_with])
def test_images_inside_an_icon_are_checked_before_they_are_decoded(wrap, monkeypatch):
    side = 16 if wrap is icon_with else 128
    good = encoded(Image.new("RGBA", (side, side), (9, 9, 9, 255)), "PNG")
    assert to_rgb(wrap(good)).shape == (side, side, 3)

    def refuse(*_):
        raise AssertionError("decoded before the size was checked")

    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    with pytest.raises(ImageError, match="300 x 200 = 60000 pixels exceed max_pixels=50000"):
        to_rgb(wrap(encoded(Image.new("RGB", (200, 300)), "PNG")), max_pixels=50_000)


def test_a_bitmap_inside_an_icon_is_checked():
    import struct

    bitmap = struct.pack("<IiiHHIIiiII", 40, 9000, 18_000, 1, 32, 0, 0, 0, 0, 0, 0)
    with pytest.raises(ImageError, match="9000 x 9000 = 81000000 pixels exceed"):
        to_rgb(icon_with(bitmap + bytes(64)))


def test_what_wraps_a_file_of_any_size_is_no_image():
    from PIL import IptcImagePlugin  # registers itself

    assert IptcImagePlugin.IptcImageFile.format == "IPTC"
    with pytest.raises(ImageError, match="not an image in any format"):
        to_rgb(b"\x1c\x03\x3c\x00\x02\x01\x01" + bytes(64))


LIMITED = """
import io, resource, sys
import numpy as np
from PIL import Image
from subtok_data.errors import ImageError
from subtok_data.images import to_rgb

stream = io.BytesIO()
Image.new("1", (8100, 8100)).save(stream, "PNG", compress_level=9)
content = stream.getvalue()
assert len(content) < 20_000, len(content)
small = io.BytesIO()
Image.new("RGB", (640, 480)).save(small, "JPEG")
used = int(open("/proc/self/status").read().split("VmSize:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 400_000_000,) * 2)
try:
    to_rgb(content)
except ImageError as error:
    print(error)
assert to_rgb(small.getvalue()).shape == (480, 640, 3)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of Linux")
def test_an_image_that_memory_does_not_suffice_for_is_refused():
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"8100 x 8100 pixels may take 1640 MB .* MB of memory are free", done.stdout)


MEASURED = """
import io, sys
sys.path.insert(0, "tests")
from helpers.peak_memory import peak, reset_peak
from PIL import Image
from subtok_data.images import to_rgb

mode, format = sys.argv[1:]
stream = io.BytesIO()
exif = Image.Exif()
exif[0x0112] = 6
side = 3000
options = {} if format in ("GIF", "JPEG2000") else {"exif": exif}
Image.new(mode, (side, side), 1 if mode == "I;16" else (9, 9, 9, 9)[: len(mode)]).save(
    stream, format, **options
)
small = io.BytesIO()
Image.new("RGB", (9, 9)).save(small, format)
to_rgb(small.getvalue())
before = reset_peak()
result = to_rgb(stream.getvalue())
print((peak() - before) * 2**20 / side**2)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measured with Linux")
@pytest.mark.parametrize(
    ("mode", "format"),
    [("RGB", "JPEG"), ("RGBA", "PNG"), ("I;16", "PNG"), ("RGBA", "WEBP"), ("RGB", "JPEG2000")],
)
def test_decoding_takes_no_more_than_it_says(mode, format):
    from subtok_data.images.decode import PEAK_BYTES

    done = subprocess.run(
        [sys.executable, "-c", MEASURED, mode, format],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= PEAK_BYTES


def test_large_images_are_copied_strip_by_strip(monkeypatch):
    from subtok_data.images import decode

    expected = to_rgb(Image.fromarray(RGB)).copy()
    monkeypatch.setattr(decode, "_STRIP", 2 * WIDTH)
    same_image(to_rgb(Image.fromarray(RGB)), expected)
    monkeypatch.setattr(decode, "_STRIP", 1)
    same_image(to_rgb(Image.fromarray(RGB)), expected)


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({"proc/meminfo": "MemAvailable:  5 kB"}, 5 * 1024),
        ({"cgroup/memory.max": "900", "cgroup/memory.current": "500"}, 400),
        (
            {
                "cgroup/memory.max": "900",
                "cgroup/memory.current": "500",
                "cgroup/memory.stat": "file 7\ninactive_file 50\n",
                "proc/meminfo": "MemAvailable: 5 kB",
            },
            450,
        ),
        ({"cgroup/memory.max": "max", "cgroup/memory.current": "500"}, None),
        ({"cgroup/memory.max": "100", "cgroup/memory.current": "500"}, 0),
    ],
)
def test_free_memory_is_the_least_of_all_limits(tmp_path, monkeypatch, files, free):
    from subtok_data.images import memory

    for name in ("proc", "cgroup"):
        (tmp_path / name).mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "cgroup")
    assert memory.available_memory() == free
