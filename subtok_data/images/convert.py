"""Conversion of everything a dataset row may hold as an image to RGB uint8.

The rules, one place for all callers:

* EXIF (or TIFF, or XMP) orientation is applied; colour profiles are not.
* Transparency, in every form Pillow knows, is composited over a background colour.
* 16-bit samples are scaled to 8 bits (``round(value / 257)``), never clipped.
* Of an animation the first frame is read; a Pillow image counts as the frame it stands at.
* The pixel limit and the memory that is free are compared with the size in the header, before
  anything is decoded; so are those of images inside an icon.

Pillow's global settings are neither read nor written, except that a process which sets
``PIL.ImageFile.LOAD_TRUNCATED_IMAGES`` itself has asked for truncated files to load.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from subtok_data.errors import ConfigError, ImageError
from subtok_data.images.decode import SCALES, Decoder
from subtok_data.images.size import DEFAULT_MAX_PIXELS

if TYPE_CHECKING:
    import torch

__all__ = ["IMAGE_SUFFIXES", "ImageLike", "image_path", "to_rgb"]

_Encoded: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | Mapping[str, Any]
ImageLike: TypeAlias = "_Encoded | Image.Image | NDArray[Any] | torch.Tensor"
"""What :func:`to_rgb` takes for an image."""

#: Names of files that are taken for images where a folder is searched, in lower case.
IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)

_WHITE = (255, 255, 255)


def to_rgb(
    value: object,
    *,
    max_pixels: int | None = DEFAULT_MAX_PIXELS,
    background: tuple[int, int, int] = _WHITE,
    reduction: int = 1,
) -> NDArray[np.uint8]:
    """Convert any usual representation of an image to RGB.

    Parameters
    ----------
    value : object
        One of

        * a path (``str`` or ``Path``), or the content of a file (``bytes``, ``bytearray``,
          ``memoryview``);
        * ``{"bytes": ..., "path": ...}``, as Hugging Face ``Image(decode=False)`` gives it; the
          path is read where ``bytes`` is None;
        * a Pillow image of any mode. Modes ``I`` and ``F`` have no fixed range: ``I`` with no
          value above 255 is read as 8 bits, else as 16; ``F`` with no value above 1 is read as
          [0, 1], else as [0, 255];
        * a numpy array (H, W) or (H, W, C), C = 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB,
          alpha), of uint8, uint16 (0 to 65,535), bool, or a float in [0, 1];
        * a torch tensor or ``tv_tensors.Image`` (H, W) or (C, H, W), same channels and types.
    max_pixels : int, optional
        Largest height times width, compared before anything is decoded; None for no limit. Decoding
        takes up to 25 bytes per pixel for a while (WebP; 12 for PNG and JPEG). What is more than
        the memory that is free (of the machine, the container, the process) is refused anyway.
    background : tuple of 3 int, default white
        Colour in 0 to 255 behind transparent pixels.
    reduction : {1, 2, 4, 8}, default 1
        Decode a JPEG file at this fraction of its size, sides rounded up, which is faster; other
        images are not reduced.

    Returns
    -------
    uint8 ndarray (H, W, 3)
        C-contiguous and writeable. An array that already is all this is returned as it is.

    Raises
    ------
    ImageError
        The file is missing, empty, corrupt, truncated or no image; the image has no pixel or too
        many; the array has another shape, dtype or range. The message names the file where there is
        one, and the cause is chained.
    ConfigError
        `background`, `max_pixels` or `reduction` is not usable.

    Notes
    -----
    A channel value v of 16 bits becomes ``round(v / 257)``, a float ``round(v * 255)``. Floats that
    round to a value outside 0 to 255 are refused. CMYK, YCbCr, LAB and HSV are converted by Pillow.

    Examples
    --------
    >>> import numpy as np
    >>> to_rgb(np.full((2, 4), 0.5, np.float32)).shape
    (2, 4, 3)
    >>> to_rgb(np.array([[0, 257, 65535]], np.uint16))[0, :, 0].tolist()
    [0, 1, 255]
    """
    _check_options(max_pixels, background, reduction)
    try:
        return Decoder(max_pixels, background).decode(value, reduction)
    except ImageError as error:
        path = image_path(value)
        if path is None:
            raise
        raise ImageError(f"image {path!r}: {error}") from error.__cause__


def image_path(value: object) -> str | None:
    """Name the file of an image value, for messages.

    Parameters
    ----------
    value : object
        What :func:`to_rgb` takes.

    Returns
    -------
    str or None
        None where the value has no file name.

    Examples
    --------
    >>> image_path({"bytes": b"...", "path": "cat.jpg"})
    'cat.jpg'
    >>> image_path(b"...") is None
    True
    """
    if isinstance(value, Mapping):
        value = cast("Mapping[str, object]", value).get("path")
    elif isinstance(value, Image.Image):
        value = getattr(value, "filename", None)
    if isinstance(value, str | os.PathLike):
        return os.fsdecode(cast("str | os.PathLike[str]", value)) or None
    return None


def _check_options(
    max_pixels: int | None, background: tuple[int, int, int], reduction: int
) -> None:
    if reduction not in (1, *SCALES):
        raise ConfigError(f"reduction={reduction} must be 1, 2, 4 or 8")
    if max_pixels is not None and max_pixels < 1:
        raise ConfigError(f"max_pixels={max_pixels} must be at least 1, or None for no limit")
    if len(background) != 3 or not all(0 <= value <= 255 for value in background):
        raise ConfigError(f"background={background!r} must be three numbers from 0 to 255")
