"""One canvas per image: what the network sees depends on the image alone.

Attention has no mask, so an image padded to the largest of its batch would get another map in every
batch. Here each image is padded by itself, to the next multiples of a step, and only images of
equal canvas are run together: a coarser step makes fewer canvases, and larger batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from subtok_data.device_streams import move_to
from subtok_data.errors import ConfigError, ImageError

__all__ = [
    "CANVAS_MULTIPLE",
    "Pixels",
    "balanced",
    "canvas_of",
    "check_canvas_step",
    "checked",
    "group",
    "stack",
]

#: Sides of a canvas are multiples of this many pixels: the coarsest stride of the networks.
CANVAS_MULTIPLE = 32
Pixels = NDArray[np.uint8] | torch.Tensor


def check_canvas_step(step: int) -> int:
    """Return the step, or refuse what is no positive multiple of `CANVAS_MULTIPLE`.

    Examples
    --------
    >>> check_canvas_step(128)
    128
    """
    given: object = step
    if type(given) is not int or given < CANVAS_MULTIPLE or given % CANVAS_MULTIPLE:
        raise ConfigError(
            f"canvas_step={given!r} must be a positive multiple of {CANVAS_MULTIPLE} "
            "pixels, such as 32 (least padding) or 128 (fewer, larger batches)"
        )
    return given


def checked(images: Sequence[Pixels] | Pixels) -> list[Pixels]:
    """Return the images as a list, or refuse what is no uint8 (H, W, 3) array or tensor.

    Raises
    ------
    ImageError
        Naming the place in the list and what was found there.

    Examples
    --------
    >>> len(checked(np.zeros((4, 5, 3), np.uint8)))
    1
    """
    if isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 3:
        images = [images]
    found = list(images)
    for index, image in enumerate(found):
        kind = str(getattr(image, "dtype", type(image).__name__)).removeprefix("torch.")
        shape = tuple(getattr(image, "shape", ()))
        if kind != "uint8" or len(shape) != 3 or shape[2] != 3 or 0 in shape:
            raise ImageError(
                f"image {index} of {len(found)} is {kind} of shape {shape}: the boundary model "
                "takes uint8 (H, W, 3) with at least one pixel; subtok_data.images.to_rgb makes it"
            )
    return found


def canvas_of(image: Pixels, step: int) -> tuple[int, int]:
    """Height and width of the image's canvas in pixels: the next multiples of the step.

    Examples
    --------
    >>> canvas_of(np.zeros((33, 64, 3), np.uint8), 32)
    (64, 64)
    """
    height, width = image.shape[:2]
    return -(-height // step) * step, -(-width // step) * step


def group(images: Sequence[Pixels], step: int) -> dict[tuple[int, int], list[int]]:
    """Positions of the images by canvas, both in order of appearance.

    Examples
    --------
    >>> group([np.zeros((h, 32, 3), np.uint8) for h in (32, 64, 20)], 32)
    {(32, 32): [0, 2], (64, 32): [1]}
    """
    members: dict[tuple[int, int], list[int]] = {}
    for index, image in enumerate(images):
        members.setdefault(canvas_of(image, step), []).append(index)
    return members


def balanced(members: Sequence[int], most: int) -> list[list[int]]:
    """Cut a sequence into as few lists of at most `most` as will do, of about equal length.

    Examples
    --------
    >>> balanced([3, 1, 4, 1, 5, 9, 2, 6], 7)
    [[3, 1, 4, 1], [5, 9, 2, 6]]
    """
    total, count = len(members), -(-len(members) // most)
    ends = [-(-total * part // count) for part in range(count + 1)] if total else []
    return [list(members[start:end]) for start, end in pairwise(ends)]


def stack(images: Sequence[Pixels], canvas: tuple[int, int], device: torch.device) -> torch.Tensor:
    """Bring images onto their canvas and the device, without waiting for the device.

    The border below and right of an image mirrors it: a constant would draw an edge along the
    image's frame, and a repeated last row or column is a pattern of stripes, which ends there too.

    Parameters
    ----------
    images : sequence of uint8 (H, W, 3) arrays or tensors
        No larger than the canvas.
    canvas : (int, int)
        Height and width in pixels.
    device : torch.device
        Arrays go to CUDA through pinned memory.

    Returns
    -------
    uint8 tensor (N, height, width, 3)

    Examples
    --------
    >>> stack([np.ones((3, 3, 3), np.uint8)], (32, 32), torch.device("cpu")).shape
    torch.Size([1, 32, 32, 3])
    """
    shape = (len(images), *canvas, 3)
    if any(isinstance(image, torch.Tensor) and image.device.type != "cpu" for image in images):
        target = torch.empty(shape, dtype=torch.uint8, device=device)
        for row, image in zip(target, images, strict=True):
            height, width = image.shape[:2]
            row[:height, :width] = move_to(torch.as_tensor(image), device)
            _mirror(row[:height].transpose(0, 1), width)
            _mirror(row, height)
        return target
    # torch hands out pinned memory again only after the copies from it are done.
    host = torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
    for row, image in zip(host.numpy(), images, strict=True):
        height, width = image.shape[:2]
        row[:height, :width] = image.numpy() if isinstance(image, torch.Tensor) else image
        row[:height, width:] = row[:height, _mirrored(width, canvas[1])]
        row[height:] = row[_mirrored(height, canvas[0])]
    return move_to(host, device)


def _mirror(rows: torch.Tensor, size: int) -> None:
    """Fill rows from `size` on with the mirror image of those before, in place.

    By slices: a list of indices would be copied to the device, which the host waits for.
    """
    if size == 1:
        rows[1:] = rows[:1].clone()
        return
    total, period = len(rows), 2 * (size - 1)
    there = min(total, period + 1)
    rows[size:there] = rows[: size - 1].flip(0)[: there - size]
    while there < total:
        more = min(period, total - there)
        rows[there : there + more] = rows[there - period : there - period + more]
        there += more


def _mirrored(size: int, total: int) -> list[int]:
    """Where positions size..total-1 come from when 0..size-1 is mirrored, the last not repeated."""
    period = max(1, 2 * (size - 1))
    return [min(at % period, period - at % period) for at in range(size, total)]
