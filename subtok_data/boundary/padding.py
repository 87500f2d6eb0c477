"""One canvas per image: what the network sees depends on the image alone.

Attention has no mask, so an image padded to the largest of its batch would get another map in every
batch. Here each image is padded by itself, to the next multiple of the network's stride, and only
images of equal canvas are run together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from subtok_data.device_streams import move_to
from subtok_data.errors import ImageError

__all__ = ["CANVAS_MULTIPLE", "Pixels", "canvas_of", "checked", "chunked", "group", "stack"]

#: Sides of a canvas are multiples of this many pixels: the coarsest stride of the networks.
CANVAS_MULTIPLE = 32
Pixels = NDArray[np.uint8] | torch.Tensor


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


def canvas_of(image: Pixels) -> tuple[int, int]:
    """Height and width of the image's canvas in pixels.

    Examples
    --------
    >>> canvas_of(np.zeros((33, 64, 3), np.uint8))
    (64, 64)
    """
    height, width = image.shape[:2]
    step = CANVAS_MULTIPLE
    return -(-height // step) * step, -(-width // step) * step


def group(images: Sequence[Pixels]) -> dict[tuple[int, int], list[int]]:
    """Positions of the images by canvas, both in order of appearance.

    Examples
    --------
    >>> group([np.zeros((h, 32, 3), np.uint8) for h in (32, 64, 20)])
    {(32, 32): [0, 2], (64, 32): [1]}
    """
    members: dict[tuple[int, int], list[int]] = {}
    for index, image in enumerate(images):
        members.setdefault(canvas_of(image), []).append(index)
    return members


def chunked(members: Sequence[int], length: int) -> list[list[int]]:
    """Cut a sequence into lists of at most `length`.

    Examples
    --------
    >>> chunked([3, 1, 4, 1, 5], 2)
    [[3, 1], [4, 1], [5]]
    """
    return [list(members[at : at + length]) for at in range(0, len(members), length)]


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
            row[:height, width:] = row[:height, _mirrored(width, canvas[1])]
            row[height:] = row[_mirrored(height, canvas[0])]
        return target
    # torch hands out pinned memory again only after the copies from it are done.
    host = torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
    for row, image in zip(host.numpy(), images, strict=True):
        height, width = image.shape[:2]
        row[:height, :width] = image.numpy() if isinstance(image, torch.Tensor) else image
        row[:height, width:] = row[:height, _mirrored(width, canvas[1])]
        row[height:] = row[_mirrored(height, canvas[0])]
    return move_to(host, device)


def _mirrored(size: int, total: int) -> list[int]:
    """Where positions size..total-1 come from when 0..size-1 is mirrored, the last not repeated."""
    period = max(1, 2 * (size - 1))
    return [min(at % period, period - at % period) for at in range(size, total)]
