"""Encoder input: how ``pixel_values`` are sized, scaled and padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subtok_data.arguments import check_choice, check_count, check_type
from subtok_data.batch.recycled import RecycledArrays
from subtok_data.device_streams import move_to
from subtok_data.errors import ConfigError
from subtok_data.images import SourceImage, canvas_size, decode_whole, fit_image, image_size

__all__ = ["PixelConfig", "normalise_bytes", "stack_pixels"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "uint8": torch.uint8}


@dataclass(frozen=True)
class PixelConfig:
    """How images become ``pixel_values``.

    This is the vision encoder's side; the boundary model has a normalisation of its own.

    Parameters
    ----------
    size : int, (int, int) or None, optional
        None: the image that was segmented, so pixels and token map share a grid. An integer:
        longest side, aspect ratio kept. A pair: exactly (height, width), as fixed-size encoders
        ask.
    multiple : int, optional
        With an integer size, both sides become multiples of this: the encoder's patch size.
    mean, std : three floats, optional
        Of RGB in [0, 1]. ImageNet's by default.
    dtype : {"float32", "bfloat16", "uint8"}, optional
        ``"uint8"`` leaves pixels as they are, for models that normalise on the device.

    Examples
    --------
    >>> PixelConfig(size=(224, 224), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)).size
    (224, 224)
    """

    size: int | tuple[int, int] | None = None
    multiple: int = 1
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, _DTYPES)
        for name in ("size", "mean", "std"):  # JSON has lists
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(cast("list[Any]", value)))
        if isinstance(self.size, tuple):
            if len(self.size) != 2:
                raise ConfigError(f"size={self.size}: give one side, or (height, width)")
            for side in self.size:
                check_count("each side of size", side, optional=False, unit="pixels")
        else:
            check_count("size", self.size, unit="pixels")
        check_count("multiple", self.multiple, optional=False, unit="pixels")
        for name, values in (("mean", self.mean), ("std", self.std)):
            check_type(name, values, tuple, "give three values, of red, green and blue")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ConfigError(
                f"mean={self.mean}, std={self.std}: give three values each, std above zero"
            )

    @property
    def affine(self) -> tuple[list[float], list[float]]:
        """Scale and shift that take bytes to normalised values, one per channel."""
        scale = [1 / (255 * s) for s in self.std]
        return scale, [-m / s for m, s in zip(self.mean, self.std, strict=True)]

    @classmethod
    def from_image_processor(cls, processor: Any, *, dtype: str = "float32") -> PixelConfig:
        """Read size, mean and std from a transformers image processor.

        A center crop is replaced by a resize to the crop's size: a crop would cut tokens off.

        Parameters
        ----------
        processor : transformers image processor
            With ``size``, ``image_mean`` and ``image_std``.
        dtype : str, optional
            See the class.
        """
        size = _processor_size(processor)
        if getattr(processor, "do_normalize", True):
            mean, std = tuple(processor.image_mean), tuple(processor.image_std)
        else:
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        return cls(size=size, mean=mean, std=std, dtype=dtype)

    def fit(self, image: SourceImage, *beside: tuple[int, int]) -> NDArray[np.uint8]:
        """Resize one image to the encoder's grid; decode it if need be.

        Parameters
        ----------
        image : EncodedImage or uint8 ndarray (H, W, 3)
            Of ``subtok_data.images.open_image``.
        *beside : (int, int)
            Other sizes in pixels that it is decoded for: if one of them is larger, once is enough.
        """
        if self.size is None:
            return decode_whole(image)
        if isinstance(self.size, tuple):
            target = self.size
        else:
            target = canvas_size(*image_size(image), self.size, multiple=self.multiple)
        return fit_image(image, target, *beside)


def _processor_size(processor: Any) -> int | tuple[int, int] | None:
    if not getattr(processor, "do_resize", True):
        return None
    size: Any = processor.size
    if getattr(processor, "do_center_crop", False):
        size = processor.crop_size
    if isinstance(size, int):
        return (size, size)
    names = ("height", "width", "longest_edge", "shortest_edge")
    sides = {name: int(size[name]) for name in names if size.get(name)}
    if "height" in sides and "width" in sides:
        return (sides["height"], sides["width"])
    if "longest_edge" in sides:
        return sides["longest_edge"]
    if "shortest_edge" in sides:
        return (sides["shortest_edge"], sides["shortest_edge"])
    raise ConfigError(
        f"{type(processor).__name__}.size = {size!r} has neither height and width nor an edge; "
        "give pixels=PixelConfig(size=…) instead of image_processor="
    )


def stack_pixels(
    images: Sequence[NDArray[np.uint8]],
    config: PixelConfig,
    device: torch.device | None,
    arrays: RecycledArrays | None = None,
) -> Tensor:
    """Pad images to a common size, right and bottom, and normalise them.

    Parameters
    ----------
    images : sequence of (H, W, 3) uint8 arrays
        On the encoder's grid.
    config : PixelConfig
        Mean, std and dtype.
    device : torch.device or None
        With a device, bytes travel and floats are made there: four times less to move. On CUDA the
        current stream of this thread is used, and nothing waits.
    arrays : RecycledArrays, optional
        Where the memory of the result comes from; from the system by default.

    Returns
    -------
    Tensor
        (I, 3, H, W); padding is 0, which is the mean colour.
    """
    height = max((image.shape[0] for image in images), default=1)
    width = max((image.shape[1] for image in images), default=1)
    if device is not None and device.type != "cpu":
        raw = _send_bytes(images, (height, width), device)
        return normalise_bytes(raw, [image_size(image) for image in images], config)
    shape = (len(images), 3, height, width)
    arrays = arrays or RecycledArrays()
    if config.dtype == "uint8":
        return torch.from_numpy(_split(images, arrays.empty(shape, np.uint8)))
    from subtok_data.segment import normalise_planes  # compiled code, loaded when it is needed

    # A kernel, not torch: its threads would wait for cores that the other stages are busy on.
    stacked = arrays.empty(shape, np.float32)
    scale, shift = (np.array(values, np.float32) for values in config.affine)
    for slot, image in zip(stacked, images, strict=True):
        pixels = np.ascontiguousarray(image).reshape(-1)
        normalise_planes(pixels, image.shape[1], scale, shift, slot)
        _clear_padding(slot, image)
    return torch.from_numpy(stacked).to(_DTYPES[config.dtype])


def _split(images: Sequence[NDArray[np.uint8]], padded: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from subtok_data.segment import split_planes  # as above

    for slot, image in zip(padded, images, strict=True):
        split_planes(np.ascontiguousarray(image).reshape(-1), image.shape[1], slot)
        _clear_padding(slot, image)
    return padded


def _clear_padding(slot: NDArray[Any], image: NDArray[np.uint8]) -> None:
    rows, columns = image.shape[:2]
    slot[:, rows:] = 0
    slot[:, :rows, columns:] = 0


def _send_bytes(
    images: Sequence[NDArray[np.uint8]], canvas: tuple[int, int], device: torch.device
) -> Tensor:
    """Bytes (I, H, W, 3) on the device; what is beside an image is anything."""
    # Of torch's pinned memory: it hands a block out again when the copies from it are done.
    raw = torch.empty(
        (len(images), *canvas, 3), dtype=torch.uint8, pin_memory=device.type == "cuda"
    )
    for row, image in zip(raw.numpy(), images, strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    return move_to(raw, device)


def normalise_bytes(raw: Tensor, sizes: Sequence[tuple[int, int]], config: PixelConfig) -> Tensor:
    """Make ``pixel_values`` of bytes, on their device and with the bits of :func:`stack_pixels`.

    Parameters
    ----------
    raw : (I, H, W, 3) uint8 tensor
        Images in the upper left, anything beside them.
    sizes : sequence of (int, int)
        Height and width of each.
    config : PixelConfig
        Mean, std and dtype.

    Returns
    -------
    Tensor
        (I, 3, H, W); padding is 0.

    Examples
    --------
    >>> grey = torch.full((1, 2, 2, 3), 255, dtype=torch.uint8)
    >>> normalise_bytes(grey, [(2, 1)], PixelConfig(dtype="uint8"))[0, 0].tolist()
    [[255, 0], [255, 0]]
    """
    planes = raw.permute(0, 3, 1, 2)
    if config.dtype == "uint8":
        stacked = planes.clone(memory_format=torch.contiguous_format)
    else:
        stacked = torch.empty(planes.shape, dtype=torch.float32, device=raw.device)
        stacked.copy_(planes)
        # Two roundings, as on the CPU; numbers of Python need no copy to the device.
        for channel, (scale, shift) in enumerate(zip(*config.affine, strict=True)):
            stacked[:, channel].mul_(scale).add_(shift)
    for slot, (height, width) in zip(stacked, sizes, strict=True):
        if height < slot.shape[1]:
            slot[:, height:] = 0
        if width < slot.shape[2]:
            slot[:, :height, width:] = 0
    return stacked.to(_DTYPES[config.dtype])
