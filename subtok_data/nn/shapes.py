"""Compute shape codes of tokens from the token map, on its own device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["pixel_boxes", "shape_codes"]


@torch.no_grad()
def pixel_boxes(token_map: Tensor, num_tokens: int) -> Tensor:
    """Find the tight half-open boxes (n, 4) int64, x0 y0 x1 y1, of the tokens of one map (h, w).

    Examples
    --------
    >>> pixel_boxes(torch.tensor([[0, 1, 1], [0, 0, 1]]), 2).tolist()
    [[0, 0, 2, 2], [1, 0, 3, 2]]
    """
    height, width = token_map.shape
    flat = token_map.reshape(-1).long()
    place = (flat >= 0).nonzero().squeeze(1)
    token = flat[place]
    y, x = place // width, place % width
    low = torch.full((num_tokens,), max(height, width), dtype=torch.int64, device=flat.device)
    high = torch.zeros_like(low)
    return torch.stack(
        [
            low.scatter_reduce(0, token, x, "amin"),
            low.scatter_reduce(0, token, y, "amin"),
            high.scatter_reduce(0, token, x + 1, "amax"),
            high.scatter_reduce(0, token, y + 1, "amax"),
        ],
        dim=1,
    )


def _codes_of_image(token_map: Tensor, num_tokens: int, size: int) -> Tensor:
    boxes = pixel_boxes(token_map, num_tokens)
    x0, y0, x1, y1 = boxes.unbind(1)
    bins = torch.arange(size, device=boxes.device)
    # A bin reads the pixel under its centre: exact where the box is smaller than the code.
    y = y0[:, None] + ((2 * bins + 1) * (y1 - y0)[:, None]) // (2 * size)
    x = x0[:, None] + ((2 * bins + 1) * (x1 - x0)[:, None]) // (2 * size)
    token = torch.arange(num_tokens, device=boxes.device)[:, None, None]
    codes = token_map[y[:, :, None], x[:, None, :]] == token
    # All samples may miss a thin token: then the bin of its first pixel in the top row is set.
    empty = ~codes.flatten(1).any(1)
    flat = token_map.reshape(-1).long()
    place = (flat >= 0).nonzero().squeeze(1)
    first = torch.full((num_tokens,), flat.numel(), device=flat.device)
    first = first.scatter_reduce(0, flat[place], place, "amin")
    column = (first % token_map.shape[1] - x0) * size // (x1 - x0)
    codes[empty, 0, column[empty]] = True
    return codes


@torch.no_grad()
def shape_codes(
    visual_token_map: Tensor,
    num_visual_tokens: Sequence[int],
    size: int,
    *,
    map_sizes: Sequence[Sequence[int]] | None = None,
) -> Tensor:
    """Crop each token to its box and scale it to ``size`` x ``size`` bins.

    The same codes as ``visual_token_shapes``, for batches that do not carry them: the pixel under
    each bin's centre, and where a thin token lies between all samples the bin of its first pixel.

    Parameters
    ----------
    visual_token_map : Tensor
        (I, Hs, Ws) integer; token of each pixel, -1 outside the image.
    num_visual_tokens : sequence of int
        (I,) tokens of each image.
    size : int
        Bins per side, r.
    map_sizes : sequence of (int, int), optional
        Extent (h, w) of the image inside the map.

    Returns
    -------
    Tensor
        (T, r, r) bool, image after image.

    Examples
    --------
    >>> shape_codes(torch.tensor([[[0, 1], [0, 0]]]), [2], 2).int().tolist()
    [[[1, 0], [1, 1]], [[1, 1], [1, 1]]]
    """
    sizes = map_sizes or [tuple(visual_token_map.shape[1:])] * visual_token_map.shape[0]
    return torch.cat(
        [
            _codes_of_image(visual_token_map[i, : int(h), : int(w)], int(n), size)
            for i, ((h, w), n) in enumerate(zip(sizes, num_visual_tokens, strict=True))
        ]
    )
