"""Annotations of a whole file as map-style rows: flat arrays, few bytes a region."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch.utils.data import Dataset

from subtok_data.data.regions.regions import Regions
from subtok_data.errors import ConfigError

__all__ = ["ImageEntry", "RegionEntry", "RegionRows"]


@dataclass(frozen=True)
class ImageEntry:
    """One image of an annotation file: its name there, its file, its size as annotated."""

    id: int | str
    path: str
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class RegionEntry:
    """One region of an annotation file; the box is x0, y0, x1, y1 px."""

    id: int | str
    box: Sequence[float]
    phrases: Sequence[str]
    segmentation: Any = None


class RegionRows(Dataset[dict[str, Any]]):
    """Images and regions of an annotation file, as rows for :class:`RegionDataset`.

    Rows are ``{"image": path, "image_id": …, "regions": Regions}``. All regions are in a few flat
    arrays, so that millions of them are cheap to keep and to send to workers; images are opened,
    and masks decoded, when a row is used.

    Parameters
    ----------
    source : str or Path
        The annotation file, for messages.
    images : iterable of ImageEntry
        In the order of the rows.
    regions : mapping of image id to sequence of RegionEntry
        Those of each image.
    keep_empty : bool, optional
        Keep images without a region.
    left_out : mapping of str to int, optional
        What the reader left out already.

    Attributes
    ----------
    left_out : dict of str to int
        Annotations and images that were not taken, by reason.

    Raises
    ------
    ConfigError
        If no image with a region is left, or an annotation's box is not four numbers.
    """

    def __init__(
        self,
        source: str | Path,
        images: Iterable[ImageEntry],
        regions: Mapping[Any, Sequence[RegionEntry]],
        *,
        keep_empty: bool = False,
        left_out: Mapping[str, int] | None = None,
    ) -> None:
        self.source = str(source)
        self.left_out: dict[str, int] = {k: n for k, n in (left_out or {}).items() if n}
        listed = list(images)
        kept = [one for one in listed if keep_empty or regions.get(one.id)]
        if len(kept) < len(listed):
            self.left_out["images without a region"] = len(listed) - len(kept)
        if not kept:
            raise ConfigError(
                f"{source}: no image with a region among {len(listed)} images; left out: "
                f"{self.left_out}"
            )
        flat = _Flat(self.source)
        for one in kept:
            flat.add(regions.get(one.id, ()))
        self._paths = pa.array([one.path for one in kept], pa.string())
        self._image_ids = pa.array([one.id for one in kept])
        self._sizes = np.array([one.size or (0, 0) for one in kept], np.int32).reshape(-1, 2)
        self._offsets = np.array(flat.offsets, np.int64)
        self._boxes = np.array(flat.boxes, np.float32).reshape(-1, 4)
        self._ids = pa.array(flat.ids)
        self._phrases = pa.array(flat.phrases, pa.list_(pa.string()))
        self._segmentations = pa.array(flat.segmentations, pa.binary()) if flat.any_mask else None

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def num_regions(self) -> int:
        """Regions of all images together."""
        return len(self._boxes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} images")
        part = slice(int(self._offsets[index]), int(self._offsets[index + 1]))
        height, width = (int(side) for side in self._sizes[index])
        regions = Regions(
            self._boxes[part],
            self._phrases[part].to_pylist(),
            self.segmentations(index, part),
            self._ids[part].to_pylist(),
            (height, width) if height else None,
            self.source,
        )
        return {
            "image": self._paths[index].as_py(),
            "image_id": self._image_ids[index].as_py(),
            "regions": regions,
        }

    def segmentations(self, index: int, part: slice) -> Sequence[Any] | None:
        """Read the masks of an image, as annotated; None if the file has none."""
        del index  # for readers that keep masks elsewhere, one file an image
        if self._segmentations is None:
            return None
        coded = self._segmentations[part].to_pylist()
        return [None if one is None else json.loads(one) for one in coded]

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.source!r}, images={len(self)}, "
            f"regions={self.num_regions}, left_out={self.left_out})"
        )


@dataclass
class _Flat:
    """Regions of all images, one after the other."""

    source: str
    offsets: list[int] = field(default_factory=lambda: [0])
    boxes: list[NDArray[np.float32]] = field(default_factory=list[NDArray[np.float32]])
    ids: list[int | str] = field(default_factory=list[int | str])
    phrases: list[list[str]] = field(default_factory=list[list[str]])
    segmentations: list[bytes | None] = field(default_factory=list["bytes | None"])
    any_mask: bool = False

    def add(self, regions: Sequence[RegionEntry]) -> None:
        for one in regions:
            self.boxes.append(_box(one, self.source))
            self.ids.append(one.id)
            self.phrases.append([str(text) for text in one.phrases])
            coded = None if one.segmentation is None else json.dumps(one.segmentation).encode()
            self.segmentations.append(coded)
            self.any_mask = self.any_mask or coded is not None
        self.offsets.append(len(self.boxes))


def _box(region: RegionEntry, source: str) -> NDArray[np.float32]:
    try:
        box = np.array(region.box, np.float32)
    except (TypeError, ValueError):
        box = np.zeros(0, np.float32)
    if box.shape != (4,):
        raise ConfigError(f"{source}: annotation {region.id!r} has no box of four numbers")
    return box
