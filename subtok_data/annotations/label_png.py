"""Label maps as PNG files: grey, palette, or colours that are numbers (COCO panoptic)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from subtok_data.errors import ConfigError

__all__ = ["read_label_png"]

_INTEGERS = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N")


def read_label_png(path: str | Path) -> NDArray[np.int32]:
    """Read the label of each pixel from an image file without loss.

    Parameters
    ----------
    path : path
        Grey values of 1, 8, 16 or 32 bits, palette indices, or colours.

    Returns
    -------
    (H, W) int32
        Values or indices as they are; of colours R + 256 G + 65536 B.

    Raises
    ------
    ConfigError
        The file is missing or damaged, or of another kind (floats, grey with transparency).
    """
    try:
        with Image.open(path) as file:
            mode = file.mode
            values = np.asarray(file)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConfigError(f"{path} is not a label map: {error}") from error
    if mode in _INTEGERS:
        return values.astype(np.int32)
    if mode in ("RGB", "RGBA"):
        return values[..., :3].astype(np.int32) @ np.array([1, 256, 65536], np.int32)
    raise ConfigError(
        f"{path} is an image of mode {mode!r}: a label map has grey values, palette indices or RGB"
    )
