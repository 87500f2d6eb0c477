"""Compute shape codes of tokens from the token map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subtok_data.nn.transfer import to_device, to_host
from subtok_data.segment import measure, token_shapes

__all__ = ["image_map", "pixel_boxes", "shape_codes"]


def image_map(
    visual_token_map: Tensor, image: int, num_tokens: int, size: Sequence[int] | None
) -> NDArray[np.int32]:
    """Return the map (h, w) of one image of a batch on the host, without the canvas' padding.

    Raises
    ------
    ValueError
        The map holds an index beyond ``num_tokens``.

    Examples
    --------
    >>> image_map(torch.tensor([[[0, 1, -1], [0, 0, -1]]]), 0, 2, (2, 2)).tolist()
    [[0, 1], [0, 0]]
    """
    height, width = size or visual_token_map.shape[1:]
    found = visual_token_map[image, : int(height), : int(width)].numpy()
    highest = int(found.max())
    if highest >= num_tokens:
        raise ValueError(
            f"visual_token_map of image {image} holds token {highest}, but num_visual_tokens "
            f"is {num_tokens}: indices must be in 0..{num_tokens - 1}"
        )
    return np.ascontiguousarray(found, dtype=np.int32)


@torch.no_grad()
def pixel_boxes(token_map: Tensor, num_tokens: int) -> Tensor:
    """Find the tight half-open boxes (n, 4) int64, x0 y0 x1 y1, of the tokens of one map (h, w).

    Examples
    --------
    >>> pixel_boxes(torch.tensor([[0, 1, 1], [0, 0, 1]]), 2).tolist()
    [[0, 0, 2, 2], [1, 0, 3, 2]]
    """
    (host,) = to_host([token_map])
    boxes = measure(image_map(host[None], 0, num_tokens, None), num_tokens).boxes
    return to_device([torch.from_numpy(boxes).long()], token_map.device)[0]


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
    They are computed on the CPU: a map on a device is copied there, and the codes back.

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
        (T, r, r) bool, image after image, on the device of the map.

    Raises
    ------
    ValueError
        When a token has no pixel, or the map holds an index beyond ``num_visual_tokens``.

    Examples
    --------
    >>> shape_codes(torch.tensor([[[0, 1], [0, 0]]]), [2], 2).int().tolist()
    [[[1, 0], [1, 1]], [[1, 1], [1, 1]]]
    """
    (host,) = to_host([visual_token_map])
    found: list[NDArray[np.bool_]] = []
    for image, count in enumerate(num_visual_tokens):
        labels = image_map(host, image, int(count), map_sizes[image] if map_sizes else None)
        found.append(token_shapes(labels, measure(labels, int(count)).boxes, size))
    return to_device([torch.from_numpy(np.concatenate(found))], visual_token_map.device)[0]
