"""Geometry of tokens, in pixels, and their order in the sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from subtok_data.arguments import check_choice, check_count
from subtok_data.errors import ConfigError
from subtok_data.segment.partition import Partition, TokenMap, token_dtype

__all__ = [
    "Order",
    "Segmented",
    "TokenGeometry",
    "arrange",
    "check_labels",
    "check_order",
    "label_image",
    "measure",
    "order_tokens",
    "token_shapes",
]

Order = Literal["area", "raster"]


@dataclass(frozen=True, eq=False)
class TokenGeometry:
    """Area, box, center and first pixel of the tokens of one image.

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
        """Return the geometry of some tokens, in the order given.

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
    """Measure area, box, center and first pixel of every token, in one pass over the map.

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
    from subtok_data.segment.kernels import measure_tokens

    areas = np.zeros(num_tokens, np.int64)
    boxes = np.zeros((num_tokens, 4), np.int32)
    sums = np.zeros((num_tokens, 2), np.int64)
    first = np.zeros(num_tokens, np.int64)
    within = measure_tokens(_readable(token_map), areas, boxes, sums, first)
    check_labels(token_map, areas, within)
    centers = (sums / (2 * areas[:, None])).astype(np.float32)
    return TokenGeometry(areas, boxes, centers, first)


def check_labels(token_map: TokenMap, areas: NDArray[np.int64], within: bool) -> None:
    """Raise ValueError unless all labels are ``within`` 0..N-1, and each of the N has a pixel."""
    num_tokens = len(areas)
    if not within:
        raise ValueError(
            f"token map holds label {int(token_map.max())}: expected 0..{num_tokens - 1} "
            f"for {num_tokens} tokens, and -1 outside"
        )
    if not areas.all():
        raise ValueError(
            f"token {int(np.argmin(areas))} of {num_tokens} has no pixel: labels must be "
            "consecutive"
        )


def label_image(
    token_map: TokenMap, num_tokens: int, size: tuple[int, int] | None = None
) -> NDArray[np.int32]:
    """Number tokens from 1, and bring their map to another size.

    Parameters
    ----------
    token_map : (H, W) int16 or int32
        0..N-1; −1 where there is no token.
    num_tokens : int
        N.
    size : (int, int), optional
        Height and width of the result in pixels; by default those of the map. Each pixel has the
        label of the pixel under its centre.

    Returns
    -------
    (H, W) int32
        Token k is label k + 1, and 0 is no token.

    Raises
    ------
    ConfigError
        If a token would have no pixel at that size.

    Examples
    --------
    >>> label_image(np.array([[0, 1]], np.int16), 2, (1, 4)).tolist()
    [[1, 1, 2, 2]]
    """
    labels = token_map.astype(np.int32) + 1
    if size is None or tuple(size) == labels.shape:
        return labels
    for side in size:
        check_count("each side of size", side, optional=False, unit="pixels")
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new)
        for old, new in zip(labels.shape, size, strict=True)
    )
    resized = labels[rows[:, None], columns]
    lost = num_tokens - len(np.unique(resized[resized > 0]))
    if lost:
        raise ConfigError(
            f"{lost} of {num_tokens} tokens have no pixel at {tuple(size)}: give a larger "
            "size, or make fewer tokens (num_tokens, min_area)"
        )
    return resized


