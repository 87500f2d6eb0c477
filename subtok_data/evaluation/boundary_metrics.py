"""Boundary quality as the Berkeley benchmark defines it: ODS, OIS and AP.

A boundary map is thinned by non-maximum suppression; at each threshold its pixels are matched one
to one with those of every human, at most ``tolerance`` of the image's diagonal apart. A predicted
pixel is right if it has a partner in at least one human's drawing; recall is counted over all
humans (Arbeláez et al., "Contour Detection and Hierarchical Image Segmentation", TPAMI 2011,
section 3.1; Martin et al., TPAMI 2004).

The benchmark's solver also minimises the summed distance among matchings; only the number of
matched pixels enters the figures, so that a maximum matching gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage
from skimage.morphology import skeletonize

from subtok_data.errors import ConfigError
from subtok_data.evaluation.matching import match_boundaries

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "BoundaryCounts",
    "BoundaryScores",
    "canny_map",
    "count_boundaries",
    "score_boundaries",
    "sobel_map",
    "thin_edges",
]

TOLERANCE = 0.0075


@dataclass(frozen=True)
class BoundaryCounts:
    """Matches of one image at every threshold; all arrays (T,) int64.

    Attributes
    ----------
    matched_prediction : ndarray
        Predicted pixels with a partner in at least one annotation.
    predicted : ndarray
        Predicted pixels.
    matched_annotation : ndarray
        Annotated pixels with a partner, summed over annotators.
    annotated : ndarray
        Annotated pixels, summed over annotators.
    """

    matched_prediction: NDArray[np.int64]
    predicted: NDArray[np.int64]
    matched_annotation: NDArray[np.int64]
    annotated: NDArray[np.int64]


@dataclass(frozen=True)
class BoundaryScores:
    """Boundary figures of a data set.

    Attributes
    ----------
    ods, ods_threshold : float
        Best F-measure at one threshold for all images, and that threshold (share of 1).
    ois : float
        F-measure with the best threshold of each image.
    ap : float
        Area under the precision-recall curve.
    thresholds, precision, recall : ndarray
        The curve, (T,) float64.
    """

    ods: float
    ods_threshold: float
    ois: float
    ap: float
    thresholds: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]


def thin_edges(boundary_map: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Thin lines to their crests by non-maximum suppression.

    The direction is the principal curvature of the smoothed map; a pixel stays if it is not more
    than 1 % below both neighbours across the line.

    Parameters
    ----------
    boundary_map : ndarray
        (H, W) uint8.

    Returns
    -------
    ndarray
        (H, W) uint8, 0 where suppressed.

    Examples
    --------
    >>> thin_edges(np.array([[0, 5, 9, 5, 0]] * 5, np.uint8))[2].tolist()
    [0, 0, 9, 0, 0]
    """
    if min(boundary_map.shape) < 2:
        return boundary_map.copy()
    values = boundary_map.astype(np.float32)
    smooth = ndimage.gaussian_filter(values, 2.0, mode="nearest")
    gy, gx = np.gradient(smooth)
    hyy, hyx = np.gradient(gy)
    hxx = np.gradient(gx, axis=1)
    # Of the two principal axes the one of greater absolute curvature crosses the line, on its crest
    # (negative) and at its foot (positive).
    largest = 0.5 * np.arctan2(2 * hyx, hxx - hyy)
    normal = np.where(hxx + hyy > 0, largest, largest + np.pi / 2)
    y, x = np.indices(values.shape, dtype=np.float32)
    dy, dx = np.sin(normal), np.cos(normal)
    keep = values > 0
    for sign in (1, -1):
        beside = ndimage.map_coordinates(
            values, [y + sign * dy, x + sign * dx], order=1, mode="nearest"
        )
        keep &= values * 1.01 >= beside
    return np.where(keep, boundary_map, 0).astype(np.uint8)


