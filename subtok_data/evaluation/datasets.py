"""Images that people have segmented: what boundaries and tokens are compared with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from subtok_data.errors import ConfigError
from subtok_data.images import to_rgb
from subtok_data.training import read_annotators, read_label_map

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["AnnotatedImage", "AnnotatedSet", "read_bsds", "read_label_maps", "read_panoptic"]


@dataclass(frozen=True)
class AnnotatedImage:
    """One image with one or more human segmentations.

    Attributes
    ----------
    name : str
        For messages and tables.
    image : ndarray
        RGB (H, W, 3) uint8.
    label_maps : tuple of ndarray
        (H, W) int32 each: the region of every pixel.
    boundaries : tuple of ndarray
        (H, W) bool each: the humans' thin lines.
    """

    name: str
    image: NDArray[np.uint8]
    label_maps: tuple[NDArray[np.int32], ...]
    boundaries: tuple[NDArray[np.bool_], ...]


@dataclass(frozen=True)
class AnnotatedSet:
    """A sequence of annotated images, read when asked for.

    Attributes
    ----------
    name : str
        For tables.
    readers : sequence of callable
        One an image.
    """

    name: str
    readers: Sequence[Callable[[], AnnotatedImage]]

    def __len__(self) -> int:
        return len(self.readers)

    def __iter__(self) -> Iterator[AnnotatedImage]:
        return (read() for read in self.readers)

    def every(self, limit: int | None) -> AnnotatedSet:
        """At most `limit` images, evenly spread; all if None."""
        if limit is None or limit >= len(self.readers):
            return self
        if limit < 1:
            raise ConfigError(f"limit is {limit}; at least one image is needed")
        chosen = np.linspace(0, len(self.readers) - 1, limit).round().astype(int)
        return AnnotatedSet(self.name, [self.readers[k] for k in chosen])


def region_lines(label_map: NDArray[Any]) -> NDArray[np.bool_]:
    """One-pixel lines between regions: pixels whose right or lower neighbour has another label.

    Examples
    --------
    >>> region_lines(np.array([[1, 1, 2, 2]])).astype(int).tolist()
    [[0, 1, 0, 0]]
    """
    lines = np.zeros(label_map.shape, bool)
    lines[:-1] |= label_map[1:] != label_map[:-1]
    lines[:, :-1] |= label_map[:, 1:] != label_map[:, :-1]
    return lines


def read_bsds(root: str | Path, split: str = "val") -> AnnotatedSet:
    """BSDS500: ``images/SPLIT/*.jpg`` and ``groundTruth/SPLIT/*.mat``.

    Raises
    ------
    ConfigError
        No such images.
    """
    root = Path(root)
    files = sorted((root / "images" / split).glob("*.jpg"))
    if not files:
        raise ConfigError(f"no images in {root / 'images' / split}; give the folder of BSDS500")

    def reader(path: Path) -> Callable[[], AnnotatedImage]:
        return lambda: _bsds_image(path, root / "groundTruth" / split / f"{path.stem}.mat")

    return AnnotatedSet(f"BSDS500 {split}", [reader(path) for path in files])


def read_panoptic(
    images: str | Path, annotations: str | Path, maps: str | Path, name: str = "COCO panoptic"
) -> AnnotatedSet:
    """COCO panoptic: image folder, JSON, folder of label PNGs.

    Raises
    ------
    ConfigError
        The JSON is missing, or something else.
    """
    try:
        data = json.loads(Path(annotations).read_text(encoding="utf-8"))
        files = {one["id"]: Path(images) / one["file_name"] for one in data["images"]}
        pairs = [
            (files[one["image_id"]], Path(maps) / one["file_name"]) for one in data["annotations"]
        ]
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(f"{annotations} is not COCO panoptic: {error}") from error

    def reader(path: Path, label: Path) -> Callable[[], AnnotatedImage]:
        return lambda: _labelled_image(path, label)

    return AnnotatedSet(name, [reader(*pair) for pair in pairs])


def read_label_maps(images: str | Path, labels: str | Path, name: str = "labels") -> AnnotatedSet:
    """Folder of images and folder of label PNGs of the same stem.

    Raises
    ------
    ConfigError
        No pair.
    """
    maps = {path.stem: path for path in sorted(Path(labels).glob("*.png"))}
    pairs = [(p, maps[p.stem]) for p in sorted(Path(images).iterdir()) if p.stem in maps]
    if not pairs:
        raise ConfigError(f"no image in {images} has a label PNG of the same name in {labels}")

    def reader(path: Path, label: Path) -> Callable[[], AnnotatedImage]:
        return lambda: _labelled_image(path, label)

    return AnnotatedSet(name, [reader(*pair) for pair in pairs])


def _bsds_image(path: Path, annotation: Path) -> AnnotatedImage:
    annotators = read_annotators(annotation)
    return AnnotatedImage(
        path.stem,
        to_rgb(path),
        tuple(regions for regions, _ in annotators),
        tuple(lines for _, lines in annotators),
    )


def _labelled_image(path: Path, label: Path) -> AnnotatedImage:
    values = read_label_map(label)
    image = to_rgb(path)
    if values.shape != image.shape[:2]:
        raise ConfigError(f"{label}: labels are {values.shape}, the image is {image.shape[:2]}")
    return AnnotatedImage(path.stem, image, (values,), (region_lines(values),))
