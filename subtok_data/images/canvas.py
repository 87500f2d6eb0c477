"""Resizing of images to the canvas that the boundary model sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subtok_data.arguments import check_count, check_flag
from subtok_data.errors import ConfigError
from subtok_data.images.encoded import EncodedImage, SourceImage, fit_image
from subtok_data.images.size import image_size

__all__ = ["DEFAULT_SIZE", "Canvas", "canvas_size"]

DEFAULT_SIZE = 512
"""Longest side of an image in pixels, where no size is given."""


def canvas_size(
    height: int, width: int, size: int | None, *, multiple: int = 32, square: bool = False
) -> tuple[int, int]:
    """Compute the size to which an image is resized for the boundary model.

    Parameters
    ----------
    height, width : int
        Size of the image in pixels.
    size : int, optional
        Length of the longest side in pixels; None keeps the native size exactly.
    multiple : int, default 32
        Both sides are rounded to the nearest multiple, at least one.
    square : bool, default False
        Give ``(size, size)``, which distorts, as the EPOC code does (Subobject-level Image
        Tokenization, ICML 2025).

    Returns
    -------
    (int, int)
        Height and width in pixels.

    Raises
    ------
    ConfigError
        A size below 1, or `square` without `size`.

    Examples
    --------
    >>> canvas_size(480, 640, 512)
    (384, 512)
    >>> canvas_size(480, 640, 512, square=True)
    (512, 512)
    >>> canvas_size(481, 321, None)
    (481, 321)
    """
    for name, number in (("height", height), ("width", width), ("multiple", multiple)):
        if number < 1:
            raise ConfigError(f"{name}={number} must be at least 1 pixel")
    if size is None:
        if square:
            raise ConfigError("square=True needs a size: give size=512, for example")
        return height, width
    if size < 1:
        raise ConfigError(f"size={size} must be at least 1 pixel, or None for the native size")
    if square:
        return size, size
    longest = max(height, width)

    def rounded(side: int) -> int:
        # Nearest multiple of side * size / longest, in integers: the same on every machine.
        return max(1, (2 * side * size + multiple * longest) // (2 * multiple * longest)) * multiple

    return rounded(height), rounded(width)


@dataclass(frozen=True)
class Canvas:
    """Rule for resizing images before segmentation.

    Parameters
    ----------
    size : int or None
        Longest side in pixels; None keeps the native size.
    square : bool, optional
        Squash to (size, size), as the paper does, instead of keeping the aspect ratio.
    multiple : int, optional
        Round both sides to multiples of this, as the strides of the boundary model need.
    full_decode : bool, optional
        Decode every JPEG file at its full size. By default one that is four times as large as its
        canvas or more is decoded at 1/2, 1/4 or 1/8, still twice as large at least.
    """

    size: int | None = DEFAULT_SIZE
    square: bool = False
    multiple: int = 32
    full_decode: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.size, tuple | list):
            raise ConfigError(
                f"size={self.size!r}: images of one size for the encoder are "
                "PixelConfig(size=(height, width)); here give the longest side, one number, or "
                "with square=True the side"
            )
        check_count("size", self.size, unit="pixels")
        check_flag("square", self.square)
        check_flag("full_decode", self.full_decode)
        if self.size is not None and self.size < self.multiple:
            raise ConfigError(
                f"size={self.size} is smaller than one step of the boundary model; "
                f"give at least {self.multiple} pixels, or None for the native size"
            )
        if self.square and self.size is None:
            raise ConfigError("square=True needs a size: give size=768, for instance")

    def decoded_size(self, image: SourceImage) -> tuple[int, int]:
        """Return the height and width that an image is to be decoded for."""
        return image_size(image) if self.full_decode else self.size_of(image)

    def decode(self, image: SourceImage) -> NDArray[np.uint8]:
        """Decode an image as large as :meth:`fit` needs it, which then finds it decoded."""
        return image.decode(self.decoded_size(image)) if isinstance(image, EncodedImage) else image

    def fit(self, image: SourceImage) -> NDArray[np.uint8]:
        """Resize an image to its canvas, which depends on that image alone; decode it if need be.

        Parameters
        ----------
        image : EncodedImage or uint8 ndarray (H, W, 3)
            Of :func:`~subtok_data.images.open_image`.

        Returns
        -------
        uint8 ndarray (height, width, 3)

        Raises
        ------
        ImageError
            If an encoded image cannot be decoded.
        """
        return fit_image(image, self.size_of(image), self.decoded_size(image))

    def size_of(self, image: SourceImage) -> tuple[int, int]:
        """Return the height and width that an image gets."""
        height, width = image_size(image)
        return canvas_size(height, width, self.size, multiple=self.multiple, square=self.square)
