"""Masks as COCO's files write them: polygons, run lengths, compressed run lengths, label maps.

Polygons are filled by pycocotools, so that masks are those of COCO's benchmarks. It is C that
trusts its input: whatever could make it read or write where it must not is refused before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtok_data.errors import ConfigError
from subtok_data.segment.masks.rle import encode_mask
from subtok_data.segment.masks.spans import find_spans, join_spans, unite_spans

__all__ = ["decode_counts", "label_runs", "segmentation_runs"]

_MAX_PIXELS = 1 << 31
"""Run lengths are int32."""

_MAX_FILLED = 1 << 26
"""Pixels of an image whose polygons are filled. pycocotools writes a run in six characters at most;
four runs of a larger image could need more, and it would write beyond its memory."""

_MAX_OUTLINE = 1 << 22
"""Pixels that a polygon's outline may pass. pycocotools allocates some 80 bytes for each, and does
not look whether it got them; the outline of an image of 100 megapixels passes 40,000."""


def decode_counts(text: str | bytes) -> NDArray[np.int64]:
    """Decode COCO's compressed ``counts`` string (5 bits a character, differences) to run lengths.

    Not by pycocotools, which gives pixels only, and reads beyond the end of a damaged string.

    Parameters
    ----------
    text : str or bytes
        As in COCO's files, or as ``pycocotools.mask.encode`` gives it.

    Returns
    -------
    (R,) int64
        Unchecked: those of a damaged string may be negative, or sum to anything.

    Raises
    ------
    ConfigError
        The string ends within a number, or has characters or numbers outside the code.

    Examples
    --------
    >>> decode_counts("021").tolist()
    [0, 2, 1]
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    codes = np.frombuffer(data, np.uint8).astype(np.int64) - ord("0")
    if len(codes) == 0:
        return codes
    foreign = (codes < 0) | (codes >= 64)
    if foreign.any():
        character = chr(data[int(foreign.argmax())])
        raise ConfigError(f"character {character!r} does not occur in COCO run lengths")
    if codes[-1] & 32:
        raise ConfigError("COCO run lengths end within a number")
    ends = np.flatnonzero(codes & 32 == 0) + 1
    first = np.concatenate([[0], ends[:-1]])
    lengths = ends - first
    if lengths.max() > 7:  # 35 bits
        raise ConfigError("COCO run lengths beyond any image")
    shifts = 5 * (np.arange(len(codes)) - np.repeat(first, lengths))
    runs = np.add.reduceat((codes & 31) << shifts, first)
    runs -= np.where(codes[ends - 1] & 16, 1 << 5 * lengths, 0)
    # From the fourth on, a run is written as the difference to the last but one.
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def segmentation_runs(segmentation: Any, size: tuple[int, int]) -> NDArray[np.int32]:
    """Read one mask, whatever it is written as, to run lengths.

    Parameters
    ----------
    segmentation : mapping, sequence or array
        ``{"size": [h, w], "counts": runs or string}``; polygons ``[[x0, y0, x1, y1, …], …]`` in
        pixels, whose union is the mask; or the mask itself, (H, W) of bool or of 0 and 1.
    size : (H, W)
        Of the image, px.

    Returns
    -------
    (R,) int32
        Column by column, the outside first; they sum to H · W.

    Raises
    ------
    ConfigError
        The size differs from the image's or is none, runs do not fill it, a polygon has fewer than
        three points, a value that is no number, or reaches millions of pixels far; or polygons in
        an image of 2²⁶ pixels or more.

    Examples
    --------
    >>> segmentation_runs([[0, 0, 1, 0, 1, 2, 0, 2]], (2, 2)).tolist()
    [0, 2, 2]
    >>> segmentation_runs({"size": [2, 2], "counts": [0, 2, 2]}, (2, 2)).tolist()
    [0, 2, 2]
    """
    if min(size) < 1 or size[0] * size[1] >= _MAX_PIXELS:
        raise ConfigError(
            f"an image of {size[0]} × {size[1]} pixels (height × width): masks need at least one "
            f"pixel and fewer than {_MAX_PIXELS}"
        )
    if isinstance(segmentation, Mapping):
        return _coded(segmentation, size)
    if isinstance(segmentation, np.ndarray) and segmentation.ndim == 2:
        return _drawn(segmentation, size)
    if isinstance(segmentation, str) or not isinstance(segmentation, (Sequence, np.ndarray)):
        raise ConfigError(
            f"a mask given as {type(segmentation).__name__}: expected polygons, run lengths, or an "
            "array"
        )
    if len(segmentation) == size[0] and all(np.size(row) == size[1] for row in segmentation):
        return _drawn(np.asarray(segmentation), size)  # an array that came as lists
    return _filled(segmentation, size)


