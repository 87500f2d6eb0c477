"""Quantisation of boundary maps to 256 levels, the form that every flood works on."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["quantize"]


def quantize(boundary_map: ArrayLike) -> NDArray[np.uint8]:
    """Quantise a boundary probability map to 256 levels.

    Parameters
    ----------
    boundary_map : (H, W) array of uint8, or of floats in [0, 1]
        Level ``v`` stands for the probability ``v / 255``. Floats are rounded to the nearest level.

    Returns
    -------
    (H, W) uint8
        C-contiguous; the input itself where it is such an array already.

    Raises
    ------
    ValueError
        Wrong shape, dtype or range, no pixel at all, or NaN.

    Examples
    --------
    >>> quantize([[0.0, 0.5, 1.0]])
    array([[  0, 128, 255]], dtype=uint8)
    """
    array = np.asarray(boundary_map)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(
            f"boundary map of shape {array.shape}: expected (H, W) with at least one pixel; "
            "pass one map at a time, without a batch or channel axis"
        )
    if array.dtype == np.uint8:
        # The compiled code is specialised for writable arrays; a copy costs less than compiling.
        return np.require(array, requirements=["C", "W"])
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"boundary map of dtype {array.dtype}: expected uint8 (0 to 255) or floats in [0, 1]; "
            "convert integers with map.astype(np.uint8), masks with mask.astype(np.float32)"
        )
    lowest, highest = float(array.min()), float(array.max())
    if np.isnan(lowest):
        count = int(np.isnan(array).sum())
        raise ValueError(f"boundary map holds NaN at {count} pixels: expected floats in [0, 1]")
    if lowest < 0 or highest > 1:
        raise ValueError(
            f"boundary map ranges from {lowest:g} to {highest:g}: expected floats in [0, 1]; "
            "apply a sigmoid to logits, or divide 0..255 by 255"
        )
    # float16 cannot hold every level plus a half.
    return np.ascontiguousarray(np.rint(array.astype(np.float32, copy=False) * 255), np.uint8)
