"""Pool features as the paper does: RoIAlign of features and masks on the box of each token.

Kept for comparison. It approximates the mean that :func:`~subtok_data.nn.pool_tokens` computes
exactly: one sample per bin, and a mask that grows where it touches a bin.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from subtok_data.nn.shapes import pixel_boxes

__all__ = ["roi_pool_tokens"]

# Tokens whose masks are dense at one time.
_CHUNK = 16


def _roi_masks(token_map: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Masks (n, r, r) bool of the tokens of one map, as RoIAlign of the dense masks gives them."""
    parts: list[Tensor] = []
    for first in range(0, boxes.shape[0], _CHUNK):
        part = boxes[first : first + _CHUNK].float()
        token = torch.arange(first, first + part.shape[0], device=token_map.device)
        dense = (token_map[None] == token[:, None, None]).float()[:, None]
        row = torch.arange(part.shape[0], device=token_map.device, dtype=torch.float32)
        rois = torch.cat([row[:, None], part], dim=1)
        parts.append(roi_align(dense, rois, (size, size), aligned=True)[:, 0] > 0)
    return torch.cat(parts)


def roi_pool_tokens(
    features: Tensor,
    visual_token_map: Tensor,
    num_visual_tokens: Sequence[int],
    size: int = 32,
    *,
    map_sizes: Sequence[Sequence[int]] | None = None,
    extent: tuple[float, float] = (1.0, 1.0),
) -> tuple[Tensor, Tensor]:
    """Average RoIAligned features under RoIAligned masks (arXiv 2402.14327, section 4 and code).

    Parameters
    ----------
    features : Tensor
        (I, C, h, w), any float dtype; pooled in float32.
    visual_token_map : Tensor
        (I, Hs, Ws) integer; token of each pixel, -1 outside the image.
    num_visual_tokens : sequence of int
        (I,) tokens of each image.
    size : int
        Bins per side, r; 32 in the paper.
    map_sizes : sequence of (int, int), optional
        Extent (h, w) of the image inside the map.
    extent : tuple of float
        Share (vertical, horizontal) of the map's canvas that the features cover: 504 / 512 for
        patches of 14 on 512 pixels. The original stretches them instead.

    Returns
    -------
    content : Tensor
        (T, C) float32.
    masks : Tensor
        (T, r, r) bool.

    Examples
    --------
    >>> token_map = torch.tensor([[[0, 0, 1, 1]] * 4])
    >>> content, masks = roi_pool_tokens(torch.ones(1, 3, 4, 4), token_map, [2], 8)
    >>> content.tolist()[0], tuple(masks.shape)
    ([1.0, 1.0, 1.0], (2, 8, 8))
    """
    canvas = visual_token_map.shape[1:]
    sizes = map_sizes or [tuple(canvas)] * features.shape[0]
    contents: list[Tensor] = []
    masks: list[Tensor] = []
    for image, ((height, width), count) in enumerate(zip(sizes, num_visual_tokens, strict=True)):
        token_map = visual_token_map[image, : int(height), : int(width)]
        covered = (round(canvas[0] * extent[0]), round(canvas[1] * extent[1]))
        # One image at a time: the features at the map's resolution are the largest tensor here.
        full = F.interpolate(
            features[image : image + 1].float(), size=covered, mode="bilinear", align_corners=False
        )
        boxes = pixel_boxes(token_map, int(count))
        mask = _roi_masks(token_map, boxes, size)
        crops = roi_align(full, [boxes.float()], (size, size), sampling_ratio=1, aligned=False)
        weight = mask.float()
        total = weight.sum((1, 2)).clamp_min(1.0)
        contents.append((crops * weight[:, None]).sum((2, 3)) / total[:, None])
        masks.append(mask)
    return torch.cat(contents), torch.cat(masks)
