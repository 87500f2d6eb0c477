"""Large JPEG files that are decoded when it is known how large they are needed.

A JPEG decoder can give an image at a half, a quarter or an eighth of its size for a fraction of the
time: it transforms each block of 8 x 8 pixels to fewer of them (libjpeg's scaled IDCT).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from subtok_data.images.convert import image_path, to_rgb
from subtok_data.images.decode import SCALES, Decoder
from subtok_data.images.resizing import resize
from subtok_data.images.size import DEFAULT_MAX_PIXELS, image_size

__all__ = ["EncodedImage", "SourceImage", "decode_whole", "fit_image", "open_image"]

_REDUCED_ABOVE = 1 << 20
"""Pixels up to which an image is decoded at once: it takes some milliseconds."""

_MARGIN = 2
"""How many times as large as needed an image is decoded at least: the resize that follows then has
two pixels or more to average for each of its own, and little is left of what the decoder did."""

_JPEG = b"\xff\xd8\xff"

# EXIF orientations by what is done to the stored image: transposed, then mirrored.
_SIDEWAYS = frozenset({5, 6, 7, 8})
_MIRRORED_X = frozenset({2, 3, 6, 7})
_MIRRORED_Y = frozenset({3, 4, 7, 8})


class EncodedImage:
    """A JPEG file of more than 2²⁰ pixels, whose pixels are decoded when their use is known.

    Parameters
    ----------
    content : bytes
        Of the file.
    stored_size : (int, int)
        Height and width in pixels as in the file.
    orientation : int
        EXIF orientation, 1 to 8.
    path : str, optional
        Of the file, for messages.
    max_pixels : int, optional
        As for :func:`to_rgb`.
    """

    def __init__(
        self,
        content: bytes,
        stored_size: tuple[int, int],
        orientation: int,
        *,
        path: str | None = None,
        max_pixels: int | None = DEFAULT_MAX_PIXELS,
    ) -> None:
        self._content = content
        self._orientation = orientation
        self._size = stored_size[::-1] if orientation in _SIDEWAYS else stored_size
        self._path = path
        self._max_pixels = max_pixels
        self._last: tuple[int, NDArray[np.uint8]] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the image as an array, upright and at its full size."""
        height, width = self._size
        return height, width, 3

    def decode(self, *sizes: tuple[int, int]) -> NDArray[np.uint8]:
        """Decode at the smallest scale of 1, 1/2, 1/4, 1/8 that is twice as large as each size.

        Parameters
        ----------
        *sizes : (int, int)
            Heights and widths in pixels that the image is to be resized to; none for its full size.

        Returns
        -------
        uint8 ndarray (H, W, 3)
            Read-only: the next call may give it again, and what is written to it would be lost.

        Raises
        ------
        ImageError
            If the pixels cannot be decoded.
        """
        scale = self._scale(sizes)
        if self._last is None or self._last[0] != scale:
            decoded = self._decode(scale)
            decoded.flags.writeable = False
            self._last = scale, decoded
        return self._last[1]

    def fit(self, size: tuple[int, int], *beside: tuple[int, int]) -> NDArray[np.uint8]:
        """Decode for a size, and for other ones beside it, and resize to the first."""
        decoded = self.decode(size, *beside)
        scale = self._scale((size, *beside))
        fitted = resize(decoded, size, box=None if scale == 1 else self._box(decoded, scale))
        return fitted.copy() if fitted is decoded else fitted

    def check(self) -> None:
        """Raise ImageError if the pixels cannot be decoded, at the price of the smallest scale."""
        self._decode(max(SCALES))

    def _decode(self, scale: int) -> NDArray[np.uint8]:
        row = {"bytes": self._content, "path": self._path}
        return to_rgb(row, max_pixels=self._max_pixels, reduction=scale)

    def _scale(self, sizes: Sequence[tuple[int, int]]) -> int:
        """Greatest divisor at which every side still is twice as long as each size needs."""
        for scale in SCALES if sizes else ():
            if all(
                side >= _MARGIN * scale * needed
                for size in sizes
                for side, needed in zip(self._size, size, strict=True)
            ):
                return scale
        return 1

    def _box(self, decoded: NDArray[np.uint8], scale: int) -> tuple[float, float, float, float]:
        """Where the image lies in what was decoded: its last pixels may reach over its edge."""
        height, width = image_size(decoded)
        beyond_y, beyond_x = height - self._size[0] / scale, width - self._size[1] / scale
        left = beyond_x if self._orientation in _MIRRORED_X else 0
        top = beyond_y if self._orientation in _MIRRORED_Y else 0
        return left, top, left + width - beyond_x, top + height - beyond_y

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    def __repr__(self) -> str:
        height, width = self._size
        return f"EncodedImage({height} x {width} pixels, {len(self._content)} bytes)"


