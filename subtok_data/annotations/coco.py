"""COCO's JSON layout: instances, boxes only (Objects365, V3Det, LVIS), panoptic maps.

One reader for all. Entries stay as the file has them, and each part is checked when it is used,
since few files have everything.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from subtok_data.errors import ConfigError

__all__ = [
    "OPEN_LICENCES",
    "CocoFile",
    "CocoImage",
    "CocoObject",
    "PanopticMap",
    "read_coco",
    "read_json",
]

OPEN_LICENCES = (4, 5, 7)
"""COCO's numbers of licences that let a photo be passed on: CC BY, CC BY-SA, none known."""


@dataclass(frozen=True)
class CocoImage:
    """One entry of ``images``.

    Attributes
    ----------
    id : int or str
        Name in the file.
    file_name : str
        Relative to the folder of images; for LVIS the end of its ``coco_url``.
    size : (H, W) or None
        Pixels, as annotated.
    licence : int or None
        Number in the file's ``licenses``.
    """

    id: int | str
    file_name: str
    size: tuple[int, int] | None
    licence: int | None


@dataclass(frozen=True)
class CocoObject:
    """An object of ``annotations``, or a segment of a panoptic map.

    Attributes
    ----------
    id : int or str
        Name in the file.
    segmentation : object
        What :func:`~subtok_data.segment.segmentation_runs` reads; None without a mask.
    crowd : bool
        Whether the region holds many objects.
    """

    id: int | str
    segmentation: Any
    crowd: bool
    _bbox: Any
    _category: Any
    _file: CocoFile

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 in pixels; a ConfigError if the file has no four numbers."""
        try:
            x, y, width, height = (float(value) for value in self._bbox)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{self._file.path}: annotation {self.id!r} has the bbox {self._bbox!r}: expected "
                "x, y, width, height"
            ) from error
        return x, y, x + width, y + height

    @property
    def category(self) -> str:
        """Name of its category; a ConfigError if the file does not list it."""
        try:
            return self._file.categories[self._category]
        except (KeyError, TypeError) as error:
            raise ConfigError(
                f"{self._file.path}: annotation {self.id!r} is of category {self._category!r}, "
                "which the file does not list"
            ) from error


@dataclass(frozen=True)
class PanopticMap:
    """The annotation of one image in a panoptic file.

    Attributes
    ----------
    file_name : str
        Its PNG, relative to the folder of maps; the number of a pixel is a segment's ``id``.
    segments : list of CocoObject
        Things and stuff.
    """

    file_name: str
    segments: list[CocoObject]


@dataclass(frozen=True)
class CocoFile:
    """An annotation file, as :func:`read_coco` reads it.

    Attributes
    ----------
    path : str
        For messages.
    images : dict of id to CocoImage
        In the order of the file.
    categories : dict of id to str
        Names; empty if the file has none.
    annotations : list of mappings
        As the file has them, those of images that are not in `images` too.
    """

    path: str
    images: dict[int | str, CocoImage]
    categories: dict[Any, str]
    annotations: list[Mapping[str, Any]]

    def with_licences(self, licences: Collection[int] | None) -> CocoFile:
        """Keep the images of some licences, all if None."""
        if licences is None:
            return self
        kept = {name: one for name, one in self.images.items() if one.licence in licences}
        return replace(self, images=kept)

    def objects(self) -> Iterator[tuple[int | str | None, CocoObject]]:
        """Yield the id of the image and the object, for each annotation of an instances file."""
        for place, entry in enumerate(self.annotations):
            yield self._image_id(entry), self._object(entry, place)

    def panoptic_maps(self) -> Iterator[tuple[int | str | None, PanopticMap]]:
        """Yield the id of the image and its map, for each annotation of a panoptic file.

        Raises
        ------
        ConfigError
            An annotation without ``segments_info`` or ``file_name``.
        """
        for entry in self.annotations:
            segments, file_name = entry.get("segments_info"), entry.get("file_name")
            if not isinstance(segments, list) or not file_name:
                raise ConfigError(
                    f"{self.path}: the annotation of image {entry.get('image_id')!r} has no "
                    "segments_info and file_name: a panoptic file is expected"
                )
            found = [self._object(segment, place) for place, segment in enumerate(segments)]
            yield self._image_id(entry), PanopticMap(str(file_name), found)

    def _image_id(self, entry: Mapping[str, Any]) -> int | str | None:
        name = entry.get("image_id")
        if not isinstance(name, (int, str, type(None))):
            raise ConfigError(f"{self.path}: the image_id {name!r} is neither a number nor a text")
        return name

    def _object(self, entry: Any, place: int) -> CocoObject:
        if not isinstance(entry, Mapping):
            raise ConfigError(f"{self.path}: annotation {place} is {entry!r}: expected a dict")
        return CocoObject(
            entry.get("id", place),
            entry.get("segmentation") or None,
            bool(entry.get("iscrowd")),
            entry.get("bbox"),
            entry.get("category_id"),
            self,
        )


def read_coco(path: str | Path) -> CocoFile:
    """Read an annotation file.

    Parameters
    ----------
    path : path
        JSON with the lists ``images`` and ``annotations``, and ``categories`` where there are some.

    Raises
    ------
    ConfigError
        It is no such file, an image has no id or file name, a malformed size, or the id of another;
        the message names the file and the entry.
    """
    data = read_json(path, "a COCO annotation file")
    images: dict[int | str, CocoImage] = {}
    for entry in _list(data, "images", path):
        image = _image(entry, path)
        if image.id in images:
            raise ConfigError(f"{path}: two images have the id {image.id!r}")
        images[image.id] = image
    categories = _list(data, "categories", path) if "categories" in data else []
    try:
        names = {one["id"]: str(one["name"]) for one in categories}
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{path}: a category without id and name: {error}") from error
    return CocoFile(str(path), images, names, _list(data, "annotations", path))


def read_json(path: str | Path, what: str) -> Any:
    """Read a JSON file of annotations.

    Parameters
    ----------
    path : path
        The file.
    what : str
        What it should be, for the message.

    Raises
    ------
    ConfigError
        It is missing, or no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not {what}: {error}") from error


def _list(data: Any, name: str, path: str | Path) -> list[Any]:
    if not isinstance(data, Mapping) or not isinstance(data.get(name), list):
        raise ConfigError(f"{path} is not a COCO annotation file: it has no list {name!r}")
    entries: list[Any] = data[name]
    for place, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            raise ConfigError(f"{path}: entry {place} of {name!r} is {entry!r}: expected a dict")
    return entries


def _image(entry: Mapping[str, Any], path: str | Path) -> CocoImage:
    # LVIS names no file, but ends of addresses: train2017/000000391895.jpg.
    file = entry.get("file_name") or "/".join(str(entry.get("coco_url", "")).split("/")[-2:])
    if not isinstance(entry.get("id"), (int, str)) or not file:
        raise ConfigError(f"{path}: an image without id or file_name: {dict(entry)}")
    size = None
    if "height" in entry and "width" in entry:
        try:
            size = (int(entry["height"]), int(entry["width"]))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path}: image {entry['id']!r} has no size: {error}") from error
        if min(size) < 1:
            raise ConfigError(f"{path}: image {entry['id']!r} has the size {size}")
    return CocoImage(entry["id"], str(file), size, entry.get("license"))
