"""COCO's JSON layout: instances, Objects365's boxes, panoptic maps. The class name is the text."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from subtok_data.data.regions.readers.table import (
    AnnotatedImage,
    AnnotatedRegion,
    RegionRows,
    read_json,
)
from subtok_data.errors import ConfigError, PromptError
from subtok_data.segment import label_runs

__all__ = ["CocoRegions", "PanopticRegions", "plain_name"]
_CROWD = "regions of a crowd"
_LICENCE = "images of other licences"
_ORPHAN = "regions of images that are not taken"


def plain_name(name: str) -> str:
    """Words of a category name: COCO's stuff has marks that nobody says, LVIS has underscores.

    Examples
    --------
    >>> plain_name("sky-other-merged"), plain_name("door-stuff"), plain_name("hair_dryer")
    ('sky', 'door', 'hair dryer')
    """
    for mark in ("-merged", "-other", "-stuff"):
        name = name.removesuffix(mark)
    return name.replace("-", " ").replace("_", " ")


class CocoRegions(RegionRows):
    """Objects of a COCO instances file, or of one with boxes only (Objects365, V3Det, LVIS).

    What is said of a region is the name of its category: weak supervision (SCA, section 3.3).

    Parameters
    ----------
    annotations : str or Path
        JSON file with ``images``, ``annotations`` and ``categories``.
    images : str or Path
        Folder that its ``file_name`` entries are in (for LVIS, the ends of ``coco_url``).
    masks : bool, optional
        Read ``segmentation`` (polygons or run lengths) where there is one; else boxes only.
    crowd : bool, optional
        Take regions of a crowd (``iscrowd``) too: their box holds many objects.
    phrase : callable, optional
        From the name of a category to the text.
    licences : collection of int, optional
        Ids of image licences to take; all by default.
    keep_empty : bool, optional
        Keep images without a region.

    Raises
    ------
    ConfigError
        If the file is not of this layout; the message names the file and the annotation.
    """

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path,
        *,
        masks: bool = True,
        crowd: bool = False,
        phrase: Callable[[str], str] = plain_name,
        licences: Collection[int] | None = None,
        keep_empty: bool = False,
    ) -> None:
        data = read_json(annotations, "a COCO annotation file")
        counts: Counter[str] = Counter()
        listed = _images(data, annotations, images, licences, counts)
        names = _names(data, annotations, phrase)
        known = {one.id for one in listed}
        regions: dict[Any, list[AnnotatedRegion]] = defaultdict(list)
        for place, one in enumerate(_list(data, "annotations", annotations)):
            name = one.get("id", place)
            if one.get("image_id") not in known:
                counts[_ORPHAN] += 1
                continue
            if one.get("iscrowd") and not crowd:
                counts[_CROWD] += 1
                continue
            text = _text_of(one, f"annotation {name!r}", names, annotations)
            regions[one["image_id"]].append(
                AnnotatedRegion(
                    name,
                    _corners(one.get("bbox"), name, annotations),
                    [text],
                    (one.get("segmentation") or None) if masks else None,
                )
            )
        super().__init__(annotations, listed, regions, keep_empty=keep_empty, left_out=counts)


class PanopticRegions(RegionRows):
    """Segments of a COCO panoptic file and its PNG maps: things and stuff, every pixel once.

    Parameters
    ----------
    annotations : str or Path
        JSON file with ``images``, ``annotations`` (``segments_info``) and ``categories``.
    maps : str or Path
        Folder of the PNGs; a pixel's segment is R + 256 G + 65536 B.
    images : str or Path
        Folder of the images.
    crowd, phrase, licences, keep_empty : optional
        As for :class:`CocoRegions`.

    Raises
    ------
    ConfigError
        If the file is not of this layout.
    """

    def __init__(
        self,
        annotations: str | Path,
        maps: str | Path,
        images: str | Path,
        *,
        crowd: bool = False,
        phrase: Callable[[str], str] = plain_name,
        licences: Collection[int] | None = None,
        keep_empty: bool = False,
    ) -> None:
        data = read_json(annotations, "a COCO panoptic file")
        counts: Counter[str] = Counter()
        listed = _images(data, annotations, images, licences, counts)
        names = _names(data, annotations, phrase)
        self._maps: dict[Any, str] = {}
        regions: dict[Any, list[AnnotatedRegion]] = {}
        for one in _list(data, "annotations", annotations):
            if "segments_info" not in one or "file_name" not in one:
                raise ConfigError(
                    f"{annotations}: the annotation of image {one.get('image_id')!r} has no "
                    "segments_info and file_name: a panoptic file is expected"
                )
            self._maps[one["image_id"]] = str(Path(maps) / one["file_name"])
            regions[one["image_id"]] = found = []
            for segment in one["segments_info"]:
                if segment.get("iscrowd") and not crowd:
                    counts[_CROWD] += 1
                    continue
                text = _text_of(segment, f"segment {segment.get('id')!r}", names, annotations)
                box = _corners(segment.get("bbox"), segment["id"], annotations)
                found.append(AnnotatedRegion(segment["id"], box, [text]))
        super().__init__(annotations, listed, regions, keep_empty=keep_empty, left_out=counts)

    def segmentations(self, index: int, part: slice) -> Sequence[Any]:
        """Masks of an image: its PNG is read when the first of them is."""
        path = self._maps[self._image_ids[index].as_py()]
        return _PanopticMasks(path, self._ids[part].to_pylist(), self.source)


class _PanopticMasks(Sequence[Any]):
    """Run lengths of the segments of one PNG, read on first use: boxes alone need none."""

    def __init__(self, path: str, wanted: list[int], source: str) -> None:
        self._path, self._wanted, self._source = path, wanted, source
        self._masks: list[Any] | None = None

    def __len__(self) -> int:
        return len(self._wanted)

    def __getitem__(self, region: Any) -> Any:
        if self._masks is None:
            self._masks = self._read()
        return self._masks[region]

    def _read(self) -> list[Any]:
        try:
            with Image.open(self._path) as file:
                colours = np.asarray(file.convert("RGB"), np.int32)
        except (OSError, ValueError) as error:
            raise PromptError(f"panoptic map {self._path}: {error}") from error
        labels = colours @ np.array([1, 256, 65536], np.int32)
        size = [int(side) for side in labels.shape]
        masks: list[Any] = []
        for name, runs in zip(self._wanted, label_runs(labels, self._wanted), strict=True):
            if len(runs) == 1:
                raise PromptError(
                    f"annotation {name!r} of {self._source} has no pixel in {self._path}"
                )
            masks.append({"size": size, "counts": runs})
        return masks


def _list(data: Any, name: str, path: str | Path) -> list[Mapping[str, Any]]:
    if not isinstance(data, Mapping) or not isinstance(data.get(name), list):
        raise ConfigError(f"{path} is not a COCO annotation file: it has no list {name!r}")
    return data[name]


def _images(
    data: Any,
    path: str | Path,
    folder: str | Path,
    licences: Collection[int] | None,
    counts: Counter[str],
) -> list[AnnotatedImage]:
    found: list[AnnotatedImage] = []
    for one in _list(data, "images", path):
        # LVIS names no file, but ends of addresses: train2017/000000391895.jpg.
        file = one.get("file_name") or "/".join(str(one.get("coco_url", "")).split("/")[-2:])
        if "id" not in one or not file:
            raise ConfigError(f"{path}: an image without id or file_name: {dict(one)}")
        if licences is not None and one.get("license") not in licences:
            counts[_LICENCE] += 1
            continue
        size = (int(one["height"]), int(one["width"])) if "height" in one else None
        found.append(AnnotatedImage(one["id"], str(Path(folder) / file), size))
    return found


def _names(data: Any, path: str | Path, phrase: Callable[[str], str]) -> dict[int, str]:
    return {one["id"]: phrase(one["name"]) for one in _list(data, "categories", path)}


def _text_of(one: Mapping[str, Any], what: str, names: Mapping[int, str], path: str | Path) -> str:
    """Text of the category of an annotation or segment."""
    category: Any = one.get("category_id")
    if category not in names:
        raise ConfigError(
            f"{path}: {what} is of category {category!r}, which the file does not list"
        )
    return names[category]


def _corners(box: Any, name: Any, path: str | Path) -> list[float]:
    try:
        x, y, width, height = (float(value) for value in box)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}: annotation {name!r} has the bbox {box!r}: expected x, y, width, height"
        ) from error
    return [x, y, x + width, y + height]
