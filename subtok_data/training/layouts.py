"""Files of published annotations: what BSDS500, COCO and SA-1B put where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from subtok_data.errors import ConfigError
from subtok_data.images import IMAGE_SUFFIXES
from subtok_data.training.labels import mask_from_segmentation
from subtok_data.training.mask_files import MaskSet, encode_mask

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

__all__ = [
    "image_files",
    "paired_files",
    "read_annotators",
    "read_coco",
    "read_label_map",
    "read_sa1b",
]


def read_annotators(path: str | Path) -> list[tuple[NDArray[np.int32], NDArray[np.bool_]]]:
    """Regions (H, W) and the lines between them (H, W) of each annotator, from a ``.mat`` file."""
    from scipy.io import loadmat  # slow to import

    try:
        entries = loadmat(str(path))["groundTruth"][0]
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(f"{path} is not a BSDS annotation: {error}") from error
    return [
        (one["Segmentation"][0, 0].astype(np.int32), one["Boundaries"][0, 0] > 0) for one in entries
    ]


def read_label_map(path: str | Path) -> NDArray[np.int32]:
    """Labels (H, W) of a PNG: its values or palette indices, in colour R + 256 G + 65536 B."""
    with Image.open(path) as file:
        values = np.asarray(file, np.int32)
    if values.ndim == 2:
        return values
    return values[..., :3] @ np.array([1, 256, 65536], np.int32)


def read_sa1b(path: str | Path) -> MaskSet:
    """Masks of one of SA-1B's JSON files."""
    try:
        data = json.loads(Path(path).read_text())
        size = (int(data["image"]["height"]), int(data["image"]["width"]))
        entries = data["annotations"]
        masks = [mask_from_segmentation(one["segmentation"], size) for one in entries]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is not an SA-1B annotation: {error}") from error
    return MaskSet(
        size,
        [encode_mask(one) for one in masks],
        np.array([one.get("predicted_iou", 1.0) for one in entries], np.float32),
        np.array([one.get("stability_score", 1.0) for one in entries], np.float32),
    )


def image_files(folder: str | Path) -> dict[str, Path]:
    """Images of a folder by their stem, sorted.

    Raises
    ------
    ConfigError
        There is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder")
    return {p.stem: p for p in sorted(folder.iterdir()) if p.suffix.lower() in IMAGE_SUFFIXES}


def paired_files(images: str | Path, labels: str | Path) -> list[tuple[Path, Path]]:
    """Images of two folders that have the same stem."""
    files, maps = image_files(images), image_files(labels)
    return [(files[stem], maps[stem]) for stem in files if stem in maps]


def read_coco(
    annotations: str | Path, images: str | Path, licences: Collection[int] | None
) -> tuple[dict[str, Any], dict[int, Path]]:
    """A COCO annotation file, and the file of each image whose licence is admitted.

    Raises
    ------
    ConfigError
        It is no such file.
    """
    try:
        data = json.loads(Path(annotations).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{annotations} is not a COCO annotation file: {error}") from error
    files = {
        one["id"]: Path(images) / one["file_name"]
        for one in data["images"]
        if licences is None or one["license"] in licences
    }
    return data, files
