"""The key of an image: which content tokens belong to."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from subtok_data.errors import ImageError

__all__ = ["KEY_BYTES", "join_keys", "pixel_key", "read_with_key"]

KEY_BYTES = 16
"""Length of a key."""


def read_with_key(value: object) -> tuple[object, bytes | None]:
    """Read the file of an image once, for its key and for decoding.

    Parameters
    ----------
    value : object
        What :func:`~subtok_data.images.to_rgb` takes.

    Returns
    -------
    value : object
        The content of the file, with its path, where there is a file; else as given.
    key : bytes or None
        The first 16 bytes of the SHA-256 of the file's content; None where there is no file: then
        :func:`pixel_key` of the decoded image is its key.

    Raises
    ------
    ImageError
        If the file cannot be opened.

    Examples
    --------
    >>> read_with_key(b"content of a file")[1].hex()[:8]
    '2454bd67'
    >>> read_with_key(np.zeros((2, 2, 3), np.uint8))[1] is None
    True
    """
    path: object = None
    content: object = value
    if isinstance(value, Mapping):
        row = cast("Mapping[str, object]", value)
        content, path = row.get("bytes"), row.get("path")
        content = path if content is None else content
    if isinstance(content, str | os.PathLike):
        path = os.fsdecode(cast("str | os.PathLike[str]", content))
        if "://" in path:
            return value, None
        try:
            content = Path(path).read_bytes()
        except (OSError, ValueError) as error:
            raise ImageError(f"image {path!r}: cannot be opened: {error}") from error
    if not isinstance(content, bytes | bytearray):
        return value, None
    kept = content if path is None else {"bytes": content, "path": path}
    return kept, hashlib.sha256(content).digest()[:KEY_BYTES]


def pixel_key(image: NDArray[np.uint8]) -> bytes:
    """Key of an image that has no file: of its size and its pixels.

    Parameters
    ----------
    image : (H, W, 3) uint8 ndarray
        As decoded, before it is resized.

    Examples
    --------
    >>> len(pixel_key(np.zeros((2, 3, 3), np.uint8)))
    16
    """
    hashed = hashlib.sha256(f"{image.shape[0]}x{image.shape[1]} rgb\n".encode())
    hashed.update(cast("Any", np.ascontiguousarray(image)))
    return hashed.digest()[:KEY_BYTES]


def join_keys(keys: list[bytes]) -> bytes | None:
    """Key of a row: that of its image, or of all its images together.

    Examples
    --------
    >>> join_keys([b"a" * 16]) == b"a" * 16, join_keys([]) is None
    (True, True)
    """
    if len(keys) < 2:
        return keys[0] if keys else None
    return hashlib.sha256(b"".join(keys)).digest()[:KEY_BYTES]
