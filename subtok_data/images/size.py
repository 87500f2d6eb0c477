"""Size of an image or a map, and how large one may be."""

from __future__ import annotations

from typing import Protocol

__all__ = ["DEFAULT_MAX_PIXELS", "image_size"]

#: Most pixels an image may have by default: 8192 x 8192, 201 MB as RGB, which take up to
#: 0.8 GB while they are decoded, 1.7 GB from WebP. A file of some kilobytes can claim that many.
DEFAULT_MAX_PIXELS = 1 << 26


class _Shaped(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


def image_size(array: _Shaped) -> tuple[int, int]:
    """Return the height and width of an image or a map, whatever its channels.

    Parameters
    ----------
    array : (H, W) or (H, W, C) array, or EncodedImage
        Any.

    Returns
    -------
    (int, int)
        H and W.

    Examples
    --------
    >>> import numpy as np
    >>> image_size(np.zeros((4, 6, 3), np.uint8))
    (4, 6)
    """
    return array.shape[0], array.shape[1]
