"""Regions asked for by less than their mask: by their box, or by a point in them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from subtok_data.segment.boxes import pixel_box
from subtok_data.segment.prompts import Prompts

__all__ = ["as_boxes", "as_points"]


def as_boxes(prompts: Prompts) -> Prompts:
    """Ask by boxes alone; a region without a box gets that of its mask.

    Examples
    --------
    >>> mask = np.zeros((4, 6), bool)
    >>> mask[1:3, 2:5] = True
    >>> as_boxes(Prompts.of((4, 6), masks=[mask])).boxes.tolist()
    [[2.0, 1.0, 5.0, 3.0]]
    """
    if prompts.masks is None:
        return prompts
    return replace(prompts, boxes=prompts.bounds(), masks=None)


def as_points(prompts: Prompts, random: np.random.Generator | None = None) -> Prompts:
    """Ask by one point in each region, instead of box and mask.

    Parameters
    ----------
    prompts : Prompts
        P prompts with a box or a mask.
    random : numpy.random.Generator, optional
        Draws a pixel of the mask, or a place in the box. Without it the point is in the middle: the
        pixel farthest from the mask's outline (as SAM is evaluated), the centre of the box.

    Examples
    --------
    >>> prompts = as_points(Prompts.of((10, 10), boxes=[[2, 2, 6, 8]]))
    >>> prompts.points.tolist(), bool(np.isnan(prompts.boxes).all())
    ([[[4.0, 5.0]]], True)
    """
    points = np.zeros((len(prompts), 1, 2), np.float32)
    bounds = prompts.bounds()
    known = prompts.has_mask
    for region in range(len(prompts)):
        box = bounds[region]
        if prompts.masks is None or not known[region]:
            share = np.full(2, 0.5) if random is None else random.random(2)
            points[region, 0] = box[:2] + share * (box[2:] - box[:2])
            continue
        x0, y0, x1, y1 = pixel_box(box, prompts.size)
        inside = prompts.masks.mask(region)[y0:y1, x0:x1]
        y, x = _middle(inside) if random is None else _any_pixel(inside, random)
        points[region, 0] = (x0 + x + 0.5, y0 + y + 0.5)
    return replace(
        prompts,
        boxes=np.full((len(prompts), 4), np.nan, np.float32),
        points=points,
        labels=np.ones((len(prompts), 1), np.int8),
        masks=None,
    )


def _middle(mask: NDArray[np.bool_]) -> tuple[int, int]:
    depth = np.asarray(distance_transform_edt(np.pad(mask, 1)))[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), mask.shape)
    return int(y), int(x)


def _any_pixel(mask: NDArray[np.bool_], random: np.random.Generator) -> tuple[int, int]:
    y, x = np.nonzero(mask)
    pick = int(random.integers(len(y)))
    return int(y[pick]), int(x[pick])
