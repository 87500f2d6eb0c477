"""Cleaning of masks: small holes, small islands, and the duplicates that result."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtok_data.segment.masks.rle import RLEMasks, encode_mask, mask_box

__all__ = ["clean_mask", "clean_masks", "suppress_boxes"]


def clean_masks(masks: RLEMasks, min_area: int, overlap: float = 0.7) -> RLEMasks:
    """Fill small holes, remove small islands, then suppress duplicates.

    The last step of SAM's automatic mask generation: of masks whose boxes overlap more than
    ``overlap``, those that cleaning has not changed win, then those that come first.

    Parameters
    ----------
    masks : RLEMasks
        Best first.
    min_area : int
        Holes and islands of fewer pixels go; 8-connected. 0 leaves the masks as they are.
    overlap : float
        IoU of boxes above which one of two goes.

    Returns
    -------
    RLEMasks
        Unchanged masks first.

    Examples
    --------
    >>> ring = np.ones((3, 3), bool)
    >>> ring[1, 1] = False
    >>> clean_masks(RLEMasks.from_masks([ring]), 2).areas.tolist()
    [9]
    """
    if min_area <= 0 or len(masks) == 0:
        return masks
    runs: list[NDArray[np.int32]] = []
    boxes = np.zeros((len(masks), 4))
    unchanged = np.zeros(len(masks))
    for index in range(len(masks)):
        mask = masks.mask(index)
        cleaned = clean_mask(mask, min_area)
        unchanged[index] = cleaned is mask
        x0, y0, x1, y1 = mask_box(cleaned)
        boxes[index] = (x0, y0, max(x1 - 1, 0), max(y1 - 1, 0))  # first and last pixels, as SAM's
        begin, end = masks.offsets[index : index + 2]
        runs.append(masks.counts[begin:end] if cleaned is mask else encode_mask(cleaned))
    kept = suppress_boxes(boxes, unchanged, overlap)
    return RLEMasks.from_runs(
        [runs[i] for i in kept],
        masks.size,
        masks.scores[kept],
        {name: values[kept] for name, values in masks.fields.items()},
    )


def clean_mask(mask: NDArray[np.bool_], min_area: int) -> NDArray[np.bool_]:
    """Fill holes and remove islands of fewer than ``min_area`` pixels (8-connected).

    Parameters
    ----------
    mask : (H, W) bool
    min_area : int

    Returns
    -------
    (H, W) bool
        The very mask where nothing is small. If all islands are small, the largest stays.

    Examples
    --------
    >>> clean_mask(np.array([[1, 0, 1, 1, 1]], bool), 2).astype(int)
    array([[1, 1, 1, 1, 1]])
    """
    x0, y0, x1, y1 = mask_box(mask)
    if x0 == x1:
        return mask
    # A margin so wide holds min_area pixels or more, so what reaches it is not small.
    margin = int(np.ceil(np.sqrt(min_area)))
    if min(mask.shape) < margin:
        margin = max(mask.shape)
    window = (
        slice(max(y0 - margin, 0), y1 + margin),
        slice(max(x0 - margin, 0), x1 + margin),
    )
    part = mask[window]
    holes, sizes = _components(~part)
    small = np.flatnonzero(sizes < min_area) + 1
    filled = part | np.isin(holes, small) if small.size else part
    islands, sizes = _components(filled)
    gone = sizes < min_area
    if not small.size and not gone.any():
        return mask
    if gone.all():
        gone[sizes.argmax()] = False
    cleaned = mask.copy()
    cleaned[window] = filled & ~np.isin(islands, np.flatnonzero(gone) + 1)
    return cleaned


def _components(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    from scipy.ndimage import label

    labels: Any = np.empty(mask.shape, np.int32)
    label(mask, np.ones((3, 3)), output=labels)
    return labels, np.bincount(labels.ravel(), minlength=1)[1:]


def suppress_boxes(boxes: NDArray[Any], scores: NDArray[Any], overlap: float) -> NDArray[np.int64]:
    """Select boxes by greedy non-maximum suppression.

    Parameters
    ----------
    boxes : (M, 4) array
        x0, y0, x1, y1.
    scores : (M,) array
        Of equal scores, the earlier box wins.
    overlap : float
        IoU above which the lower of two boxes goes.

    Returns
    -------
    (K,) int64
        Boxes that stay, best first.

    Examples
    --------
    >>> suppress_boxes(np.array([[0, 0, 4, 4], [0, 0, 4, 5], [6, 6, 9, 9]]), np.ones(3), 0.7)
    array([0, 2])
    """
    order = np.argsort(-scores, kind="stable")
    x0, y0, x1, y1 = boxes.astype(np.float64)[order].T
    areas = (x1 - x0) * (y1 - y0)
    left = np.ones(len(order), bool)
    for i in range(len(order)):
        if left[i]:
            across = np.minimum(x1[i], x1[i + 1 :]) - np.maximum(x0[i], x0[i + 1 :])
            down = np.minimum(y1[i], y1[i + 1 :]) - np.maximum(y0[i], y0[i + 1 :])
            shared = np.maximum(across, 0) * np.maximum(down, 0)
            union = areas[i] + areas[i + 1 :] - shared
            # Divided, as torchvision does: 0.7 * 90 is below 63, and an IoU of 0.7 not above 0.7.
            left[i + 1 :] &= shared / np.where(union > 0, union, 1) <= overlap
    return order[left].astype(np.int64)
