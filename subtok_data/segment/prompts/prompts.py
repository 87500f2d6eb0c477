"""Prompts of one image: boxes, points and masks, each prompt for one region."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from subtok_data.arguments import check_choice, describe
from subtok_data.errors import PromptError
from subtok_data.segment.masks import RLEMasks, Spans, join_spans
from subtok_data.segment.partition import Evidence
from subtok_data.segment.prompts.boxes import box_runs, pixel_box
from subtok_data.segment.prompts.validate import (
    BoxFormat,
    check_prompts,
    count_prompts,
    read_boxes,
    read_labels,
    read_masks,
    read_points,
)

__all__ = ["Prompts", "add_prompts", "fit_prompts"]


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts of one image: each prompt is a box, points or a mask of a region, or several of them.

    Make them with :meth:`of`, which checks its input.

    Parameters
    ----------
    size : (H, W)
        Size in pixels of the image that the coordinates are in.
    boxes : (P, 4) float32
        x0, y0, x1, y1 in pixels, half-open; a row of NaN for a prompt without a box.
    points : (P, K, 2) float32
        x, y in pixels; the first pixel reaches from 0 to 1.
    labels : (P, K) int8
        1 for a point inside the region, 0 for one outside, −1 for no point.
    masks : RLEMasks or None
        One mask per prompt, empty for a prompt without one; None if no prompt has a mask.
    ids : (P,) int64
        Place of each prompt in the row it comes from, which ``visual_token_prompt`` gives.
    texts : tuple of str or None
        One per prompt: what the region shows.

    Examples
    --------
    >>> prompts = Prompts.of((100, 200), boxes=[[10, 20, 60, 80]], texts=["a cup"])
    >>> prompts.resized((50, 100)).boxes
    array([[ 5., 10., 30., 40.]], dtype=float32)
    """

    size: tuple[int, int]
    boxes: NDArray[np.float32]
    points: NDArray[np.float32]
    labels: NDArray[np.int8]
    masks: RLEMasks | None
    ids: NDArray[np.int64]
    texts: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(
        cls,
        size: tuple[int, int],
        *,
        boxes: ArrayLike | None = None,
        box_format: BoxFormat = "xyxy",
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        masks: RLEMasks | Sequence[NDArray[Any]] | NDArray[Any] | None = None,
        texts: Sequence[str] | None = None,
    ) -> Prompts:
        """Make prompts from boxes, points and masks.

        Parameters
        ----------
        size : (H, W)
            Size of the image in pixels.
        boxes : (P, 4) array, optional
            In pixels; a row of NaN for a prompt without a box. They may reach one pixel over the
            edge of the image, and are clipped there.
        box_format : {"xyxy", "xywh"}
            Corners (half-open), or corner, width and height (COCO).
        points : (P, K, 2) or (P, 2) array, optional
            x, y in pixels.
        labels : (P, K) or (P,) array, optional
            1 inside, 0 outside, −1 no point; all 1 if not given.
        masks : RLEMasks, or P (H, W) arrays of bool or 0 and 1, optional
            An empty mask for a prompt without one.
        texts : sequence of str, optional
            One per prompt.

        Raises
        ------
        PromptError
            A prompt with nothing in it, an empty box, a box or point outside the image, values that
            are not finite, a mask of another size, or counts that differ.
        """
        check_choice("box_format", box_format, get_args(BoxFormat))
        if labels is not None and points is None:
            raise PromptError("labels without points: give points, (P, K, 2)")
        packed = None if masks is None else read_masks(masks, size)
        dots = None if points is None else read_points(points)
        corners = None if boxes is None else read_boxes(boxes, box_format)
        count = count_prompts(boxes=corners, points=dots, masks=packed, texts=texts)
        if corners is None:
            corners = np.full((count, 4), np.nan, np.float32)
        if dots is None:
            dots = np.zeros((count, 0, 2), np.float32)
        marks = read_labels(labels, dots)
        masked = np.zeros(count, np.bool_) if packed is None else packed.areas > 0
        check_prompts(size, corners, dots, marks, masked)
        return cls(
            (int(size[0]), int(size[1])),
            np.clip(corners, 0, np.array([size[1], size[0]] * 2, np.float32)),
            dots,
            marks,
            packed,
            np.arange(count, dtype=np.int64),
            None if texts is None else tuple(texts),
        )

    @cached_property
    def has_box(self) -> NDArray[np.bool_]:
        """Mark the prompts with a box, (P,) bool."""
        return ~np.isnan(self.boxes[:, 0])

    @cached_property
    def has_mask(self) -> NDArray[np.bool_]:
        """Mark the prompts with a mask, (P,) bool."""
        return np.zeros(len(self), np.bool_) if self.masks is None else self.masks.areas > 0

    @cached_property
    def has_point(self) -> NDArray[np.bool_]:
        """Mark the prompts with a point inside their region, (P,) bool."""
        return np.asarray((self.labels == 1).any(1), np.bool_)

    def take(self, indices: ArrayLike) -> Prompts:
        """Return the prompts at some indices, in the order given; they keep their ids."""
        kept = np.asarray(indices, np.int64)
        return Prompts(
            self.size,
            self.boxes[kept],
            self.points[kept],
            self.labels[kept],
            None if self.masks is None else self.masks.take(kept),
            self.ids[kept],
            None if self.texts is None else tuple(self.texts[i] for i in kept),
        )

    def check_size(self, size: tuple[int, int], image: int | None = None) -> None:
        """Raise PromptError unless the prompts are in the pixels of an image of ``size`` (H, W).

        ``image`` is its place among several, for the message.
        """
        if tuple(size) != tuple(self.size):
            name = "the image" if image is None else f"image {image}"
            raise PromptError(
                f"{name} has {size[0]} × {size[1]} pixels, its prompts are for {self.size[0]} × "
                f"{self.size[1]}: give Prompts the size of the image as it is, upright, or resize "
                "them with it (Prompts.resized)"
            )

    def resized(self, size: tuple[int, int]) -> Prompts:
        """Return the prompts for the image resized to ``size`` (H, W).

        No region gets lost: a mask too thin for the smaller grid keeps the pixel its middle is in,
        and boxes are not rounded.
        """
        if tuple(size) == self.size:
            return self
        scale = np.array([size[1] / self.size[1], size[0] / self.size[0]], np.float32)
        bounds = np.array([size[1], size[0]] * 2, np.float32)
        return replace(
            self,
            size=(int(size[0]), int(size[1])),
            boxes=np.minimum(self.boxes * np.tile(scale, 2), bounds),  # rounding goes over
            points=self.points * scale,
            masks=None if self.masks is None else self.masks.resized(size),
        )

    def regions(self) -> RLEMasks:
        """Return the region of each prompt, as far as the prompt alone gives it.

        Returns
        -------
        RLEMasks
            P masks: the mask where there is one, else the pixels of the box, of which there is at
            least one, else the pixels of the points inside. Computed once.
        """
        return self._regions

    @cached_property
    def _regions(self) -> RLEMasks:
        known, boxed = self.has_mask, self.has_box
        runs: list[NDArray[np.int32]] = []
        for prompt in range(len(self)):
            if known[prompt] and self.masks is not None:
                runs.append(self.masks.runs(prompt))
            elif boxed[prompt]:
                runs.append(box_runs(pixel_box(self.boxes[prompt], self.size), self.size))
            else:
                runs.append(self._dot_runs(prompt))
        return RLEMasks.from_runs(runs, self.size)

    def _dots(self, prompt: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return rows and columns of the pixels under a prompt's points inside."""
        x, y = self.points[prompt][self.labels[prompt] == 1].astype(np.int64).T
        return y.clip(max=self.size[0] - 1), x.clip(max=self.size[1] - 1)

    def _dot_runs(self, prompt: int) -> NDArray[np.int32]:
        """Encode those pixels as run lengths."""
        rows, columns = self._dots(prompt)
        dots = np.unique(columns * self.size[0] + rows)
        spans = Spans(np.zeros_like(dots), dots, dots + 1)
        return join_spans(spans, 1, self.size[0] * self.size[1])[0]

    def bounds(self) -> NDArray[np.float32]:
        """Return a box around each region, (P, 4): its own box, or that of its mask or points."""
        bounds = self.boxes.copy()
        unboxed = ~self.has_box
        masked = unboxed & self.has_mask
        if self.masks is not None and masked.any():
            bounds[masked] = self.masks.boxes[masked]
        for prompt in np.flatnonzero(unboxed & ~masked):
            rows, columns = self._dots(int(prompt))
            bounds[prompt] = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        return bounds

    def to_evidence(self) -> dict[str, NDArray[Any]]:
        """Serialise as named arrays, for the way to a segment worker; texts stay behind."""
        evidence: dict[str, NDArray[Any]] = {
            "prompt_size": np.array(self.size, np.int64),
            "prompt_boxes": self.boxes,
            "prompt_points": self.points,
            "prompt_labels": self.labels,
            "prompt_ids": self.ids,
        }
        if self.masks is not None:
            masks = self.masks.to_evidence()
            evidence |= {f"prompt_{name}": values for name, values in masks.items()}
        return evidence

    @classmethod
    def from_evidence(cls, evidence: Evidence) -> Prompts | None:
        """Parse the arrays of :meth:`to_evidence`; None without such arrays."""
        if "prompt_ids" not in evidence:
            return None
        height, width = (int(side) for side in evidence["prompt_size"])
        masks: Mapping[str, NDArray[Any]] = {
            name.removeprefix("prompt_"): values
            for name, values in evidence.items()
            if name.startswith("prompt_mask_")
        }
        return cls(
            (height, width),
            evidence["prompt_boxes"],
            evidence["prompt_points"],
            evidence["prompt_labels"],
            RLEMasks.from_evidence(masks) if masks else None,
            evidence["prompt_ids"],
        )


def fit_prompts(
    prompts: Sequence[Prompts | None] | None,
    sizes: Sequence[tuple[int, int]],
    resized: Sequence[tuple[int, int]] | None = None,
) -> list[Prompts | None]:
    """Check prompts against their images, and bring them to other sizes of these.

    Parameters
    ----------
    prompts : sequence of Prompts or None, optional
        One entry per image; None for no prompts at all.
    sizes : sequence of (H, W)
        Sizes of the images that the prompts are for.
    resized : sequence of (H, W), optional
        Sizes to resize the prompts to; as they are if not given.

    Returns
    -------
    list of Prompts or None
        One entry per image.

    Raises
    ------
    PromptError
        Another number of entries than of images, or prompts for an image of another size.

    Examples
    --------
    >>> prompts = Prompts.of((100, 200), boxes=[[10, 20, 60, 80]])
    >>> fit_prompts([prompts, None], [(100, 200), (64, 64)], [(50, 100), (32, 32)])[0].boxes
    array([[ 5., 10., 30., 40.]], dtype=float32)
    """
    if prompts is None:
        return [None] * len(sizes)
    given: Any = prompts
    if isinstance(given, Prompts | Mapping) or not isinstance(given, Sequence):
        raise PromptError(
            f"prompts for a list of images are {describe(given)}: give a list, one Prompts or "
            "None per image"
        )
    for place, (one, size) in enumerate(zip(given, sizes, strict=False)):
        if one is not None and not isinstance(one, Prompts):
            raise PromptError(
                f"prompts of image {place} are {describe(one)}: make them with "
                f"Prompts.of(({size[0]}, {size[1]}), boxes=…), the height and width of the image"
            )
    if len(prompts) != len(sizes):
        raise PromptError(
            f"{len(prompts)} entries of prompts for {len(sizes)} images: give one Prompts, or "
            "None, per image"
        )
    for place, (one, size) in enumerate(zip(prompts, sizes, strict=True)):
        if one is not None:
            one.check_size(size, place)
    if resized is None:
        return list(prompts)
    return [
        None if one is None else one.resized(size)
        for one, size in zip(prompts, resized, strict=True)
    ]


def add_prompts(evidence: Evidence, prompts: Prompts | None) -> Evidence:
    """Add the prompts of an image to its evidence, unless it has prompts already.

    A segmenter that takes prompts may have put masks into them: its prompts are the ones to use.

    Parameters
    ----------
    evidence : mapping of str to array
        Evidence of one image.
    prompts : Prompts or None
        Prompts of the same image; None for none.

    Returns
    -------
    mapping of str to array

    Examples
    --------
    >>> sorted(add_prompts({}, Prompts.of((4, 6), boxes=[[0, 0, 2, 2]])))[:2]
    ['prompt_boxes', 'prompt_ids']
    """
    if prompts is None or "prompt_ids" in evidence:
        return evidence
    return {**evidence, **prompts.to_evidence()}
