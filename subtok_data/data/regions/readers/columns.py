"""Regions from the columns of rows, in the layouts of published data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from subtok_data.arguments import check_choice
from subtok_data.data.datasets import ColumnError
from subtok_data.data.regions.regions import Regions
from subtok_data.errors import ConfigError, PromptError
from subtok_data.segment import BoxFormat

__all__ = ["RegionColumns"]

_KNOWN = {
    "box": ("bbox", "box"),
    "phrases": (
        *("phrases", "phrase", "sentences", "captions", "caption"),
        *("names", "name", "category", "label"),
    ),
    "mask": ("segmentation", "mask"),
    "id": ("region_id", "ann_id", "bbox_id", "id"),
}

_SIDES = (("x", "y", "width", "height"), ("x", "y", "w", "h"))
_SENTENCE = ("sent", "raw", "phrase", "caption")


@dataclass(frozen=True)
class RegionColumns:
    """Where the regions of a row are.

    A column of regions is a list of dicts, or a dict of lists (as Hugging Face gives nested
    features). Names that are not given are looked up among those that data sets use:

    * box: ``bbox``, ``box``, or ``x``, ``y``, ``width``, ``height`` (Visual Genome, SCA);
    * texts: ``phrases``, ``phrase``, ``sentences`` (RefCOCO), ``captions``, ``caption``,
      ``names``, ``name``, ``category``, ``label``;
    * mask: ``segmentation``, ``mask``: polygons, run lengths, arrays or images;
    * name: ``region_id``, ``ann_id``, ``bbox_id``, ``id``.

    Parameters
    ----------
    regions : str, optional
        Column of regions. None: the row itself is one region, or its columns are lists of them;
        then name what the row has.
    box, phrases, mask, id : str, optional
        Keys of a region.
    box_format : {"xywh", "xyxy"}
        How a box is written.
    categories : mapping or sequence, optional
        Names of categories where the text is a number: a list, or a dict by number. Those of a
        Hugging Face ``ClassLabel`` are known.

    Raises
    ------
    ConfigError
        An unknown box format, or no column named where the row itself holds the regions.

    Examples
    --------
    >>> row = {"regions": [{"region_id": 7, "phrases": ["a cup"], "x": 2, "y": 1, "width": 5,
    ...                     "height": 4}]}
    >>> regions = RegionColumns().read(row)
    >>> regions.boxes.tolist(), regions.phrases, regions.ids
    ([[2.0, 1.0, 7.0, 5.0]], (('a cup',),), (7,))
    >>> columns = RegionColumns("objects", categories=["cat", "dog"])
    >>> columns.read({"objects": {"bbox": [[0, 0, 3, 3]], "category": [1]}}).phrases
    (('dog',),)
    """

    regions: str | None = "regions"
    box: str | None = None
    phrases: str | None = None
    mask: str | None = None
    id: str | None = None
    box_format: BoxFormat = "xywh"
    categories: Mapping[int, str] | Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_choice("box_format", self.box_format, get_args(BoxFormat))
        if self.regions is None and (self.phrases is None or not (self.box or self.mask)):
            raise ConfigError(
                "regions=None takes the row itself: name its columns phrases= and box= or mask="
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Columns of the row that the regions are read from."""
        if self.regions is not None:
            return (self.regions,)
        return tuple(n for n in (self.box, self.phrases, self.mask, self.id) if n is not None)

    def with_names_of(self, features: Any) -> RegionColumns:
        """Take the names of categories from the features of a Hugging Face dataset.

        Parameters
        ----------
        features : mapping or None
            ``dataset.features``; a text that is a ``ClassLabel`` there is a number in the rows.
        """
        if self.categories is not None or not isinstance(features, Mapping):
            return self
        if self.regions is not None:
            features = features.get(self.regions)
            features = getattr(features, "feature", features)  # a list of dicts
        if not isinstance(features, Mapping):
            return self
        known = _KNOWN["phrases"] if self.phrases is None else (self.phrases,)
        feature = next((features[name] for name in known if name in features), None)
        names = getattr(getattr(feature, "feature", feature), "names", None)
        return self if names is None else replace(self, categories=names)

    def read(self, row: Mapping[str, Any], source: str = "") -> Regions:
        """Read the regions of a row.

        Parameters
        ----------
        row : mapping
            Columns of the row.
        source : str, optional
            Where it is from, for messages.

        Raises
        ------
        ColumnError
            If a column is missing.
        PromptError
            If a region lacks a box and a mask or a text, or they are malformed; the message names
            the region.
        """
        missing = [name for name in self.names if name not in row]
        if missing:
            raise ColumnError(
                f"no region column {missing[0]!r}: the row has {sorted(row)}. Name the columns in "
                "RegionColumns(…); under transformers' Trainer set remove_unused_columns=False"
            )
        value = self._own(row) if self.regions is None else row[self.regions]
        if value is None:
            value = []
        if isinstance(value, Regions):
            return value
        regions = _as_dicts(value, self.regions)
        names: list[int | str] = [
            _first(region, self.id, "id", place) for place, region in enumerate(regions)
        ]
        boxes = np.full((len(regions), 4), np.nan, np.float32)
        masks: list[Any] = []
        for place, region in enumerate(regions):
            try:
                boxes[place] = self._box(region)
                masks.append(_drawn(_first(region, self.mask, "mask", None)))
                if masks[-1] is None and np.isnan(boxes[place]).all():
                    raise PromptError(f"neither a box nor a mask; it has {sorted(region)}")
            except PromptError as error:
                raise PromptError(f"region {names[place]!r}: {error}") from error
        return Regions(
            boxes,
            tuple(self._phrases(region, names[place]) for place, region in enumerate(regions)),
            masks if any(mask is not None for mask in masks) else None,
            tuple(names),
            source=source,
        )

    def _own(self, row: Mapping[str, Any]) -> Any:
        """Regions of a row that has no column of regions: one, or as many as it has boxes."""
        own = {name: row[name] for name in self.names}
        many = np.ndim(row[self.box]) != 1 or not len(row[self.box]) if self.box else False
        return own if many else [own]

    def _box(self, region: Mapping[str, Any]) -> NDArray[np.float32]:
        value = _first(region, self.box, "box", None)
        box_format = self.box_format
        if value is None:
            sides = next((names for names in _SIDES if all(n in region for n in names)), None)
            if sides is None:
                return np.full(4, np.nan, np.float32)
            value, box_format = [region[name] for name in sides], "xywh"
        try:
            box = np.asarray(value, np.float32)
        except (TypeError, ValueError) as error:
            raise PromptError(f"the box {value!r} is not four numbers") from error
        if box.shape != (4,):
            raise PromptError(f"the box {value!r} is not four numbers")
        return np.concatenate([box[:2], box[:2] + box[2:]]) if box_format == "xywh" else box

    def _phrases(self, region: Mapping[str, Any], name: int | str) -> tuple[str, ...]:
        value = _first(region, self.phrases, "phrases", None)
        if isinstance(value, np.ndarray):
            value = value.tolist()
        values = value if isinstance(value, (list, tuple)) else [value]
        texts = tuple(text for text in map(self._text, values) if text)
        if not texts:
            raise PromptError(
                f"region {name!r} has no text, got {value!r}; it has {sorted(region)}. Name the "
                "key with RegionColumns(phrases=…), and give categories= for numbers"
            )
        return texts

    def _text(self, value: Any) -> str | None:
        if isinstance(value, str):
            return value.strip()
        if isinstance(value, Mapping):
            return next((self._text(value[key]) for key in _SENTENCE if key in value), None)
        try:
            number = int(value)
            return None if self.categories is None else self.categories[number]
        except (TypeError, ValueError, KeyError, IndexError):
            return None


