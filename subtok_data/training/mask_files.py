"""Run-length coded masks: in memory, and files that hold all masks of one image."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from subtok_data.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["MaskSet", "decode_mask", "encode_mask", "read_masks", "write_masks"]


@dataclass(frozen=True)
class MaskSet:
    """Masks of one image.

    Attributes
    ----------
    size : tuple of int
        (height, width) px.
    runs : sequence of ndarray
        One uint32 array of run lengths a mask, see `encode_mask`.
    predicted_iou, stability : ndarray
        (M,) float32, 0 to 1; 1 where the source does not say.
    """

    size: tuple[int, int]
    runs: Sequence[NDArray[np.uint32]]
    predicted_iou: NDArray[np.float32]
    stability: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.runs)


def encode_mask(mask: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """Run lengths of a mask, column by column, starting with a (maybe empty) run of zeros.

    Parameters
    ----------
    mask : ndarray
        (H, W) bool.

    Returns
    -------
    ndarray
        uint32, sums to H · W: COCO's uncompressed ``counts``.

    Examples
    --------
    >>> encode_mask(np.array([[True, False], [True, True]])).tolist()
    [0, 2, 1, 1]
    """
    flat = np.asarray(mask, bool).ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    start = [0, 0] if flat.size and flat[0] else [0]
    return np.diff(np.concatenate([start, edges, [flat.size]])).astype(np.uint32)


def decode_mask(runs: NDArray[Any] | Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Mask of the given (height, width) from its runs; the inverse of `encode_mask`.

    Raises
    ------
    ConfigError
        The runs do not add up to the size.

    Examples
    --------
    >>> decode_mask([0, 2, 1, 1], (2, 2)).astype(int).tolist()
    [[1, 0], [1, 1]]
    """
    lengths = np.asarray(runs, np.int64)
    if int(lengths.sum()) != size[0] * size[1]:
        raise ConfigError(
            f"run lengths add up to {int(lengths.sum())} pixels, the mask has {size[0]} x {size[1]}"
        )
    flat = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return flat.reshape(size, order="F")


def write_masks(path: str | Path, masks: MaskSet) -> None:
    """Write one npz file, whole or not at all.

    Examples
    --------
    >>> import tempfile
    >>> one = np.ones(1, np.float32)
    >>> masks = MaskSet((2, 2), [encode_mask(np.eye(2, dtype=bool))], one, one)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_masks(Path(folder) / "a.npz", masks)
    ...     len(read_masks(Path(folder) / "a.npz"))
    1
    """
    path = Path(path)
    runs = [np.asarray(one, np.uint32) for one in masks.runs]
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.savez_compressed(
            file,
            counts=np.concatenate(runs) if runs else np.zeros(0, np.uint32),
            lengths=np.array([len(one) for one in runs], np.int32),
            size=np.array(masks.size, np.int32),
            predicted_iou=np.asarray(masks.predicted_iou, np.float32),
            stability=np.asarray(masks.stability, np.float32),
        )
    os.replace(partial, path)


def read_masks(path: str | Path) -> MaskSet:
    """Read what `write_masks` wrote.

    Raises
    ------
    ConfigError
        Not such a file, or its runs do not add up to the size.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            counts, lengths = data["counts"], data["lengths"]
            size = (int(data["size"][0]), int(data["size"][1]))
            iou, stability = data["predicted_iou"], data["stability"]
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(f"{path} is not a file of run-length coded masks: {error}") from error
    runs = np.split(counts, np.cumsum(lengths)[:-1]) if len(lengths) else []
    if any(int(one.sum(dtype=np.int64)) != size[0] * size[1] for one in runs):
        raise ConfigError(f"{path}: run lengths do not add up to {size[0]} x {size[1]} pixels")
    return MaskSet(size, runs, iou, stability)
