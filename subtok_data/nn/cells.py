"""Which part of each feature cell belongs to each token, and the mean that follows from it.

A feature map is coarser (or finer) than the token map, so a token covers cells only in part. Along
one axis the borders of map pixels and of cells divide the image into short intervals, each inside
one pixel and one cell. The product of the intervals of both axes are rectangles of one token and
one cell; their areas, summed per (token, cell) pair, are the weights of an exact mean. The pairs
are few (cells plus what lies on token borders), so nothing of size tokens x pixels is ever made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from subtok_data.nn.intervals import area_intervals, bilinear_intervals, cell_size

__all__ = ["TokenCells", "pool_tokens", "token_cells"]

Sampling = Literal["area", "bilinear"]
AxisIntervals = tuple[Tensor, Tensor, Tensor]
"""Map pixel, cell and weight of each interval along one axis."""

# Rectangles at most per step: bounds the working memory on large maps (8 bytes x 4 arrays each).
_STEP = 1 << 22

# Below this many (token, cell) slots per rectangle a histogram is cheaper than sorting the pairs.
_SLOTS_PER_RECTANGLE = 8


@dataclass(frozen=True)
class TokenCells:
    """Sparse matrix of the share that each feature cell has in each token.

    Attributes
    ----------
    token : Tensor
        (K,) int64; row of the token among all tokens of the batch, image after image.
    cell : Tensor
        (K,) int64; index of the cell in the flattened (I, h, w) feature map.
    weight : Tensor
        (K,) float32 in (0, 1]; the weights of a token sum to 1.
    num_tokens : int
        Tokens of the batch, T.
    feature_shape : tuple of int
        (I, h, w) of the feature map it was made for.
    """

    token: Tensor
    cell: Tensor
    weight: Tensor
    num_tokens: int
    feature_shape: tuple[int, int, int]


def _pairs_of_image(
    token_map: Tensor,
    rows: AxisIntervals,
    columns: AxisIntervals,
    num_tokens: int,
    cells: tuple[int, int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs (token, cell) of one image and their summed areas, float64."""
    row_pixel, row_cell, row_length = rows
    column_pixel, column_cell, column_length = columns
    slots = num_tokens * cells[0] * cells[1]
    dense = slots <= _SLOTS_PER_RECTANGLE * row_pixel.numel() * column_pixel.numel()
    total = row_length.new_zeros(slots) if dense else None
    keys: list[Tensor] = []
    areas: list[Tensor] = []
    step = max(1, _STEP // column_pixel.numel())
    for first in range(0, row_pixel.numel(), step):
        part = slice(first, first + step)
        token = token_map[row_pixel[part]][:, column_pixel].long()
        cell = row_cell[part, None] * cells[1] + column_cell
        area = row_length[part, None] * column_length
        inside = token >= 0
        key = (token * (cells[0] * cells[1]) + cell)[inside]
        if total is not None:
            total += torch.bincount(key, weights=area[inside], minlength=slots)
            continue
        unique, place = key.unique(return_inverse=True)
        keys.append(unique)
        areas.append(torch.bincount(place, weights=area[inside], minlength=unique.numel()))
    if total is not None:
        key = total.nonzero().squeeze(1)
        area = total[key]
    else:
        key, place = torch.cat(keys).unique(return_inverse=True)
        area = torch.bincount(place, weights=torch.cat(areas), minlength=key.numel())
        key, area = key[area > 0], area[area > 0]
    per_token = cells[0] * cells[1]
    return key // per_token, key % per_token, area


def _shares_in_image(
    token_map: Tensor,
    rows: AxisIntervals,
    columns: AxisIntervals,
    num_tokens: int,
    cells: tuple[int, int],
    image: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs (token, cell) of one image and the share of the cell in the token, float32."""
    highest = int(token_map.max())
    if highest >= num_tokens:
        raise ValueError(
            f"visual_token_map of image {image} holds token {highest}, but num_visual_tokens "
            f"is {num_tokens}: indices must be in 0..{num_tokens - 1}"
        )
    token, cell, area = _pairs_of_image(token_map, rows, columns, num_tokens, cells)
    total = torch.bincount(token, weights=area, minlength=num_tokens)
    if not bool((total > 0).all()):
        missing = int((total <= 0).nonzero()[0])
        raise ValueError(
            f"token {missing} of image {image} has no pixel in visual_token_map, which must "
            f"hold every index in 0..{num_tokens - 1}"
        )
    return token, cell, (area / total[token]).float()


@torch.no_grad()
def token_cells(
    visual_token_map: Tensor,
    num_visual_tokens: Sequence[int],
    feature_size: tuple[int, int],
    *,
    pixel_size: tuple[int, int],
    map_sizes: Sequence[Sequence[int]] | None = None,
    valid_sizes: Sequence[Sequence[int]] | None = None,
    stride: int | None = None,
    sampling: Sampling = "area",
) -> TokenCells:
    """Compute the share of every feature cell in every token of a batch.

    Parameters
    ----------
    visual_token_map : Tensor
        (I, Hs, Ws) integer; token of each pixel, -1 outside the image.
    num_visual_tokens : sequence of int
        (I,) tokens of each image, n >= 1.
    feature_size : tuple of int
        (h, w) cells of the feature map.
    pixel_size : tuple of int
        (H, W) pixels of the encoder input, padding included.
    map_sizes, valid_sizes : sequence of (int, int), optional
        Extent (h, w) of the image inside the map and inside the encoder input; the whole of
        them when absent.
    stride : int, optional
        Pixels per cell. By default the cells divide the encoder input evenly, which must then be
        possible; an encoder that drops the last pixels (patches of 14 on 512) needs its patch size.
    sampling : {"area", "bilinear"}
        ``"area"``: cells are constant, tokens weigh them by covered area. ``"bilinear"``: the mean,
        over the map's pixels, of features interpolated between cell centres.

    Returns
    -------
    TokenCells
        On the device of ``visual_token_map``.

    Raises
    ------
    ConfigError
        When the cells do not divide the encoder input and no ``stride`` is given, or the one given
        does not fit.
    ValueError
        When a token has no pixel, or the map holds an index beyond ``num_visual_tokens``.

    Examples
    --------
    >>> token_map = torch.tensor([[[0, 0, 0, 1], [0, 0, 0, 1]]])
    >>> cells = token_cells(token_map, [2], (1, 2), pixel_size=(2, 4))
    >>> cells.token.tolist(), cells.cell.tolist()
    ([0, 0, 1], [0, 1, 1])
    >>> [round(w, 3) for w in cells.weight.tolist()]
    [0.667, 0.333, 1.0]
    """
    device = visual_token_map.device
    images = visual_token_map.shape[0]
    whole_map = [tuple(visual_token_map.shape[1:])] * images
    sizes = list(zip(map_sizes or whole_map, valid_sizes or [pixel_size] * images, strict=True))
    unit = [
        cell_size(pixel_size[axis], feature_size[axis], stride, name)
        for axis, name in enumerate(("height", "width"))
    ]
    intervals = area_intervals if sampling == "area" else bilinear_intervals

    @cache  # images of one size share their intervals
    def along(axis: int, pixels: int, valid: int) -> AxisIntervals:
        found = intervals(pixels, valid, feature_size[axis], unit[axis])
        pixel, cell, weight = (torch.from_numpy(one).to(device) for one in found)
        return pixel, cell, weight

    tokens: list[Tensor] = []
    cells: list[Tensor] = []
    weights: list[Tensor] = []
    offset = 0
    for image, (map_size, valid_size) in enumerate(sizes):
        count = int(num_visual_tokens[image])
        token_map = visual_token_map[image, : map_size[0], : map_size[1]]
        token, cell, weight = _shares_in_image(
            token_map,
            along(0, int(map_size[0]), int(valid_size[0])),
            along(1, int(map_size[1]), int(valid_size[1])),
            count,
            feature_size,
            image,
        )
        tokens.append(token + offset)
        cells.append(cell + image * feature_size[0] * feature_size[1])
        weights.append(weight)
        offset += count
    return TokenCells(
        torch.cat(tokens),
        torch.cat(cells),
        torch.cat(weights),
        offset,
        (images, feature_size[0], feature_size[1]),
    )


def pool_tokens(features: Tensor, cells: TokenCells) -> Tensor:
    """Average features over every token, exactly; gradients reach the features.

    Parameters
    ----------
    features : Tensor
        (I, C, h, w), any float dtype; sums are float32.
    cells : TokenCells
        From :func:`token_cells` for a feature map of this size.

    Returns
    -------
    Tensor
        (T, C) float32, image after image.

    Raises
    ------
    ValueError
        When the features have another size than ``cells`` was made for.

    Examples
    --------
    >>> token_map = torch.tensor([[[0, 0, 0, 1], [0, 0, 0, 1]]])
    >>> cells = token_cells(token_map, [2], (1, 2), pixel_size=(2, 4))
    >>> [round(v, 3) for v in pool_tokens(torch.tensor([[[[3.0, 6.0]]]]), cells)[:, 0].tolist()]
    [4.0, 6.0]
    """
    images, channels, height, width = features.shape
    if (images, height, width) != cells.feature_shape:
        raise ValueError(
            f"features have (images, height, width) {(images, height, width)}, but the token cells "
            f"were made for {cells.feature_shape}"
        )
    flat = features.permute(0, 2, 3, 1).reshape(-1, channels)
    rows = flat.index_select(0, cells.cell).float() * cells.weight[:, None]
    out = rows.new_zeros(cells.num_tokens, channels)
    return out.index_add(0, cells.token, rows)
