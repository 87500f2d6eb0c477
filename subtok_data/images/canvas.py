"""Everything a dataset row may hold as an image becomes RGB uint8.

The rules, one place for all callers:

* EXIF (or TIFF, or XMP) orientation is applied; colour profiles are not.
* Transparency, in every form Pillow knows, is composited over a background colour.
* 16-bit samples are scaled to 8 bits (``round(value / 257)``), never clipped.
* Of an animation the first frame is read; a Pillow image counts as the frame it stands at.
* The pixel limit is compared with the size in the header, before anything is decoded.

Pillow's global settings are neither read nor written, except that a process which sets
``PIL.ImageFile.LOAD_TRUNCATED_IMAGES`` itself has asked for truncated files to load.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from subtok_data.errors import ConfigError

__all__ = ["DEFAULT_SIZE", "Canvas", "canvas_size", "resize"]


def canvas_size(
    height: int, width: int, size: int | None, *, multiple: int = 32, square: bool = False
) -> tuple[int, int]:
    """Size to which an image is resized before the boundary model sees it.

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


def resize(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize an image, bicubic, with antialiasing where it shrinks (Pillow).

    Parameters
    ----------
    image : uint8 ndarray (H, W, 3)
        An RGB image.
    size : (int, int)
        New height and width in pixels.

    Returns
    -------
    uint8 ndarray (height, width, 3)
        C-contiguous; `image` itself where it has that size already.

    Examples
    --------
    >>> import numpy as np
    >>> resize(np.zeros((4, 6, 3), np.uint8), (2, 3)).shape
    (2, 3, 3)
    """
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    if height < 1 or width < 1:
        raise ConfigError(f"size=({height}, {width}): both sides must be at least 1 pixel")
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.array(picture.resize((width, height), Image.Resampling.BICUBIC))


DEFAULT_SIZE = 512


@dataclass(frozen=True)
class Canvas:
    """To which size images are brought before they are cut into tokens.

    Parameters
    ----------
    size : int or None
        Longest side in pixels; None keeps images as they are.
    square : bool, optional
        Squash to (size, size), as the paper does, instead of keeping the aspect ratio.
    multiple : int, optional
        Both sides become multiples of this, which is what the boundary model's strides ask for.
    """

    size: int | None = DEFAULT_SIZE
    square: bool = False
    multiple: int = 32

    def __post_init__(self) -> None:
        if self.size is not None and self.size < self.multiple:
            raise ConfigError(
                f"size={self.size} is smaller than one step of the boundary model; "
                f"give at least {self.multiple} pixels, or None to keep images as they are"
            )
        if self.square and self.size is None:
            raise ConfigError("square=True needs a size: give size=768, for instance")

    def fit(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize an (H, W, 3) uint8 image; the result depends on that image alone."""
        height, width = image.shape[:2]
        target = canvas_size(height, width, self.size, multiple=self.multiple, square=self.square)
        return resize(image, target)
