"""Prompts as tensors that torchvision's transforms move with their image, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import tv_tensors

from subtok_data.errors import ConfigError
from subtok_data.segment.coco import label_runs
from subtok_data.segment.packed import PackedMasks
from subtok_data.segment.prompts import Prompts

__all__ = ["prompts_from_tensors", "prompts_to_tensors"]

_CENTRE = 0.5
"""torchvision flips key points as if the first pixel's centre were at 0; ours is at 0.5."""


def prompts_to_tensors(prompts: Prompts) -> dict[str, Any]:
    """Prompts as what a transform is called with.

    Parameters
    ----------
    prompts : Prompts
        P prompts of a picture.

    Returns
    -------
    dict
        Only what there is: ``boxes``, ``tv_tensors.BoundingBoxes`` of the prompts that have one;
        ``points``, ``tv_tensors.KeyPoints`` (x, y; the first pixel's centre at 0); ``masks``,
        ``tv_tensors.Mask`` (L, H, W) int32, in which prompt p is p + 1, and L as many layers as
        overlapping masks need; ``texts``, a list of strings.

    Raises
    ------
    ConfigError
        Points, with a torchvision that has no ``KeyPoints`` (below 0.23).

    Examples
    --------
    >>> prompts = Prompts.of((20, 30), boxes=[[1, 2, 3, 4]], texts=["a cup"])
    >>> sorted(prompts_to_tensors(prompts))
    ['boxes', 'texts']
    """
    tensors: dict[str, Any] = {}
    if prompts.has_box.any():
        boxes = torch.from_numpy(prompts.boxes[prompts.has_box])
        tensors["boxes"] = tv_tensors.BoundingBoxes(
            boxes,  # pyright: ignore[reportCallIssue]  # the overloads of torchvision name no Tensor
            format=tv_tensors.BoundingBoxFormat.XYXY,
            canvas_size=prompts.size,
        )
    if (prompts.labels >= 0).any():
        points = prompts.points[prompts.labels >= 0]
        tensors["points"] = _key_points(points - _CENTRE, prompts.size)
    if prompts.masks is not None and prompts.has_mask.any():
        tensors["masks"] = tv_tensors.Mask(torch.from_numpy(_layers(prompts.masks)))
    if prompts.texts is not None:
        tensors["texts"] = list(prompts.texts)
    return tensors


def prompts_from_tensors(
    prompts: Prompts, moved: Mapping[str, Any], size: tuple[int, int]
) -> Prompts:
    """Read what a transform gave back, and drop prompts of which nothing is left.

    Parameters
    ----------
    prompts : Prompts
        Those before.
    moved : mapping
        What the transform made of :func:`prompts_to_tensors`.
    size : (H, W)
        Of the picture after it.

    Returns
    -------
    Prompts
        Prompts with a box, a point inside or a mask pixel in the picture; where there are several,
        all that is left of them. Their ``ids`` are those before.

    Raises
    ------
    ConfigError
        If the transform changed the number of boxes, points or masks.
    """
    bounds = np.array([size[1], size[0]] * 2, np.float32)
    boxes, points, labels = prompts.boxes.copy(), prompts.points.copy(), prompts.labels.copy()
    if prompts.has_box.any():
        found = np.clip(_read(moved, "boxes", (int(prompts.has_box.sum()), 4)), 0, bounds)
        found[(found[:, 2:] <= found[:, :2]).any(1)] = np.nan
        boxes[prompts.has_box] = found
    used = prompts.labels >= 0
    if used.any():
        dots = _read(moved, "points", (int(used.sum()), 2)) + _CENTRE
        points[used] = dots
        labels[used] = np.where(
            ((dots >= 0) & (dots < bounds[:2])).all(1), prompts.labels[used], -1
        )
    masks = None
    if prompts.masks is not None:
        masks = _unlayered(moved, len(prompts), size, any_mask=bool(prompts.has_mask.any()))
    after = replace(prompts, size=size, boxes=boxes, points=points, labels=labels, masks=masks)
    left = after.has_box | after.has_point | after.has_mask
    return after if left.all() else after.take(np.flatnonzero(left))


def _key_points(points: NDArray[np.float32], size: tuple[int, int]) -> Any:
    kind: Any = getattr(tv_tensors, "KeyPoints", None)
    if kind is None:
        raise ConfigError(
            "this torchvision has no KeyPoints, which move points with their image: install "
            "torchvision 0.23 or later, or leave out the transform"
        )
    return kind(torch.from_numpy(points), canvas_size=size)


def _read(moved: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    values = np.asarray(torch.as_tensor(moved[name]), np.float32)
    if values.shape != shape:
        raise ConfigError(
            f"the transform made {name} of shape {values.shape} of {shape}: leave out transforms "
            "that remove some, such as SanitizeBoundingBoxes; what leaves the picture is dropped "
            "afterwards, together with its text"
        )
    return values


def _layers(masks: PackedMasks) -> NDArray[np.int32]:
    """Masks as label maps: each in the first layer where it overlaps no other."""
    layers: list[NDArray[np.int32]] = []
    for prompt in range(len(masks)):
        pixels = np.flatnonzero(masks.mask(prompt))
        layer = next((one for one in layers if not one.ravel()[pixels].any()), None)
        if layer is None:
            layer = np.zeros(masks.size, np.int32)
            layers.append(layer)
        layer.ravel()[pixels] = prompt + 1
    return np.stack(layers)


def _unlayered(
    moved: Mapping[str, Any], count: int, size: tuple[int, int], *, any_mask: bool
) -> PackedMasks:
    runs = [np.array([size[0] * size[1]], np.int32)] * count
    layers: NDArray[Any] = np.zeros((0, *size), np.int32)
    if any_mask:
        layers = torch.as_tensor(moved["masks"]).numpy()
    if layers.shape[1:] != tuple(size):
        raise ConfigError(
            f"the transform gave an image of {size} pixels and masks of {layers.shape[1:]}: use "
            "transforms that move both, such as torchvision.transforms.v2"
        )
    for layer in layers:
        for prompt, own in enumerate(label_runs(layer, range(1, count + 1))):
            if len(own) > 1:  # the mask of a prompt in another layer is one run of nothing
                runs[prompt] = own
    return PackedMasks.from_runs(runs, size)
