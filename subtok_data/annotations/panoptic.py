"""COCO's panoptic layout, written: a PNG whose colours are segment ids, and a JSON that lists them.

The layout is that of https://cocodataset.org/#format-data ("Panoptic Segmentation") as panopticapi
reads it: the id of a segment is R + 256 G + 65536 B of its pixels, and 0 is no segment.
"""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from subtok_data.errors import ConfigError
from subtok_data.segment import measure

__all__ = ["TOKEN_CATEGORY", "PanopticWriter", "coco_categories"]

TOKEN_CATEGORY = 1
"""Category of tokens without classes."""

_MAX_ID = (1 << 24) - 1
_JSON = "panoptic.json"
_MAPS = "panoptic"


def coco_categories(classes: NDArray[Any] | None) -> list[dict[str, Any]]:
    """List the categories of tokens: their classes, or one for all.

    Parameters
    ----------
    classes : (N,) integers or None
        Class of each token, −1 for none.

    Examples
    --------
    >>> [one["name"] for one in coco_categories(np.array([3, -1, 3]))], len(coco_categories(None))
    (['none', '3'], 1)
    """
    if classes is None:
        return [{"id": TOKEN_CATEGORY, "name": "token"}]
    found = [int(one) for one in np.unique(classes)]
    return [{"id": one, "name": "none" if one < 0 else str(one)} for one in found]


class PanopticWriter:
    """Write label images as COCO panoptic annotations.

    ``FOLDER/panoptic.json`` and ``FOLDER/panoptic/*.png``. The JSON appears when the ``with`` block
    ends without an error, so that a folder with one is complete; annotations are written as they
    come, not kept in memory.

    Parameters
    ----------
    folder : str or Path
        Made if it is not there.

    Raises
    ------
    ConfigError
        If ``panoptic.json`` is there already.

    Examples
    --------
    >>> import tempfile
    >>> from subtok_data.annotations import read_coco, read_label_png
    >>> folder = Path(tempfile.mkdtemp())
    >>> with PanopticWriter(folder) as writer:
    ...     writer.add("cats/a.jpg", np.array([[1, 1, 2]]))
    1
    >>> ((_, one),) = read_coco(folder / "panoptic.json").panoptic_maps()
    >>> one.file_name, [segment.box for segment in one.segments]
    ('cats/a.png', [(0.0, 0.0, 2.0, 1.0), (2.0, 0.0, 3.0, 1.0)])
    >>> read_label_png(folder / "panoptic" / one.file_name).tolist()
    [[1, 1, 2]]
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if (self.folder / _JSON).exists():
            raise ConfigError(
                f"{str(self.folder / _JSON)!r} is there already: give another folder, or delete it"
            )
        self._partial = self.folder / f"{_JSON}.partial"
        self._images: list[dict[str, Any]] = []
        self._categories: dict[int, str] = {}
        self._taken: set[str] = set()
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        (self.folder / _MAPS).mkdir(parents=True, exist_ok=True)
        self._file = self._partial.open("w", encoding="utf-8")
        self._file.write('{"annotations": [')
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        del error, traceback
        file = self._opened()
        self._file = None
        with file:
            if kind is None:
                named = sorted(self._categories.items())
                categories = [{"id": key, "name": name, "isthing": 1} for key, name in named]
                file.write(f'],\n"categories": {json.dumps(categories)}')
                file.write(f',\n"images": {json.dumps(self._images)}}}\n')
        if kind is None:
            os.replace(self._partial, self.folder / _JSON)
        else:
            self._partial.unlink()

    def _opened(self) -> IO[str]:
        if self._file is None:
            raise ConfigError("a PanopticWriter writes inside its block: with PanopticWriter(…)")
        return self._file

    def add(
        self,
        file_name: str,
        labels: NDArray[np.integer[Any]],
        classes: NDArray[Any] | None = None,
        **extra: Any,
    ) -> int:
        """Write one image: its PNG, its segments, its entry.

        Parameters
        ----------
        file_name : str
            Of the image, relative to the folder of images; the PNG has the same name.
        labels : (H, W) integers
            1 to N, each with a pixel, and 0 for no segment, as
            :meth:`~subtok_data.TokenizedImage.to_label_image` gives them: label k is segment id k.
        classes : (N,) integers, optional
            Categories of the segments, −1 for none; one category ``token`` by default.
        **extra
            More keys for the image's entry.

        Returns
        -------
        int
            Id of the image: 1 for the first.

        Raises
        ------
        ConfigError
            Labels that are not 1 to N, more than 16,777,215 of them, or not one class for each.
        """
        file = self._opened()
        num_segments = int(labels.max(initial=0))
        if num_segments > _MAX_ID:
            raise ConfigError(
                f"{file_name}: {num_segments:,} segments; a panoptic PNG has room for {_MAX_ID:,}"
            )
        if classes is not None and len(classes) != num_segments:
            raise ConfigError(f"{file_name}: {len(classes)} classes for {num_segments} segments")
        try:
            if labels.min(initial=0) < 0:
                raise ValueError(f"there is a label {labels.min()}")
            geometry = measure(labels.astype(np.int32) - 1, num_segments)
        except ValueError as error:
            raise ConfigError(f"{file_name}: labels must be 1 to N and 0 for none: {error}") from (
                error
            )
        png = self._png_name(file_name)
        place = self.folder / _MAPS / png
        place.parent.mkdir(parents=True, exist_ok=True)
        bytes_of = np.stack([labels & 255, labels >> 8 & 255, labels >> 16 & 255], axis=-1)
        Image.fromarray(bytes_of.astype(np.uint8)).save(place)
        number = len(self._images) + 1
        height, width = labels.shape
        self._images.append(
            {"id": number, "file_name": file_name, "height": height, "width": width, **extra}
        )
        for one in coco_categories(classes):
            self._categories[one["id"]] = one["name"]
        segments = [
            {
                "id": token + 1,
                "category_id": TOKEN_CATEGORY if classes is None else int(classes[token]),
                "area": int(area),
                "bbox": [int(x0), int(y0), int(x1 - x0), int(y1 - y0)],
                "iscrowd": 0,
            }
            for token, (area, (x0, y0, x1, y1)) in enumerate(
                zip(geometry.areas, geometry.boxes, strict=True)
            )
        ]
        entry = {"image_id": number, "file_name": png, "segments_info": segments}
        file.write(f"{',' if number > 1 else ''}\n{json.dumps(entry)}")
        return number

    def _png_name(self, file_name: str) -> str:
        """Name of the PNG below the folder of maps: that of the image, and of no other image."""
        path = PurePosixPath(file_name)
        if path.is_absolute() or ".." in path.parts:  # of a dataset's column; stay in the folder
            path = PurePosixPath(path.name)
        # As COCO names them; a.jpg and a.png of one folder cannot both be a.png.
        name, number = str(path.with_suffix(".png")), 1
        while name.casefold() in self._taken:
            name = f"{path}-{number}.png" if number > 1 else f"{path}.png"
            number += 1
        self._taken.add(name.casefold())
        return name
