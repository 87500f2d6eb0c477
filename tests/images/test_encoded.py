"""Large JPEG files, decoded at a fraction of their size: nearly what a full decode gives."""

import io
import pickle

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image
from skimage import data

from subtok_data.errors import ConfigError, ImageError
from subtok_data.images import (
    Canvas,
    EncodedImage,
    decode_whole,
    image_size,
    open_image,
    resize,
    to_rgb,
)

CANVAS = Canvas(128)
ORIENTATION = 0x0112


def photo(width: int, height: int) -> Image.Image:
    return Image.fromarray(data.astronaut()).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **{"format": "JPEG", "quality": 90, **options})
    return buffer.getvalue()


@pytest.fixture(scope="module")
def large() -> bytes:
    return encoded(photo(1400, 1100))


def difference(one: np.ndarray, other: np.ndarray) -> float:
    assert one.shape == other.shape
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


def test_large_files_stay_encoded_and_all_else_is_decoded(large: bytes, tmp_path):
    path = tmp_path / "large.jpg"
    path.write_bytes(large)
    whole = to_rgb(large)
    for value in (large, bytearray(large), path, str(path), {"bytes": large}, {"path": str(path)}):
        image = open_image(value)
        assert isinstance(image, EncodedImage)
        assert image_size(image) == (1100, 1400)
        assert (image.decode() == whole).all()
    small, png = encoded(photo(1024, 1024)), encoded(photo(1400, 1100), format="PNG")
    for value in (small, png, whole, Image.open(io.BytesIO(large)), memoryview(large)):
        image = open_image(value)
        assert isinstance(image, np.ndarray)
        assert (image == to_rgb(value)).all()


def test_an_image_less_than_four_times_its_canvas_keeps_its_bits(large: bytes):
    canvas = Canvas(352)
    assert (canvas.fit(open_image(large)) == canvas.fit(to_rgb(large))).all()


def test_a_larger_one_differs_by_less_than_a_level(large: bytes):
    image = open_image(large)
    assert isinstance(image, EncodedImage)
    assert image_size(image.decode(CANVAS.decoded_size(image))) == (275, 350)
    assert 0 < difference(CANVAS.fit(image), CANVAS.fit(to_rgb(large))) < 1


def test_full_decode_turns_it_off(large: bytes):
    canvas = Canvas(128, full_decode=True)
    assert (canvas.fit(open_image(large)) == CANVAS.fit(to_rgb(large))).all()
    with pytest.raises(ConfigError, match="full_decode"):
        Canvas(128, full_decode="no")  # type: ignore[arg-type]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation: int):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    content = encoded(photo(1401, 1101), exif=exif)  # the last pixels reach over the edge
    image = open_image(content)
    assert isinstance(image, EncodedImage)
    whole = to_rgb(content)
    assert image_size(image) == image_size(whole)
    assert difference(CANVAS.fit(image), CANVAS.fit(whole)) < 1


@pytest.mark.parametrize(
    ("mode", "options"),
    [("L", {}), ("CMYK", {}), ("RGB", {"progressive": True}), ("RGB", {"subsampling": 0})],
)
def test_kinds_of_jpeg(mode: str, options: dict):
    content = encoded(photo(1401, 1101).convert(mode), **options)
    image = open_image(content)
    assert isinstance(image, EncodedImage)
    assert image_size(image.decode((128, 128))) == (276, 351)
    assert difference(CANVAS.fit(image), CANVAS.fit(to_rgb(content))) < 1


def test_several_images_in_one_file():
    content = encoded(photo(1400, 1100), format="MPO", save_all=True, append_images=[photo(9, 9)])
    image = open_image(content)
    assert isinstance(image, EncodedImage)
    assert difference(CANVAS.fit(image), CANVAS.fit(to_rgb(content))) < 1


SIDES = st.integers(1, 300)


@given(targets=st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=3))
def test_the_smallest_scale_that_is_twice_as_large_as_every_target(targets):
    image = open_image(FLAT)
    assert isinstance(image, EncodedImage)
    shape = image_size(image.decode(*targets))
    scale = round(1201 / shape[0])
    assert shape == (-(-1201 // scale), -(-901 // scale))

    def suffices(divisor: int) -> bool:
        return all(2 * divisor * h <= 1201 and 2 * divisor * w <= 901 for h, w in targets)

    assert scale == max([one for one in (2, 4, 8) if suffices(one)], default=1)


FLAT = encoded(Image.new("RGB", (901, 1201), (90, 120, 30)))


def test_what_was_decoded_before_changes_nothing(large: bytes):
    expected = CANVAS.fit(open_image(large))
    image = open_image(large)
    assert isinstance(image, EncodedImage)
    image.decode()
    assert (CANVAS.fit(image) == expected).all()
    assert (pickle.loads(pickle.dumps(image)).decode((128, 128)) == image.decode((128, 128))).all()
    assert len(pickle.dumps(image)) < len(large) + 1000


def test_what_is_kept_cannot_be_written_to(large: bytes):
    image = open_image(large)
    with pytest.raises(ValueError, match="read-only"):
        decode_whole(image)[0] = 0
    whole = Canvas(None).fit(image)
    whole[0] = 0  # a copy
    assert (Canvas(None).fit(image) == to_rgb(large)).all()


def test_broken_pixels_are_found_when_they_are_decoded(large: bytes, tmp_path):
    path = tmp_path / "cut.jpg"
    path.write_bytes(large[: len(large) // 2])
    image = open_image(path)
    assert isinstance(image, EncodedImage)
    for decode in (image.check, image.decode, lambda: CANVAS.fit(image)):
        with pytest.raises(ImageError, match=r"cut\.jpg.*truncated"):
            decode()


def test_broken_headers_and_limits_are_found_at_once(large: bytes):
    with pytest.raises(ImageError) as expected:
        to_rgb(large[:20])
    with pytest.raises(ImageError) as found:
        open_image(large[:20])
    assert str(found.value) == str(expected.value)
    with pytest.raises(ImageError, match="max_pixels=1000"):
        open_image(large, max_pixels=1000)


def test_reductions_of_to_rgb(large: bytes):
    assert to_rgb(large, reduction=8).shape == (138, 175, 3)
    assert to_rgb(encoded(photo(80, 60), format="PNG"), reduction=2).shape == (60, 80, 3)
    with pytest.raises(ConfigError, match="reduction=3"):
        to_rgb(large, reduction=3)


@pytest.mark.data
def test_photos_of_4_megapixels_at_the_default_canvas(data_dir):
    """The difference that the rule promises, on photographs."""
    canvas = Canvas()
    files = sorted((data_dir / "photos" / "open").glob("*.jpg"))[::60]
    assert files
    for file in files:
        with Image.open(file) as opened:
            width, height = opened.size
            factor = (4.2e6 / (width * height)) ** 0.5
            size = round(width * factor), round(height * factor)
            content = encoded(opened.convert("RGB").resize(size, Image.Resampling.BICUBIC))
        found = canvas.fit(open_image(content))
        assert difference(found, resize(to_rgb(content), image_size(found))) < 0.6
