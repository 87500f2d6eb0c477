"""BSDS500: photos with the segmentations of four to nine people."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from subtok_data.annotations.image_pairs import pair_by_stem
from subtok_data.errors import ConfigError

__all__ = ["BSDSAnnotation", "list_bsds", "read_bsds_mat"]


class BSDSAnnotation(NamedTuple):
    """What one person drew.

    Attributes
    ----------
    regions : (H, W) int32
        Label of the region of each pixel.
    lines : (H, W) bool
        Thin lines between regions.
    """

    regions: NDArray[np.int32]
    lines: NDArray[np.bool_]


def list_bsds(root: str | Path, split: str) -> list[tuple[Path, Path]]:
    """Pair the images of a split with their annotation files.

    Parameters
    ----------
    root : path
        Folder with ``images/SPLIT/*.jpg`` and ``groundTruth/SPLIT/*.mat``.
    split : str
        ``"train"``, ``"val"`` or ``"test"``.

    Returns
    -------
    list of (Path, Path)
        Image and ``.mat`` file, one or more, sorted.

    Raises
    ------
    ConfigError
        There are no such folders, or no pair.
    """
    root = Path(root)
    try:
        return pair_by_stem(root / "images" / split, root / "groundTruth" / split, (".mat",))
    except ConfigError as error:
        raise ConfigError(f"split {split!r} of BSDS500 in {root}: {error}") from error


def read_bsds_mat(path: str | Path) -> list[BSDSAnnotation]:
    """Read the segmentations of one image from its ``.mat`` file, one for each annotator.

    Raises
    ------
    ConfigError
        It is no such file.
    """
    from scipy.io import loadmat  # slow to import

    try:
        entries = loadmat(str(path))["groundTruth"][0]
        return [
            BSDSAnnotation(one["Segmentation"][0, 0].astype(np.int32), one["Boundaries"][0, 0] > 0)
            for one in entries
        ]
    except (OSError, KeyError, IndexError, ValueError) as error:
        raise ConfigError(f"{path} is not a BSDS annotation: {error}") from error
