"""Images that people have segmented: what boundaries and tokens are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from subtok_data.annotations import (
    list_bsds,
    pair_by_stem,
    read_bsds_mat,
    read_coco,
    read_label_png,
)
from subtok_data.errors import ConfigError
from subtok_data.images import to_rgb

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
    """A sequence of annotated images, each read on iteration.

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
        """Take at most `limit` images, evenly spread; all if None."""
        if limit is None or limit >= len(self.readers):
            return self
        if limit < 1:
            raise ConfigError(f"limit is {limit}; at least one image is needed")
        chosen = np.linspace(0, len(self.readers) - 1, limit).round().astype(int)
        return AnnotatedSet(self.name, [self.readers[k] for k in chosen])


def region_lines(label_map: NDArray[Any]) -> NDArray[np.bool_]:
    """Mark the pixels whose right or lower neighbour has another label, lines of one pixel.

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
    """List the images of BSDS500: ``images/SPLIT/*.jpg`` and ``groundTruth/SPLIT/*.mat``.

    Parameters
    ----------
    root : path
        Folder with ``images`` and ``groundTruth``.
    split : str
        ``train``, ``val`` or ``test``.

    Raises
    ------
    ConfigError
        No such images.
    """
    return _annotated_set(f"BSDS500 {split}", list_bsds(root, split), _bsds_image)


def read_panoptic(
    images: str | Path, annotations: str | Path, maps: str | Path, name: str = "COCO panoptic"
) -> AnnotatedSet:
    """List the images of a COCO panoptic file.

    Parameters
    ----------
    images, annotations, maps : path
        Folder of images, JSON file, folder of label PNGs.
    name : str
        For tables.

    Raises
    ------
    ConfigError
        The JSON is missing or something else, or has an annotation without its image.
    """
    file = read_coco(annotations)
    pairs: list[tuple[Path, Path]] = []
    for image, one in file.panoptic_maps():
        if image not in file.images:
            raise ConfigError(f"{annotations}: the image {image!r} of {one.file_name} is missing")
        pairs.append((Path(images) / file.images[image].file_name, Path(maps) / one.file_name))
    return _annotated_set(name, pairs, _labelled_image)


def read_label_maps(images: str | Path, labels: str | Path, name: str = "labels") -> AnnotatedSet:
    """List the images of a folder that have a label PNG of the same stem in another.

    Parameters
    ----------
    images, labels : path
        Folders.
    name : str
        For tables.

    Raises
    ------
    ConfigError
        No pair.
    """
    return _annotated_set(name, pair_by_stem(images, labels), _labelled_image)


def _annotated_set(
    name: str,
    pairs: Sequence[tuple[Path, Path]],
    read: Callable[[Path, Path], AnnotatedImage],
) -> AnnotatedSet:
    return AnnotatedSet(name, [partial(read, *pair) for pair in pairs])


def _bsds_image(path: Path, annotation: Path) -> AnnotatedImage:
    drawn = read_bsds_mat(annotation)
    return AnnotatedImage(
        path.stem,
        to_rgb(path),
        tuple(one.regions for one in drawn),
        tuple(one.lines for one in drawn),
    )


def _labelled_image(path: Path, label: Path) -> AnnotatedImage:
    values = read_label_png(label)
    image = to_rgb(path)
    if values.shape != image.shape[:2]:
        raise ConfigError(f"{label}: labels are {values.shape}, the image is {image.shape[:2]}")
    return AnnotatedImage(path.stem, image, (values,), (region_lines(values),))
