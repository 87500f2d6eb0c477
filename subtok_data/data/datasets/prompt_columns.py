"""Columns of a dataset that hold regions of its images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, get_args

from subtok_data.arguments import check_choice, check_text
from subtok_data.errors import ConfigError
from subtok_data.segment import BoxFormat, Prompts

__all__ = ["PromptColumns"]


@dataclass(frozen=True)
class PromptColumns:
    """Name the columns of a row that hold boxes, points or masks of regions, and their texts.

    Coordinates are pixels of the image as decoded, upright. Where rows hold several images, each
    column holds a list with one entry per image. A row that has None in all columns has no prompt.

    Parameters
    ----------
    boxes : str, optional
        Column of boxes, (P, 4).
    box_format : {"xyxy", "xywh"}
        Corners, half-open; or corner, width and height, as COCO has them.
    points : str, optional
        Column of points, (P, K, 2) or (P, 2): x, y.
    labels : str, optional
        Column of their labels: 1 inside the region, 0 outside, −1 no point; all 1 if not given.
    masks : str, optional
        Column of P masks, each (H, W) of bool or 0 and 1, or a
        :class:`~subtok_data.segment.RLEMasks`.
    texts : str, optional
        Column of P strings: what the regions show.

    Raises
    ------
    ConfigError
        Neither boxes, points nor masks, or labels without points.

    Examples
    --------
    >>> columns = PromptColumns(boxes="objects", box_format="xywh")
    >>> columns.read({"objects": [[2, 3, 10, 20]]}, [(40, 60)], many=False)[0].boxes
    array([[ 2.,  3., 12., 23.]], dtype=float32)
    """

    boxes: str | None = None
    box_format: BoxFormat = "xyxy"
    points: str | None = None
    labels: str | None = None
    masks: str | None = None
    texts: str | None = None

    def __post_init__(self) -> None:
        for kind in ("boxes", "points", "labels", "masks", "texts"):
            check_text(kind, getattr(self, kind), "the name of a column", optional=True)
        check_choice("box_format", self.box_format, get_args(BoxFormat))
        if self.boxes is None and self.points is None and self.masks is None:
            raise ConfigError("PromptColumns: name a column of boxes, points or masks")
        if self.labels is not None and self.points is None:
            raise ConfigError(f"PromptColumns(labels={self.labels!r}): name the column of points")

    @property
    def names(self) -> dict[str, str]:
        """Column of each kind that there is one for."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {kind: name for kind, name in found.items() if name and kind != "box_format"}

    def read(
        self, columns: Mapping[str, Any], sizes: Sequence[tuple[int, int]], *, many: bool
    ) -> list[Prompts]:
        """Return the prompts of each image of a row.

        Parameters
        ----------
        columns : mapping
            The row.
        sizes : sequence of (H, W)
            Of its images, as decoded.
        many : bool
            Whether columns hold a list with an entry per image.

        Raises
        ------
        ConfigError
            If a column is missing.
        PromptError
            If prompts do not fit their image; see :meth:`Prompts.of`.
        """
        missing = [name for name in self.names.values() if name not in columns]
        if missing:
            raise ConfigError(
                f"no prompt column {missing[0]!r}: the row has {sorted(columns)}. Name the columns "
                "in PromptColumns(…); under transformers' Trainer set remove_unused_columns=False"
            )
        values = {kind: columns[name] for kind, name in self.names.items()}
        if not many:
            return [self._read(values, sizes[0])]
        for kind, value in values.items():
            if value is not None and len(value) != len(sizes):
                raise ConfigError(
                    f"column {self.names[kind]!r} has {len(value)} entries for {len(sizes)} "
                    "images: where rows hold several images, give one entry per image"
                )
        return [
            self._read({k: None if v is None else v[place] for k, v in values.items()}, size)
            for place, size in enumerate(sizes)
        ]

    def _read(self, values: Mapping[str, Any], size: tuple[int, int]) -> Prompts:
        given = {kind: value for kind, value in values.items() if value is not None}
        if not given.keys() & {"boxes", "points", "masks"}:
            given["boxes"] = []
        return Prompts.of(size, box_format=self.box_format, **given)