SourceImage: TypeAlias = NDArray[np.uint8] | EncodedImage
"""An image as a dataset or a user gives it: decoded to RGB, or a file to be decoded."""


def open_image(value: object, *, max_pixels: int | None = DEFAULT_MAX_PIXELS) -> SourceImage:
    """Read an image, but leave a large JPEG file encoded until it is known how it is used.

    Parameters
    ----------
    value : object
        What :func:`to_rgb` takes, or an encoded image, which is returned as it is.
    max_pixels : int, optional
        As for :func:`to_rgb`.

    Returns
    -------
    EncodedImage or uint8 ndarray (H, W, 3)
        Encoded for the path or content of a JPEG file of more than 2²⁰ pixels. Everything else is
        decoded, and so is a Pillow image of such a file.

    Raises
    ------
    ImageError
        As :func:`to_rgb`; for an encoded image what its header tells, the rest when it is decoded.

    Examples
    --------
    >>> open_image(np.zeros((2, 3, 3), np.uint8)).shape
    (2, 3, 3)
    """
    if isinstance(value, EncodedImage):
        return value
    content = _jpeg_content(value)
    if content is not None:
        header = Decoder(max_pixels, (255, 255, 255)).jpeg_header(content)
        if header is not None and math.prod(header[0]) > _REDUCED_ABOVE:
            return EncodedImage(content, *header, path=image_path(value), max_pixels=max_pixels)
        value = {"bytes": content, "path": image_path(value)}
    return to_rgb(value, max_pixels=max_pixels)


def decode_whole(image: SourceImage) -> NDArray[np.uint8]:
    """Decode an image at its full size; an array is returned as it is.

    Examples
    --------
    >>> decode_whole(np.zeros((40, 60, 3), np.uint8)).shape
    (40, 60, 3)
    """
    return image.decode() if isinstance(image, EncodedImage) else image


def fit_image(
    image: SourceImage, size: tuple[int, int], *beside: tuple[int, int]
) -> NDArray[np.uint8]:
    """Resize an image; an encoded one is decoded no larger than needed.

    Parameters
    ----------
    image : EncodedImage or uint8 ndarray (H, W, 3)
        Of :func:`open_image`.
    size : (int, int)
        Height and width in pixels.
    *beside : (int, int)
        Other sizes that the image is decoded for; its full size turns the reduction off.

    Returns
    -------
    uint8 ndarray (H, W, 3)
        Of the size.

    Raises
    ------
    ImageError
        If the pixels cannot be decoded.

    Examples
    --------
    >>> fit_image(np.zeros((40, 60, 3), np.uint8), (2, 3)).shape
    (2, 3, 3)
    """
    if isinstance(image, EncodedImage):
        return image.fit(size, *beside)
    return resize(image, size)


def _jpeg_content(value: object) -> bytes | None:
    """Content of a JPEG file, by its first bytes; None for all else, and what cannot be read."""
    if isinstance(value, Mapping):
        row = cast("Mapping[str, object]", value)
        value = row.get("path") if row.get("bytes") is None else row.get("bytes")
    if isinstance(value, bytes | bytearray):
        return bytes(value) if value[:3] == _JPEG else None
    if not isinstance(value, str | os.PathLike):
        return None
    try:
        with Path(os.fsdecode(cast("str | os.PathLike[str]", value))).open("rb") as stream:
            start = stream.read(3)
            return start + stream.read() if start == _JPEG else None
    except (OSError, ValueError):
        return None