def _first(region: Mapping[str, Any], named: str | None, kind: str, default: Any) -> Any:
    if named is not None:
        return region.get(named, default)
    found = (region[name] for name in _KNOWN[kind] if region.get(name) is not None)
    return next(found, default)


def _drawn(mask: Any) -> Any:
    """Convert a mask that is an image (above 0 is inside) to an array; pass others through."""
    if isinstance(mask, Mapping) and "bytes" in mask:  # as Hugging Face keeps images undecoded
        with Image.open(mask["path"] if mask["bytes"] is None else BytesIO(mask["bytes"])) as file:
            return np.asarray(file.convert("L")) > 0
    if isinstance(mask, Image.Image):
        return np.asarray(mask.convert("L")) > 0
    return mask if isinstance(mask, (Mapping, list, tuple)) or mask is None else np.asarray(mask)


def _as_dicts(value: Any, name: str | None) -> list[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        lengths = {key: len(values) for key, values in value.items()}
        if len(set(lengths.values())) > 1:
            raise PromptError(f"column {name!r} has lists of different lengths: {lengths}")
        count = next(iter(lengths.values()), 0)
        return [{key: value[key][place] for key in value} for place in range(count)]
    if not isinstance(value, (list, tuple)) or not all(isinstance(one, Mapping) for one in value):
        raise PromptError(
            f"column {name!r} holds {type(value).__name__}: expected a list of dicts, or a dict of "
            "lists"
        )
    return list(value)