def count_boundaries(
    boundary_map: NDArray[np.uint8],
    annotations: Sequence[NDArray[Any]],
    *,
    thresholds: int = 33,
    tolerance: float = TOLERANCE,
    thin: bool = True,
) -> BoundaryCounts:
    """Count one image's matches at evenly spaced thresholds.

    Parameters
    ----------
    boundary_map : ndarray
        (H, W) uint8.
    annotations : sequence of ndarray
        (H, W) bool, one a human: thin boundary lines.
    thresholds : int
        Number of thresholds, k / (thresholds + 1) for k = 1 … The benchmark takes 99.
    tolerance : float
        Greatest distance, as a share of the image's diagonal.
    thin : bool
        Thin by `thin_edges`; False for maps whose lines are thin already.

    Returns
    -------
    BoundaryCounts
        Of this image.
    """
    if not annotations:
        raise ConfigError("no annotations: nothing to compare with")
    crest = thin_edges(boundary_map) if thin else boundary_map
    drawn = [np.asarray(one, bool) for one in annotations]
    reach = tolerance * float(np.hypot(*boundary_map.shape))
    table = np.zeros((4, thresholds), np.int64)
    table[3] = sum(int(one.sum()) for one in drawn)
    before: NDArray[np.bool_] | None = None
    for column, level in enumerate(_thresholds(thresholds)):
        lines = crest >= level * 255
        if before is not None and np.array_equal(lines, before):
            table[:3, column] = table[:3, column - 1]
            continue
        before = lines
        lines = skeletonize(lines)
        right = np.zeros(lines.shape, bool)
        for one in drawn:
            hit, found = match_boundaries(lines, one, reach)
            right |= hit
            table[2, column] += int(found.sum())
        table[0, column] = int(right.sum())
        table[1, column] = int(lines.sum())
    return BoundaryCounts(*table)


def score_boundaries(counts: Sequence[BoundaryCounts]) -> BoundaryScores:
    """Compute ODS, OIS and AP from the counts of all images.

    Raises
    ------
    ConfigError
        No image, or different numbers of thresholds.

    Examples
    --------
    >>> lines = np.zeros((20, 20), np.uint8)
    >>> lines[10] = 255
    >>> score_boundaries([count_boundaries(lines, [lines > 0])]).ods
    1.0
    """
    if not counts:
        raise ConfigError("no images to sum up")
    if len({len(one.predicted) for one in counts}) > 1:
        raise ConfigError("the images were counted at different numbers of thresholds")
    stacked = np.stack(
        [[c.matched_prediction, c.predicted, c.matched_annotation, c.annotated] for c in counts]
    )
    precision, recall = _rates(stacked.sum(0))
    f = _f_measure(precision, recall)
    best = int(f.argmax())
    each = [_f_measure(*_rates(one)).argmax() for one in stacked]
    picked = np.sum([one[:, k] for one, k in zip(stacked, each, strict=True)], axis=0)
    thresholds = _thresholds(stacked.shape[2])
    return BoundaryScores(
        ods=float(f[best]),
        ods_threshold=float(thresholds[best]),
        ois=float(_f_measure(*_rates(picked[:, None]))[0]),
        ap=_average_precision(precision, recall),
        thresholds=thresholds,
        precision=precision,
        recall=recall,
    )


def sobel_map(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Compute the gradient magnitude of the blurred image (σ = 2), of its strongest channel."""
    blurred = ndimage.gaussian_filter(image.astype(np.float32), (2.0, 2.0, 0.0))
    magnitude = np.hypot(ndimage.sobel(blurred, 0), ndimage.sobel(blurred, 1)).max(2)
    return _scaled(magnitude, 410.0)  # a step from black to white


def canny_map(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Compute the highest of 12 thresholds at which Canny still finds an edge in each pixel.

    Smoothing σ = 2, low threshold 0.4 of the high one; so that ODS can choose the threshold.
    """
    from skimage.feature import canny  # slow to import, used by comparisons only

    grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) / 255
    result = np.zeros(grey.shape, np.uint8)
    for level in np.linspace(0.02, 0.5, 12):
        edges = canny(grey, sigma=2.0, low_threshold=0.4 * level, high_threshold=level)
        result[edges] = round(level / 0.5 * 255)
    return result


#: Boundary maps that need no model, by the name that reports use.
BASELINES: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    "sobel": sobel_map,
    "canny": canny_map,
}


def _scaled(values: NDArray[np.float32], top: float) -> NDArray[np.uint8]:
    return np.rint(np.clip(values / top, 0, 1) * 255).astype(np.uint8)


def _thresholds(count: int) -> NDArray[np.float64]:
    if count < 1:
        raise ConfigError(f"{count} thresholds; at least 1 is needed")
    return np.arange(1, count + 1) / (count + 1)


def _rates(table: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute precision and recall of a (4, T) table; precision is 1 where nothing is predicted."""
    hit, predicted, found, annotated = table.astype(np.float64)
    precision = np.where(predicted > 0, hit / np.maximum(predicted, 1), 1.0)
    return precision, found / np.maximum(annotated, 1)


def _f_measure(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> NDArray[np.float64]:
    return 2 * precision * recall / np.maximum(precision + recall, 1e-12)


def _average_precision(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> float:
    """Integrate precision over the range of recall, on a grid of 1 %."""
    order = np.argsort(recall, kind="stable")
    grid = np.arange(0, 1.005, 0.01)
    curve = np.interp(grid, recall[order], precision[order], left=0.0, right=0.0)
    return float(curve.mean() * grid.size / 100)
