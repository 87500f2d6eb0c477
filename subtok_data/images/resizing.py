"""Resizing of images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from subtok_data.errors import ConfigError
from subtok_data.images.size import image_size

__all__ = ["resize"]


def resize(
    image: NDArray[np.uint8],
    size: tuple[int, int],
    *,
    box: tuple[float, float, float, float] | None = None,
) -> NDArray[np.uint8]:
    """Resize an image, bicubic, with antialiasing where it shrinks (Pillow).

    Parameters
    ----------
    image : uint8 ndarray (H, W, 3)
        An RGB image.
    size : (int, int)
        New height and width in pixels.
    box : (x0, y0, x1, y1), optional
        The part of it that is resized, in pixels; all by default.

    Returns
    -------
    uint8 ndarray (height, width, 3)
        C-contiguous; `image` itself where it has that size already.

    Raises
    ------
    ConfigError
        A side below 1.

    Examples
    --------
    >>> import numpy as np
    >>> resize(np.zeros((4, 6, 3), np.uint8), (2, 3)).shape
    (2, 3, 3)
    """
    height, width = size
    if box is None and image_size(image) == (height, width):
        return image
    if height < 1 or width < 1:
        raise ConfigError(f"size=({height}, {width}): both sides must be at least 1 pixel")
    source = Image.fromarray(np.ascontiguousarray(image))
    return np.array(source.resize((width, height), Image.Resampling.BICUBIC, box))
