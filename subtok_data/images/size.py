"""Size of an image or a map."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

__all__ = ["image_size"]


def image_size(array: NDArray[Any]) -> tuple[int, int]:
    """Return the height and width of an image or a map, whatever its channels.

    Parameters
    ----------
    array : (H, W) or (H, W, C) array
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