def token_shapes(token_map: TokenMap, boxes: NDArray[np.int32], side: int) -> NDArray[np.bool_]:
    """Sample each token's region inside its box on a small square grid.

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
    from subtok_data.segment.kernels import sample_shapes

    if side < 1:
        raise ValueError(f"side={side}: the shape of a token needs at least 1 x 1 cells")
    shapes = np.empty((len(boxes), side, side), np.bool_)
    boxes = np.require(boxes, np.int32, ["C", "W"])
    sample_shapes(_readable(token_map), boxes, shapes)
    return shapes


def check_order(order: str) -> None:
    """Raise ConfigError unless an order is known."""
    check_choice("order", order, get_args(Order))


def order_tokens(geometry: TokenGeometry, order: Order = "area") -> NDArray[np.int64]:
    """Sort tokens by area or by position; ties go by the raster position of their first pixels.

    Parameters
    ----------
    geometry : TokenGeometry
        Of N tokens.
    order : {"area", "raster"}
        ``"area"``: largest first, as in the paper (EPOC, section 3). ``"raster"``: by the center,
        top to bottom, then left to right.

    Returns
    -------
    (N,) int64
        Token numbers in their new order.

    Raises
    ------
    ConfigError
        Unknown order.

    Examples
    --------
    >>> from subtok_data.segment import measure
    >>> order_tokens(measure(np.array([[0, 1, 1]], np.int16), 2), "area")
    array([1, 0])
    """
    check_order(order)
    if order == "area":
        return np.lexsort((geometry.first_pixels, -geometry.areas))
    y, x = geometry.centers.T
    return np.lexsort((geometry.first_pixels, x, y))


@dataclass(frozen=True, eq=False)
class Segmented:
    """Tokens of one image, numbered in the order of their sequence.

    Parameters
    ----------
    token_map : (H, W) int16, int32 above 32,767 tokens
        Token of each pixel; −1 only where ``overflow="drop"`` left pixels without a token.
    num_tokens : int
        N, at least 1.
    geometry : TokenGeometry
        Of the N tokens.
    token_fields : mapping of str to (N, ...) array
        Values per token.
    shapes : (N, r, r) bool, optional
        Each token's region, cropped to its box.
    shortfall : int
        Tokens fewer than the exact number of the budget, because the image gave no more.
    prompt_tokens : (P,) int64, optional
        Best token for each prompt, where there are prompts
        (:func:`~subtok_data.segment.match_regions`).
    """

    token_map: TokenMap
    num_tokens: int
    geometry: TokenGeometry
    token_fields: Mapping[str, NDArray[Any]]
    shapes: NDArray[np.bool_] | None = None
    shortfall: int = 0
    prompt_tokens: NDArray[np.int64] | None = None


def arrange(
    partition: Partition,
    order: Order = "area",
    *,
    shape_size: int | None = None,
    overwrite: bool = False,
) -> Segmented:
    """Measure the tokens of a partition and number them in an order.

    Parameters
    ----------
    partition : Partition
        Any.
    order : {"area", "raster"}
        See :func:`~subtok_data.segment.geometry.order_tokens`.
    shape_size : int, optional
        r, to sample the shapes too.
    overwrite : bool
        Renumber the tokens in ``partition.token_map`` itself, which saves memory.

    Returns
    -------
    Segmented
        Of the same tokens.

    Examples
    --------
    >>> arrange(Partition(np.array([[0, 1, 1]], np.int16), 2)).token_map
    array([[1, 0, 0]], dtype=int16)
    """
    from subtok_data.segment.kernels import relabel

    raw = measure(partition.token_map, partition.num_tokens)
    tokens = order_tokens(raw, order)
    labels = np.empty_like(tokens)
    labels[tokens] = np.arange(len(tokens))
    source = _readable(partition.token_map)
    dtype = token_dtype(partition.num_tokens)
    token_map: TokenMap = source
    if not overwrite or source.dtype != dtype:
        token_map = np.empty(source.shape, dtype)
    relabel(source, labels, token_map)
    geometry = raw.take(tokens)
    return Segmented(
        token_map,
        partition.num_tokens,
        geometry,
        {name: values[tokens] for name, values in partition.token_fields.items()},
        None if shape_size is None else token_shapes(token_map, geometry.boxes, shape_size),
    )


def _readable(token_map: TokenMap) -> TokenMap:
    # The compiled code is specialised for contiguous, writable arrays.
    return np.require(token_map, requirements=["C", "W"])
