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

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subtok_data.nn.intervals import Intervals, area_intervals, bilinear_intervals, cell_size
from subtok_data.nn.shapes import image_map
from subtok_data.nn.transfer import to_device, to_host
from subtok_data.nn.weighted_sum import weighted_sum
from subtok_data.segment import share_cells

__all__ = ["Sampling", "TokenCells", "host_cells", "pool_tokens", "token_cells"]

Sampling = Literal["area", "bilinear"]


@dataclass(frozen=True)
class TokenCells:
    """Sparse matrix of the share that each feature cell has in each token, by rows and by columns.

    Attributes
    ----------
    token : Tensor
        (K,) int64; row of the token among all tokens of the batch, image after image. Sorted.
    cell : Tensor
        (K,) int64; index of the cell in the flattened (I, h, w) feature map. Sorted in a token.
    weight : Tensor
        (K,) float32 in (0, 1]; the weights of a token sum to 1.
    token_start : Tensor
        (T + 1,) int64; where the pairs of each token begin.
    by_cell : Tensor
        (K,) int64; the places of the pairs, sorted by cell and then by token.
    cell_start : Tensor
        (I · h · w + 1,) int64; where the pairs of each cell begin in that order.
    num_tokens : int
        Tokens of the batch, T.
    feature_shape : tuple of int
        (I, h, w) of the feature map it was made for.
    """

    token: Tensor
    cell: Tensor
    weight: Tensor
    token_start: Tensor
    by_cell: Tensor
    cell_start: Tensor
    num_tokens: int
    feature_shape: tuple[int, int, int]

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The six tensors, in the order of the attributes."""
        return (
            self.token,
            self.cell,
            self.weight,
            self.token_start,
            self.by_cell,
            self.cell_start,
        )

    def to(self, device: torch.device) -> TokenCells:
        """Return the same on a device, in one copy."""
        return TokenCells(
            *to_device(self.tensors, device),
            num_tokens=self.num_tokens,
            feature_shape=self.feature_shape,
        )


Arrays = list[NDArray[np.int64]]


def host_cells(
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
    """Compute the token cells of a map on the CPU; see :func:`token_cells`."""
    images = visual_token_map.shape[0]
    whole_map = [tuple(visual_token_map.shape[1:])] * images
    sizes = list(zip(map_sizes or whole_map, valid_sizes or [pixel_size] * images, strict=True))
    unit = [
        cell_size(pixel_size[axis], feature_size[axis], stride, name)
        for axis, name in enumerate(("height", "width"))
    ]
    intervals = area_intervals if sampling == "area" else bilinear_intervals

    @cache  # images of one size share their intervals
    def along(axis: int, pixels: int, valid: int) -> Intervals:
        pixel, cell, weight = intervals(pixels, valid, feature_size[axis], unit[axis])
        order = np.argsort(cell, kind="stable")
        return pixel[order], cell[order], weight[order]

    offset, pairs, cells = 0, 0, feature_size[0] * feature_size[1]
    tokens: Arrays = []
    shared: Arrays = []
    weights: list[NDArray[np.float32]] = []
    token_start: Arrays = [np.zeros(1, np.int64)]
    by_cell: Arrays = []
    cell_start: Arrays = [np.zeros(1, np.int64)]
    for image, (map_size, valid_size) in enumerate(sizes):
        count = int(num_visual_tokens[image])
        token, cell, area, start, order, start_of_cell = share_cells(
            image_map(visual_token_map, image, count, map_size),
            count,
            along(0, int(map_size[0]), int(valid_size[0])),
            along(1, int(map_size[1]), int(valid_size[1])),
            (int(feature_size[0]), int(feature_size[1])),
        )
        total = np.bincount(token, weights=area, minlength=count)
        if not total.all():
            raise ValueError(
                f"token {int(np.argmin(total))} of image {image} has no pixel in "
                f"visual_token_map, which must hold every index in 0..{count - 1}"
            )
        tokens.append(token + offset)
        shared.append(cell + image * cells)
        weights.append((area / total[token]).astype(np.float32))
        token_start.append(start[1:] + pairs)
        by_cell.append(order + pairs)
        cell_start.append(start_of_cell[1:] + pairs)
        offset += count
        pairs += len(token)
    arrays = (tokens, shared, weights, token_start, by_cell, cell_start)
    return TokenCells(
        *(torch.from_numpy(np.concatenate(parts)) for parts in arrays),
        num_tokens=offset,
        feature_shape=(images, feature_size[0], feature_size[1]),
    )


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

    It is computed on the CPU, where the numbers of pairs are known without waiting: a map on a
    device is copied there, once, and the result back.

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
    (host,) = to_host([visual_token_map])
    cells = host_cells(
        host,
        num_visual_tokens,
        feature_size,
        pixel_size=pixel_size,
        map_sizes=map_sizes,
        valid_sizes=valid_sizes,
        stride=stride,
        sampling=sampling,
    )
    return cells.to(visual_token_map.device)


def pool_tokens(features: Tensor, cells: TokenCells) -> Tensor:
    """Average features over every token, exactly; gradients reach the features.

    Each sum is made in one order, forward and backward, so that runs on a GPU give equal bits.

    Parameters
    ----------
    features : Tensor
        (I, C, h, w), any float dtype; sums are float32, or float64 for features in float64.
    cells : TokenCells
        From :func:`token_cells` for a feature map of this size, on the same device.

    Returns
    -------
    Tensor
        (T, C) float32 (float64), image after image.

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
    values = flat if flat.dtype == torch.float64 else flat.float()
    return weighted_sum(values, *cells.tensors)
