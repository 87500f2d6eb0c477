"""Area, box, center and shape of tokens, in pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtok_data.segment.partition import TokenMap

__all__ = ["TokenGeometry", "measure", "picture_size", "token_shapes"]


def picture_size(array: NDArray[Any]) -> tuple[int, int]:
    """Height and width of a picture or a map, whatever its channels.

    Examples
    --------
    >>> picture_size(np.zeros((4, 6, 3), np.uint8))
    (4, 6)
    """
    return array.shape[0], array.shape[1]


@dataclass(frozen=True, eq=False)
class TokenGeometry:
    """Where the tokens of one picture are.

    Parameters
    ----------
    areas : (N,) int64
        Pixels per token, at least 1.
    boxes : (N, 4) int32
        x0, y0, x1, y1 in pixels, half-open.
    centers : (N, 2) float32
        Mean (y, x) of a token's pixels, where pixel (0, 0) has its center at (0.5, 0.5).
    first_pixels : (N,) int64
        Raster index ``y * W + x`` of each token's first pixel.
    """

    areas: NDArray[np.int64]
    boxes: NDArray[np.int32]
    centers: NDArray[np.float32]
    first_pixels: NDArray[np.int64]

    def take(self, tokens: NDArray[np.int64]) -> TokenGeometry:
        """Geometry of some tokens, in the order asked.

        Parameters
        ----------
        tokens : (K,) int64
            Token numbers.

        Returns
        -------
        TokenGeometry
            Of K tokens.
        """
        return TokenGeometry(
            self.areas[tokens], self.boxes[tokens], self.centers[tokens], self.first_pixels[tokens]
        )


def measure(token_map: TokenMap, num_tokens: int) -> TokenGeometry:
    """Measure all tokens in one pass over the map.

    Parameters
    ----------
    token_map : (H, W) int16 or int32
        0..num_tokens-1; −1 where there is no token.
    num_tokens : int
        Number of tokens; each must have a pixel.

    Returns
    -------
    TokenGeometry
        Sums are exact integers, so the result does not depend on the order of the pixels.

    Raises
    ------
    ValueError
        A label of ``num_tokens`` or more, or a token without a pixel.

    Examples
    --------
    >>> geometry = measure(np.array([[0, 1, 1]], np.int16), 2)
    >>> geometry.areas, geometry.boxes[1], geometry.centers[1]
    (array([1, 2]), array([1, 0, 3, 1], dtype=int32), array([0.5, 2. ], dtype=float32))
    """
    from subtok_data.segment.kernels.tokens import measure_tokens

    areas = np.zeros(num_tokens, np.int64)
    boxes = np.zeros((num_tokens, 4), np.int32)
    sums = np.zeros((num_tokens, 2), np.int64)
    first = np.zeros(num_tokens, np.int64)
    if not measure_tokens(_readable(token_map), areas, boxes, sums, first):
        raise ValueError(
            f"token map holds label {int(token_map.max())}: expected 0..{num_tokens - 1} "
            f"for {num_tokens} tokens, and -1 outside"
        )
    if not areas.all():
        raise ValueError(
            f"token {int(np.argmin(areas))} of {num_tokens} has no pixel: labels must be "
            "consecutive"
        )
    centers = (sums / (2 * areas[:, None])).astype(np.float32)
    return TokenGeometry(areas, boxes, centers, first)


def token_shapes(token_map: TokenMap, boxes: NDArray[np.int32], side: int) -> NDArray[np.bool_]:
    """Each token's region, cropped to its box and sampled to a small square.

    Parameters
    ----------
    token_map : (H, W) int16 or int32
        0..N-1.
    boxes : (N, 4) int32
        x0, y0, x1, y1 in pixels, half-open, as :func:`measure` gives them.
    side : int
        r, at least 1.

    Returns
    -------
    (N, r, r) bool
        Nearest pixel at the center of each cell. Where a thin token lies between all samples, the
        cell of its first pixel is set, so no token comes out empty.

    Raises
    ------
    ValueError
        ``side`` below 1.

    Examples
    --------
    >>> token_map = np.array([[0, 0], [0, 1]], np.int16)
    >>> token_shapes(token_map, measure(token_map, 2).boxes, 2)[0]
    array([[ True,  True],
           [ True, False]])
    """
    from subtok_data.segment.kernels.tokens import sample_shapes

    if side < 1:
        raise ValueError(f"side={side}: the shape of a token needs at least 1 x 1 cells")
    shapes = np.empty((len(boxes), side, side), np.bool_)
    boxes = np.require(boxes, np.int32, ["C", "W"])
    sample_shapes(_readable(token_map), boxes, shapes)
    return shapes


def _readable(token_map: TokenMap) -> TokenMap:
    # The compiled code is specialised for contiguous, writable arrays.
    return np.require(token_map, requirements=["C", "W"])
