"""Annotated regions of one image, and their conversion to prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtok_data.errors import ConfigError, PromptError
from subtok_data.segment import Prompts, RLEMasks, segmentation_runs

__all__ = ["Regions"]

_SAME_SHAPE = 0.02
"""How far the ratio of sides of an image may be from the annotation's: re-encoding rounds."""


@dataclass(frozen=True, eq=False)
class Regions:
    """Regions of one image as a data set has them: boxes, masks, texts, still unchecked.

    Parameters
    ----------
    boxes : (P, 4) float32
        x0, y0, x1, y1 px, half-open, as annotated: they may reach over the edge or be empty. A row
        of NaN for a region that has only a mask.
    phrases : sequence of P sequences of str
        What may be said of each region; one or more.
    segmentations : sequence of P, optional
        What :func:`~subtok_data.segment.segmentation_runs` reads, None for a region without a
        mask.
    ids : sequence of P int or str, optional
        Names of the annotations; their places if not given.
    size : (H, W), optional
        Image that the coordinates are of, px; the image as decoded if not given.
    source : str, optional
        File of the annotations, for messages.

    Raises
    ------
    PromptError
        If these are not as many, or a region has no phrase; the message names the annotation.

    Examples
    --------
    >>> regions = Regions(np.array([[2, 1, 9, 4]], np.float32), [["a cup", "a white cup"]])
    >>> regions.prompts((8, 8), ["a cup"]).boxes.tolist()
    [[2.0, 1.0, 8.0, 4.0]]
    """

    boxes: NDArray[np.float32]
    phrases: Sequence[Sequence[str]]
    segmentations: Sequence[Any] | None = None
    ids: Sequence[int | str] | None = None
    size: tuple[int, int] | None = None
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("phrases", "segmentations", "ids"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.boxes):
                raise PromptError(
                    f"{len(values)} {name} for {len(self.boxes)} boxes{self._of}: expected one of "
                    "each per region"
                )
        for region, phrases in enumerate(self.phrases):
            if not phrases:
                raise PromptError(f"{self.name(region)} has no phrase: give one or more texts")

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def _of(self) -> str:
        return f" of {self.source}" if self.source else ""

    def name(self, region: int) -> str:
        """Name of a region for messages: its annotation id, and the file."""
        named = region if self.ids is None else self.ids[region]
        return f"annotation {named!r}{self._of}"

    def prompts(
        self, size: tuple[int, int], texts: Sequence[str], *, keep_all: bool = False
    ) -> Prompts:
        """Convert the regions to prompts of the decoded image.

        Boxes are clipped to the image. An image that is larger or smaller than the annotation
        says, but of its shape, has the regions scaled.

        Parameters
        ----------
        size : (H, W)
            Of the image as decoded, px.
        texts : sequence of P str
            The one text of each region.
        keep_all : bool
            Widen a box that is empty, or outside the image, to the nearest pixel, instead of
            leaving the region out.

        Returns
        -------
        Prompts
            Their ``ids`` are places in the row; those left out are missing.

        Raises
        ------
        PromptError
            A mask that cannot be read, a box with infinite values, a region with neither box nor
            mask, or an image of another shape than annotated. The message names the annotation.
        """
        annotated = self.size or size
        self._check_shape(annotated, size)
        boxes = self._clipped(annotated, keep_all=keep_all)
        masks = self._masks(annotated)
        has_mask = np.zeros(len(self), np.bool_) if masks is None else masks.areas > 0
        kept = np.flatnonzero(~np.isnan(boxes).any(1) | has_mask)
        prompts = Prompts.of(
            annotated,
            boxes=boxes[kept],
            masks=None if masks is None or not has_mask.any() else masks.take(kept),
            texts=[texts[place] for place in kept.tolist()],
        )
        return replace(prompts, ids=kept).resized(size)

    def _check_shape(self, annotated: tuple[int, int], size: tuple[int, int]) -> None:
        stretch = (size[0] / annotated[0]) / (size[1] / annotated[1])
        if abs(stretch - 1) > _SAME_SHAPE:
            raise PromptError(
                f"the image has {size[0]} × {size[1]} pixels (height × width), the annotations"
                f"{self._of} are of {annotated[0]} × {annotated[1]}: another image, or one that "
                "was turned after it was annotated"
            )

    def _clipped(self, size: tuple[int, int], *, keep_all: bool) -> NDArray[np.float32]:
        boxes = np.array(self.boxes, np.float32).reshape(-1, 4)
        wild = np.isinf(boxes).any(1) | (np.isnan(boxes).any(1) & ~np.isnan(boxes).all(1))
        bare = np.isnan(boxes).all(1) & np.array(
            [not self._has_mask(region) for region in range(len(self))], np.bool_
        )
        for region in np.flatnonzero(wild | bare).tolist():
            raise PromptError(
                f"{self.name(region)} has the box {boxes[region].tolist()}: give four finite "
                "numbers, or a mask"
            )
        bounds = np.array([size[1], size[0]] * 2, np.float32)
        clipped = np.clip(boxes, 0, bounds)
        empty = np.any(clipped[:, 2:] <= clipped[:, :2], axis=1)
        if keep_all:
            corner = np.clip(np.floor(clipped[:, :2]), 0, bounds[:2] - 1)
            nearest = np.concatenate([corner, np.maximum(clipped[:, 2:], corner + 1)], axis=1)
            return np.where(empty[:, None], nearest, clipped)
        clipped[empty] = np.nan
        return clipped

    def _has_mask(self, region: int) -> bool:
        return self.segmentations is not None and self.segmentations[region] is not None

    def _masks(self, size: tuple[int, int]) -> RLEMasks | None:
        if self.segmentations is None or not any(map(self._has_mask, range(len(self)))):
            return None
        runs: list[Any] = []
        for region, segmentation in enumerate(self.segmentations):
            if segmentation is None:
                runs.append([size[0] * size[1]])
                continue
            try:
                runs.append(segmentation_runs(segmentation, size))
            except ConfigError as error:
                raise PromptError(f"{self.name(region)}: {error}") from error
        return RLEMasks.from_runs(runs, size)
