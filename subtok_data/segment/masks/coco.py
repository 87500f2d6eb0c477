"""Masks as COCO's files write them: polygons, run lengths, compressed run lengths, label maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtok_data.errors import ConfigError
from subtok_data.segment.masks.rle import encode_mask

__all__ = ["decode_coco_string", "label_runs", "segmentation_runs"]


def decode_coco_string(text: str | bytes) -> NDArray[np.int32]:
    """Run lengths from COCO's compressed ``counts`` string (5 bits a character, differences).

    Raises
    ------
    ConfigError
        The string is cut short, or has characters outside the code.

    Examples
    --------
    >>> decode_coco_string("021").tolist()
    [0, 2, 1]
    """
    data = text.encode("ascii", "replace") if isinstance(text, str) else text
    runs: list[int] = []
    value, shift = 0, 0
    for byte in data:
        code = byte - 48
        if not 0 <= code < 64:
            raise ConfigError(f"character {chr(byte)!r} does not occur in COCO run lengths")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value, shift = 0, 0
    if shift:
        raise ConfigError("COCO run lengths end within a number")
    try:
        return np.array(runs, np.int32)
    except OverflowError as error:
        raise ConfigError("COCO run lengths beyond any picture") from error


def segmentation_runs(
    segmentation: Mapping[str, Any] | Sequence[Any] | NDArray[Any], size: tuple[int, int]
) -> NDArray[np.int32]:
    """Run lengths of one mask, whatever it is written as.

    Parameters
    ----------
    segmentation : mapping, sequence or array
        ``{"size": [h, w], "counts": runs or string}``; polygons ``[[x0, y0, x1, y1, …], …]`` whose
        union is the mask; or the mask itself, (H, W) of bool or of 0 and 1.
    size : (H, W)
        Of the picture, px.

    Returns
    -------
    (R,) int32
        Column by column, the outside first; they sum to H · W.

    Raises
    ------
    ConfigError
        The size differs from the picture's, runs do not fill it, a polygon has fewer than three
        points or a value that is no number.

    Examples
    --------
    >>> segmentation_runs([[0, 0, 1, 0, 1, 2, 0, 2]], (2, 2)).tolist()
    [0, 2, 2]
    >>> segmentation_runs({"size": [2, 2], "counts": [0, 2, 2]}, (2, 2)).tolist()
    [0, 2, 2]
    """
    if isinstance(segmentation, Mapping):
        return _coded(segmentation, size)
    if isinstance(segmentation, np.ndarray) and segmentation.ndim == 2:
        return _drawn(segmentation, size)
    if len(segmentation) == size[0] and all(np.size(row) == size[1] for row in segmentation):
        return _drawn(np.asarray(segmentation), size)  # an array that came as lists
    return _filled(segmentation, size)


def label_runs(labels: NDArray[Any], wanted: Sequence[int]) -> list[NDArray[np.int32]]:
    """Run lengths of several labels of a map, in one pass over its pixels.

    Parameters
    ----------
    labels : (H, W) integers
        Label of each pixel.
    wanted : sequence of int
        Labels to look for; one that does not occur gives an empty mask.

    Returns
    -------
    list of (R,) int32
        As :func:`segmentation_runs`.

    Examples
    --------
    >>> [runs.tolist() for runs in label_runs(np.array([[7, 9], [7, 7]]), [9, 7, 1])]
    [[2, 1, 1], [0, 2, 1, 1], [4]]
    """
    flat = labels.T.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(np.concatenate([starts, [flat.size]]))
    values = flat[starts]
    order = np.argsort(values, kind="stable")
    found = values[order]
    runs: list[NDArray[np.int32]] = []
    for label in wanted:
        own = order[np.searchsorted(found, label) : np.searchsorted(found, label, "right")]
        ends = starts[own] + lengths[own]
        turns = np.stack([starts[own], ends], axis=1).ravel()
        edges = np.concatenate([[0], turns, [flat.size]])
        one = np.diff(edges).astype(np.int32)
        runs.append(one[:-1] if len(own) and one[-1] == 0 else one)
    return runs


def _coded(values: Mapping[str, Any], size: tuple[int, int]) -> NDArray[np.int32]:
    if "counts" not in values or "size" not in values:
        raise ConfigError(f"run lengths need 'size' and 'counts', got {sorted(values)}")
    height, width = (int(side) for side in values["size"])
    if (height, width) != tuple(size):
        raise ConfigError(f"the mask is {(height, width)}, the image {size} (height, width)")
    counts = values["counts"]
    if isinstance(counts, (str, bytes)):
        runs = decode_coco_string(counts)
    else:
        runs = np.asarray(counts)
        if runs.ndim != 1 or runs.dtype.kind not in "iu":
            raise ConfigError("'counts' is neither a string nor a list of whole numbers")
    total = int(runs.sum(dtype=np.int64))
    if total != height * width or (runs.size and runs.min() < 0):
        raise ConfigError(
            f"run lengths add up to {total} pixels, the mask has {height} x {width}"
            if total != height * width
            else f"run lengths below 0: {runs.min()}"
        )
    return runs.astype(np.int32)


def _drawn(mask: NDArray[Any], size: tuple[int, int]) -> NDArray[np.int32]:
    if mask.shape != tuple(size):
        raise ConfigError(f"the mask is {mask.shape}, the image {size} (height, width)")
    if mask.dtype != np.bool_ and not np.isin(mask, (0, 1)).all():
        raise ConfigError("a mask with values other than 0 and 1")
    return encode_mask(mask.astype(np.bool_))


def _filled(polygons: Sequence[Any] | NDArray[Any], size: tuple[int, int]) -> NDArray[np.int32]:
    """Pixels whose centre lies in a polygon, by the even-odd rule; the union of all polygons."""
    if len(polygons) and np.isscalar(polygons[0]):
        polygons = [polygons]  # one polygon without the outer list
    height, width = size
    # How many polygons begin (+1) and end (-1) at each place of each column, from top to bottom.
    steps = np.zeros((width, height + 1), np.int16)
    for number, points in enumerate(polygons):
        columns, begins, ends = _spans(_corners(points, number), size)
        np.add.at(steps, (columns, begins), 1)
        np.add.at(steps, (columns, ends), -1)
    inside = np.cumsum(steps[:, :-1], axis=1, dtype=np.int16) > 0
    return encode_mask(inside.T)


def _corners(points: Any, number: int) -> NDArray[np.float64]:
    if len(points) < 6 or len(points) % 2:
        raise ConfigError(
            f"polygon {number} has {len(points)} numbers; it needs x, y of 3 points or more"
        )
    try:
        corners = np.asarray(points, np.float64).reshape(-1, 2)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"polygon {number} is not a list of numbers: {error}") from error
    if not np.isfinite(corners).all():
        raise ConfigError(f"polygon {number} has NaN or infinite values")
    return corners


def _spans(
    corners: NDArray[np.float64], size: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Where a polygon covers pixel centres: columns, first rows, and rows after the last.

    Every edge is cut by the middle of every column that it passes; in a column, the cuts from top
    to bottom are beginnings and ends in turn. Work is proportional to the outline, not the area.
    """
    height, width = size
    ahead = np.roll(corners, -1, axis=0)
    low = np.minimum(corners[:, 0], ahead[:, 0])
    high = np.maximum(corners[:, 0], ahead[:, 0])
    first = np.clip(np.ceil(low - 0.5), 0, width).astype(np.int64)
    passed = np.clip(np.ceil(high - 0.5), 0, width).astype(np.int64) - first
    edges = np.repeat(np.arange(len(corners)), passed)
    columns = np.arange(len(edges)) - np.repeat(np.cumsum(passed) - passed, passed) + first[edges]
    here, there = corners[edges], ahead[edges]
    share = (columns + 0.5 - here[:, 0]) / (there[:, 0] - here[:, 0])
    cuts = here[:, 1] + share * (there[:, 1] - here[:, 1])
    order = np.lexsort((cuts, columns))
    rows = np.clip(np.ceil(cuts[order] - 0.5), 0, height).astype(np.int64)
    return columns[order][::2], rows[::2], rows[1::2]