def label_runs(labels: NDArray[Any], wanted: Sequence[int]) -> list[NDArray[np.int32]]:
    """Encode several labels of a map as run lengths, in one pass over its pixels.

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
    try:
        height, width = (int(side) for side in values["size"])
    except (TypeError, ValueError) as error:
        raise ConfigError(f"'size' is {values['size']!r}: expected (height, width)") from error
    if (height, width) != tuple(size):
        raise ConfigError(f"the mask is {(height, width)}, the image {size} (height, width)")
    counts = values["counts"]
    if isinstance(counts, (str, bytes)):
        runs = decode_counts(counts)
    else:
        try:
            runs = np.asarray(counts)
        except ValueError:  # lists of different lengths
            runs = np.empty(0, np.object_)
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
    """Fill polygons as pycocotools does; the union of all."""
    from pycocotools import mask as library

    height, width = size
    if height * width >= _MAX_FILLED:
        raise ConfigError(
            f"polygons in an image of {height} × {width} pixels (height × width): they are filled "
            f"below {_MAX_FILLED} pixels only; give run lengths, or scale image and polygons"
        )
    if len(polygons) and isinstance(polygons[0], (int, float, np.number)):
        polygons = [polygons]  # one polygon without the outer list
    corners = [_corners(points, number) for number, points in enumerate(polygons)]
    # One by one: to merge them, it would allocate 4 bytes a pixel.
    filled: list[Any] = [
        decode_counts(library.frPyObjects([one.tolist()], height, width)[0]["counts"])
        for one in corners
    ]
    if len(filled) == 1:
        return filled[0].astype(np.int32)
    counts = np.concatenate([np.zeros(0, np.int64), *filled]).astype(np.int32)
    offsets = np.cumsum([0, *(len(one) for one in filled)], dtype=np.int64)
    _, starts, ends = find_spans(counts, offsets)
    return join_spans(unite_spans(starts, ends), 1, height * width)[0]


def _corners(points: Any, number: int) -> NDArray[np.float64]:
    """Check a polygon; (2 K,) x, y, x, y, …."""
    if isinstance(points, str) or not isinstance(points, (Sequence, np.ndarray)):
        raise ConfigError(f"polygon {number} is not a list of numbers: {points!r}")
    if len(points) < 6 or len(points) % 2:
        raise ConfigError(
            f"polygon {number} has {len(points)} numbers; it needs x, y of 3 points or more"
        )
    try:
        corners = np.asarray(points, np.float64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"polygon {number} is not a list of numbers: {error}") from error
    if len(corners) * 2 != len(points):
        raise ConfigError(f"polygon {number} is not a list of numbers, but of lists")
    if not np.isfinite(corners).all():
        raise ConfigError(f"polygon {number} has NaN or infinite values")
    farthest = float(np.abs(corners).max())
    if farthest > _MAX_OUTLINE:
        raise ConfigError(
            f"polygon {number} reaches the coordinate {farthest:.6g}: at most {_MAX_OUTLINE} "
            "can be filled; are they pixels?"
        )
    outline = (np.abs(corners - np.roll(corners, -1, axis=0)).max(axis=1) + 1).sum()
    if outline > _MAX_OUTLINE:
        raise ConfigError(
            f"the outline of polygon {number} passes {outline:.0f} pixels: at most {_MAX_OUTLINE} "
            "can be filled; are its points in order, and pixels?"
        )
    return corners.ravel()
