"""An image at several sizes: what one pass sees small and what it sees large, in one map.

A network that learned from crops of some sizes finds coarse borders in a reduced image and fine
ones in an enlarged one; the mean of their maps is better than each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from subtok_data.errors import ConfigError, ImageError

__all__ = ["MAX_SCALE", "check_scales", "resized_map", "scaled_image", "scaled_size"]

#: Sixteen times the pixels: beyond that nothing is found, and memory runs out.
MAX_SCALE = 4.0

#: Least side of a reduced image in pixels: one step of the coarsest stride of the networks.
MIN_SIDE = 32


def check_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """Return the scales in ascending order, or refuse what is none.

    Raises
    ------
    ConfigError
        No scale, one given twice, or one that is no number above 0 and up to `MAX_SCALE`.

    Examples
    --------
    >>> check_scales([1.5, 1])
    (1.0, 1.5)
    """
    given: Any = scales
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise ConfigError(f"scales={given!r} must be a sequence of numbers, such as (1.0, 1.5)")
    if not len(scales):
        raise ConfigError("scales is empty: give at least one; (1.0,) is one pass at full size")
    for index, scale in enumerate(scales):
        number: Any = scale
        if (
            isinstance(number, bool)
            or not isinstance(number, int | float)
            or not math.isfinite(number)
            or not 0 < number <= MAX_SCALE
        ):
            raise ConfigError(
                f"scales[{index}]={number!r} must be a number above 0 and at most {MAX_SCALE:g}: "
                "a multiple of the image's size"
            )
    found = tuple(sorted(float(scale) for scale in scales))
    if len(set(found)) < len(found):
        raise ConfigError(f"scales={tuple(scales)!r} holds one number twice: give each once")
    return found


def scaled_size(size: tuple[int, int], scale: float, index: int, count: int) -> tuple[int, int]:
    """Height and width of an image of `size` at a scale, in pixels.

    Parameters
    ----------
    size : (int, int)
        Height and width.
    scale : float
        Multiple of the size.
    index, count : int
        Place of the image among how many, for messages.

    Raises
    ------
    ImageError
        A scale below 1 leaves less than `MIN_SIDE` pixels of a side.

    Examples
    --------
    >>> scaled_size((321, 481), 1.5, 0, 1)
    (482, 722)
    """
    height, width = (max(1, round(side * scale)) for side in size)
    if scale < 1 and min(height, width) < MIN_SIDE:
        raise ImageError(
            f"image {index} of {count} is {size[0]} x {size[1]} (height x width): scale {scale:g} "
            f"makes {height} x {width} of it, and a side needs {MIN_SIDE} pixels; use larger "
            "images, or scales without it"
        )
    return height, width


def scaled_image(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize uint8 pixels (H, W, 3), bicubically and without aliasing, on their device.

    Examples
    --------
    >>> scaled_image(torch.full((40, 60, 3), 7, dtype=torch.uint8), (60, 90)).unique()
    tensor([7], dtype=torch.uint8)
    """
    planes = pixels.permute(2, 0, 1)[None].to(torch.float32)
    resized = F.interpolate(planes, size, mode="bicubic", align_corners=False, antialias=True)
    return resized[0].round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()


def resized_map(probability: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize probabilities (H, W), bilinearly and without aliasing.

    Examples
    --------
    >>> resized_map(torch.full((60, 90), 0.5), (40, 60)).shape
    torch.Size([40, 60])
    """
    if tuple(probability.shape) == size:
        return probability
    return F.interpolate(
        probability[None, None], size, mode="bilinear", align_corners=False, antialias=True
    )[0, 0]
