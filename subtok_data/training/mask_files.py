"""Files of scored masks: one npz a photo, the labels that MobileSAM made."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np

from subtok_data.errors import ConfigError
from subtok_data.segment import RLEMasks

__all__ = ["read_masks", "write_masks"]


def write_masks(path: str | Path, masks: RLEMasks) -> None:
    """Write one npz file, whole or not at all.

    Parameters
    ----------
    path : path
        Replaced if it exists.
    masks : RLEMasks
        Scored by predicted IoU, with the field ``stability``; both 0 to 1.

    Raises
    ------
    ConfigError
        Masks without that field.

    Examples
    --------
    >>> import tempfile
    >>> stability = {"stability": np.ones(1, np.float32)}
    >>> masks = RLEMasks.from_masks([np.eye(2, dtype=bool)], [0.9], stability)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_masks(Path(folder) / "a.npz", masks)
    ...     len(read_masks(Path(folder) / "a.npz"))
    1
    """
    if "stability" not in masks.fields:
        raise ConfigError(
            f"masks with the fields {sorted(masks.fields)}: give their stability, "
            'fields={"stability": …}, (M,)'
        )
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.savez_compressed(
            file,
            counts=masks.counts.astype(np.uint32),
            lengths=np.diff(masks.offsets).astype(np.int32),
            size=np.array(masks.size, np.int32),
            predicted_iou=masks.scores.astype(np.float32),
            stability=np.asarray(masks.fields["stability"], np.float32),
        )
    os.replace(partial, path)


def read_masks(path: str | Path) -> RLEMasks:
    """Read what :func:`write_masks` wrote.

    Returns
    -------
    RLEMasks
        Scored by predicted IoU, with the field ``stability``.

    Raises
    ------
    ConfigError
        It is no such file, or its runs are not masks of its size.
    """
    try:
        # Opened here: of a damaged archive NumPy would leave the file open.
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as data:
            counts, lengths = data["counts"], data["lengths"]
            return RLEMasks(
                (int(data["size"][0]), int(data["size"][1])),
                counts.astype(np.int32),
                np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)]),
                data["predicted_iou"].astype(np.float32),
                {"stability": data["stability"].astype(np.float32)},
            )
    except (OSError, EOFError, LookupError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} is not a file of scored masks: {error}") from error
