"""Boundary labels from any segmentation.

Two forms. *Exact* labels follow the paper (EPOC, arXiv 2402.14327, appendix A): every mask's
dilation minus its erosion with a round kernel, all masks united. *Edge strength* is the soft form:
how sure it is, from several annotators or overlapping masks, that two neighbouring pixels belong
apart. It is thin, so it can be kept for a whole image, and is widened (`widen`) after the image has
been scaled, so that lines are as wide in every crop.

The image frame is never a boundary, in either form.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from subtok_data.errors import ConfigError
from subtok_data.segment import mask_box

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from subtok_data.segment import RLEMasks

__all__ = [
    "boundary_from_labels",
    "boundary_from_masks",
    "edge_strength",
    "edges_of_labels",
    "mean_strength",
    "round_kernel",
    "widen",
]


def round_kernel(diameter: int) -> NDArray[np.bool_]:
    """Make a disk of an odd diameter in pixels.

    Examples
    --------
    >>> round_kernel(5).astype(int).tolist()[0]
    [0, 1, 1, 1, 0]
    """
    if diameter < 1 or diameter % 2 == 0:
        raise ConfigError(f"the kernel's diameter is {diameter}; it must be odd and positive")
    radius = diameter // 2
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    # A quarter pixel more than the radius: a square without its corners at diameter 5.
    return x * x + y * y <= (radius + 0.25) ** 2


def boundary_from_labels(label_map: NDArray[Any], diameter: int = 5) -> NDArray[np.bool_]:
    """Mark the pixels whose disk holds another label: dilation minus erosion of all labels.

    Parameters
    ----------
    label_map : ndarray
        (H, W) integers.
    diameter : int
        Of the disk, pixels, odd. The line is ``diameter - 1`` px wide.

    Returns
    -------
    ndarray
        (H, W) bool.

    Examples
    --------
    >>> boundary_from_labels(np.array([[0, 0, 0, 1, 1, 1]]), 3).astype(int).tolist()
    [[0, 0, 1, 1, 0, 0]]
    """
    _require_plane(label_map, "label_map")
    kernel = round_kernel(diameter)
    # Beyond the frame the edge pixel is repeated: the frame cannot look like another label.
    highest = ndimage.maximum_filter(label_map, footprint=kernel, mode="nearest")
    lowest = ndimage.minimum_filter(label_map, footprint=kernel, mode="nearest")
    return highest != lowest


def boundary_from_masks(masks: Sequence[NDArray[np.bool_]], diameter: int = 5) -> NDArray[np.bool_]:
    """Unite dilation minus erosion of each mask, the paper's label.

    Parameters
    ----------
    masks : sequence of ndarray
        (H, W) bool each, overlapping or not.
    diameter : int
        Of the disk, pixels, odd.

    Returns
    -------
    ndarray
        (H, W) bool.

    Raises
    ------
    ConfigError
        No mask, or masks of different sizes.
    """
    if not masks:
        raise ConfigError("no masks: an image without masks has no label, leave it out")
    union = np.zeros(masks[0].shape, bool)
    for index, mask in enumerate(masks):
        if mask.shape != union.shape:
            raise ConfigError(f"mask {index} is {mask.shape}, the first one is {union.shape}")
        union |= boundary_from_labels(mask.astype(np.uint8), diameter)
    return union


def edges_of_labels(label_map: NDArray[Any]) -> NDArray[np.bool_]:
    """Mark the pixels that have a 4-neighbour of another label, one on either side of an edge.

    Examples
    --------
    >>> edges_of_labels(np.array([[3, 3, 5, 5]])).astype(int).tolist()
    [[0, 1, 1, 0]]
    """
    _require_plane(label_map, "label_map")
    edges = np.zeros(label_map.shape, bool)
    down = label_map[1:] != label_map[:-1]
    right = label_map[:, 1:] != label_map[:, :-1]
    edges[1:] |= down
    edges[:-1] |= down
    edges[:, 1:] |= right
    edges[:, :-1] |= right
    return edges


def mean_strength(edges: Sequence[NDArray[Any]], tolerance: int = 1) -> NDArray[np.uint8]:
    """Compute edge strength as the share of annotators who drew an edge within a tolerance.

    Parameters
    ----------
    edges : sequence of ndarray
        (H, W) bool, one an annotator.
    tolerance : int
        Annotators' lines are `tolerance` px apart at most to count as one.

    Returns
    -------
    ndarray
        (H, W) uint8, 255 = all; positive only where somebody drew.
    """
    if not edges:
        raise ConfigError("no annotators: an image without annotations has no label")
    drawn = np.any(np.stack(list(edges)), axis=0)
    kernel = round_kernel(2 * tolerance + 1)
    votes = sum(ndimage.binary_dilation(one, kernel).astype(np.float32) for one in edges)
    share = np.where(drawn, np.asarray(votes) / len(edges), 0.0)
    return np.rint(share * 255).astype(np.uint8)


def edge_strength(
    masks: RLEMasks,
    *,
    min_quality: float = 0.8,
    size_power: float = 0.25,
    saturation: float = 2.0,
    rim: int = 4,
) -> NDArray[np.uint8]:
    """Compute edge strength from the votes of overlapping masks.

    Each mask votes along its outline; its vote grows with its quality and its size. Where the
    outlines of several masks coincide (an object, the part it ends in, the background behind it)
    the votes add up: strength = 1 − exp(−votes / saturation). A lone small mask counts for little.

    Parameters
    ----------
    masks : RLEMasks
        Masks of one image, scored by predicted IoU, with the field ``stability``.
    min_quality : float
        A mask's quality is predicted IoU · stability^½; below this it has no vote.
    size_power : float
        The vote is (share of the image, or of the rest if smaller) ^ size_power, in relation to a
        mask of a tenth of the image.
    saturation : float
        Votes that make a strength of 0.63.
    rim : int
        Mask pixels nearer to the frame are replaced by the value `rim` px inside: mask models end
        their masks a few pixels before the frame.

    Returns
    -------
    ndarray
        (H, W) uint8, 255 = certain.
    """
    height, width = masks.size
    votes = np.zeros((height, width), np.float32)
    for index in range(len(masks)):
        quality = float(masks.scores[index]) * float(masks.fields["stability"][index]) ** 0.5
        if not quality >= min_quality:
            continue
        mask = extend_to_frame(masks.mask(index), rim)
        share = float(mask.mean())
        share = min(share, 1 - share)
        if share <= 0:
            continue
        x0, y0, x1, y1 = mask_box(mask)
        # A pixel more on each side, so that the outline is whole.
        window = slice(max(0, y0 - 1), y1 + 1), slice(max(0, x0 - 1), x1 + 1)
        votes[window] += edges_of_labels(mask[window]) * ((share / 0.1) ** size_power)
    # Outlines of one edge lie up to a pixel apart; the sum over the 3 x 3 square joins them, and
    # a line of two pixels fills six of its nine cells.
    joined = ndimage.uniform_filter(votes, 3, mode="nearest") * 1.5
    strength = np.where(votes > 0, 1 - np.exp(-joined / saturation), 0.0)
    return np.rint(strength * 255).astype(np.uint8)


def extend_to_frame(mask: NDArray[np.bool_], rim: int) -> NDArray[np.bool_]:
    """Repeat the value `rim` px inside outwards to the frame, on all four sides."""
    height, width = mask.shape
    if rim < 1 or min(height, width) <= 2 * rim:
        return mask
    return np.pad(mask[rim : height - rim, rim : width - rim], rim, mode="edge")


def widen(strength: NDArray[np.uint8], radius: float) -> NDArray[np.uint8]:
    """Dilate grey values with a disk of a radius in pixels.

    Examples
    --------
    >>> widen(np.array([[0, 0, 7, 0, 0]], np.uint8), 1).tolist()
    [[0, 7, 7, 7, 0]]
    """
    reach = int(radius)
    if reach < 1:
        return strength
    y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    kernel = x * x + y * y <= (radius + 0.25) ** 2
    widened: Any = ndimage.grey_dilation(strength, footprint=kernel, mode="constant", cval=0)
    return widened


def _require_plane(array: NDArray[Any], name: str) -> None:
    if array.ndim != 2 or array.size == 0:
        raise ConfigError(f"{name} has shape {array.shape}; a non-empty (H, W) array is needed")
