"""Conversion of boxes, points and masks to arrays, and checks of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from subtok_data.errors import PromptError
from subtok_data.segment.masks import RLEMasks

__all__ = [
    "BoxFormat",
    "check_prompts",
    "count_prompts",
    "read_boxes",
    "read_labels",
    "read_masks",
    "read_points",
]

BoxFormat = Literal["xyxy", "xywh"]
_TOLERANCE = 1.0
"""Pixels a box may reach over the edge: annotations round, and count the last pixel in or not."""


def check_prompts(
    size: tuple[int, int],
    boxes: NDArray[np.float32],
    points: NDArray[np.float32],
    labels: NDArray[np.int8],
    has_mask: NDArray[np.bool_],
) -> None:
    """Raise PromptError for the first prompt that cannot be a region of the image.

    Parameters
    ----------
    size : (H, W)
        Size of the image in pixels.
    boxes, points, labels
        As in :class:`~subtok_data.segment.Prompts`.
    has_mask : (P,) bool
        Which prompts have a mask with a pixel.

    Examples
    --------
    >>> none = np.zeros((1, 0, 2), np.float32), np.zeros((1, 0), np.int8), np.zeros(1, bool)
    >>> check_prompts((9, 9), np.array([[5, 5, 2, 8]], np.float32), *none)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    subtok_data.errors.PromptError: prompt 0: box [5.0, 5.0, 2.0, 8.0] is empty: expected ...
    """
    limits = np.array([size[1], size[0]], np.float32)
    used = labels >= 0
    absent = np.isnan(boxes).all(1)
    wild_box = ~np.isfinite(boxes).all(1) & ~absent
    wild_point = (used & ~np.isfinite(points).all(-1)).any(1)
    with np.errstate(invalid="ignore"):
        empty = (boxes[:, 2:] <= boxes[:, :2]).any(1)
        over = (boxes[:, :2] < -_TOLERANCE) | (boxes[:, 2:] > limits + _TOLERANCE)
        gone = (boxes[:, 2:] <= 0) | (boxes[:, :2] >= limits)
        far = (used & ((points < 0) | (points > limits)).any(-1)).any(1)
    nothing = absent & ~has_mask & ~(labels == 1).any(1)
    image = f"the image of {size[0]} × {size[1]} pixels (height × width)"
    problems = (
        (wild_box, "box {box} has NaN or infinite values: give four finite numbers"),
        (empty, "box {box} is empty: expected x0 < x1 and y0 < y1"),
        ((over | gone).any(1), f"box {{box}} is outside {image}: give pixels of the source"),
        (wild_point, "points {points} have NaN or infinite values: give finite numbers"),
        (far, f"points {{points}} (x, y) are outside {image}"),
        (nothing, "neither a box, nor a point with label 1, nor a mask with a pixel"),
    )
    bad = np.stack([found for found, _ in problems])
    if bad.any():
        prompt = int(np.flatnonzero(bad.any(0))[0])
        text = problems[int(np.flatnonzero(bad[:, prompt])[0])][1]
        place = {"box": boxes[prompt].tolist(), "points": points[prompt].tolist()}
        raise PromptError(f"prompt {prompt}: {text.format(**place)}")


def read_boxes(boxes: ArrayLike, box_format: BoxFormat) -> NDArray[np.float32]:
    """Convert boxes to (P, 4) float32 corners."""
    corners = _numbers("boxes", boxes)
    if corners.size == 0:
        corners = corners.reshape(-1, 4)
    if corners.ndim != 2 or corners.shape[1] != 4:
        raise PromptError(f"boxes of shape {corners.shape}: expected (P, 4)")
    if box_format == "xywh":
        corners = np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:]], axis=1)
    return corners


def read_points(points: ArrayLike) -> NDArray[np.float32]:
    """Convert points to (P, K, 2) float32."""
    dots = _numbers("points", points)
    if dots.size == 0:
        dots = np.zeros((len(dots), 0, 2), np.float32)
    if dots.ndim == 2:
        dots = dots[:, None]
    if dots.ndim != 3 or dots.shape[2] != 2:
        raise PromptError(
            f"points of shape {dots.shape}: expected (P, K, 2) or (P, 2); fill up prompts that "
            "have fewer points, with label −1"
        )
    return dots


def read_labels(labels: ArrayLike | None, points: NDArray[np.float32]) -> NDArray[np.int8]:
    """Convert the labels of points to (P, K) int8; without labels all points are inside."""
    if labels is None:
        return np.ones(points.shape[:2], np.int8)
    marks = np.asarray(labels)
    if marks.ndim == 1 and points.shape[1] == 1:
        marks = marks[:, None]
    if marks.shape != points.shape[:2]:
        raise PromptError(f"labels of shape {marks.shape}: expected {points.shape[:2]}, as points")
    unknown = ~np.isin(marks, (-1, 0, 1))
    if unknown.any():
        prompt = int(np.flatnonzero(unknown.any(1))[0])
        raise PromptError(
            f"prompt {prompt}: labels {marks[prompt].tolist()}: expected 1 (inside), 0 (outside) "
            "or −1 (no point)"
        )
    return marks.astype(np.int8)


def read_masks(
    masks: RLEMasks | Sequence[NDArray[Any]] | NDArray[Any], size: tuple[int, int]
) -> RLEMasks:
    """Encode masks as run lengths; they must have the size of the image."""
    if not isinstance(masks, RLEMasks):
        arrays = [np.asarray(mask) for mask in masks]
        for prompt, array in enumerate(arrays):
            if array.shape != tuple(size):
                raise PromptError(
                    f"prompt {prompt}: mask of shape {array.shape}, expected {tuple(size)}, the "
                    "size of the image"
                )
            if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
                raise PromptError(f"prompt {prompt}: mask with values other than 0 and 1")
        return RLEMasks.from_masks([array.astype(np.bool_) for array in arrays], size=size)
    if masks.size != tuple(size):
        raise PromptError(
            f"masks of {masks.size[0]} × {masks.size[1]} pixels for an image of {size[0]} × "
            f"{size[1]}: give masks of the size of the image"
        )
    return masks


def _numbers(name: str, values: ArrayLike) -> NDArray[np.float32]:
    try:
        return np.array(values, np.float32)
    except (TypeError, ValueError) as error:
        raise PromptError(f"{name} are not an array of numbers: {error}") from error


def count_prompts(**given: Any) -> int:
    """Count the prompts; raise PromptError unless every input has one entry per prompt."""
    counts = {name: len(values) for name, values in given.items() if values is not None}
    if not counts.keys() - {"texts"}:
        raise PromptError("no prompts: give boxes, points or masks")
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{number} {name}" for name, number in counts.items())
        raise PromptError(f"{found}: expected one of each per prompt")
    return next(iter(counts.values()))
