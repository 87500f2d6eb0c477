"""Flood from seeds by two backends: compiled bucket queues, and scikit-image as the reference."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from subtok_data.arguments import check_choice
from subtok_data.images import image_size
from subtok_data.segment.kernels import borrow
from subtok_data.segment.partition import TokenMap, token_dtype
from subtok_data.segment.watershed.seeds import Seeds

__all__ = ["Backend", "check_backend", "flood_from"]

Backend = Literal["numba", "skimage"]


def check_backend(backend: str) -> None:
    """Raise ConfigError for a backend that is unknown."""
    check_choice("backend", backend, get_args(Backend))


def flood_from(
    quantised: NDArray[np.uint8], seeds: Seeds, backend: Backend = "numba"
) -> tuple[TokenMap, int]:
    """Flood a map from seeds; every pixel gets the label of the seed that reaches it first.

    Pixels are taken by (level, time queued), where a pixel is never taken at a lower level than
    the one it was flooded from; neighbours are queued in the order up, left, right, down. Seed
    pixels of equal level are taken in raster order.

    Parameters
    ----------
    quantised : (H, W) uint8
        Boundary map, 255 for a probability of 1.
    seeds : Seeds
        Where the flood starts. Without any seed the image is one token.
    backend : {"numba", "skimage"}
        Both give the same labels on every pixel.

    Returns
    -------
    token_map : (H, W) int16, int32 above 32,767 seeds
        Labels 0..N-1.
    num_tokens : int
        N, at least 1.

    Examples
    --------
    >>> from subtok_data.segment.watershed.seeds import threshold_seeds
    >>> quantised = np.array([[0, 90, 200, 60, 0]], np.uint8)
    >>> flood_from(quantised, threshold_seeds(quantised, 0.1))
    (array([[0, 0, 1, 1, 1]], dtype=int16), 2)
    """
    dtype = token_dtype(seeds.count)
    if seeds.count <= 1:
        return np.zeros(quantised.shape, dtype), 1
    if backend == "skimage":
        return _flood_skimage(quantised, seeds).astype(dtype), seeds.count

    from subtok_data.segment.kernels import flood_pixels, scratch_slots

    height, width = quantised.shape
    flood_pixels(
        quantised,
        seeds.runs,
        seeds.first_run,
        seeds.labels,
        seeds.imposed,
        borrow("state", (height + 2) * (width + 2), dtype).reshape(height + 2, width + 2),
        borrow("slots", scratch_slots(quantised.size), np.int32),
        token_map := np.empty(quantised.shape, dtype),
    )
    return token_map, seeds.count


def _flood_skimage(quantised: NDArray[np.uint8], seeds: Seeds) -> NDArray[np.int32]:
    from skimage.segmentation import watershed

    markers = seeds.paint(image_size(quantised)) + 1
    inside = markers > 0
    # Seeds of one level all have age 0 in scikit-image, and the layout of its heap would choose
    # between them. Fractions that stay below the next level put them in raster order.
    rank = np.arange(np.count_nonzero(inside)) / (np.count_nonzero(inside) + 1)
    heights = quantised.astype(np.float64)
    if seeds.imposed:
        heights += 1
        heights[inside] = 0
    heights[inside] += rank
    return watershed(heights, markers) - np.int32(1)
