"""Crops for training: image and label are scaled, cropped and flipped together, colours alone.

Everything random comes from the generator that is passed in, so that a crop depends on nothing but
its number: a run that resumes draws the crops that it would have drawn.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter
from torch.utils.data import Dataset

from subtok_data.training.config import TrainConfig
from subtok_data.training.labels import widen
from subtok_data.training.samples import CheckedSamples

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from subtok_data.training.config import AugmentConfig
    from subtok_data.training.samples import Sample

__all__ = ["Crops", "draw_crop"]

Resampling = Image.Resampling


def draw_crop(
    sample: Sample,
    rng: random.Random,
    config: AugmentConfig,
    *,
    label_stride: int = 2,
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Draw a random crop of an image and its label.

    Parameters
    ----------
    sample : Sample
        Labelled image. Thin edge strength is widened to ``line_width`` pixels of the crop.
    rng : random.Random
        Source of all choices.
    config : AugmentConfig
        Ranges.
    label_stride : int
        The label's side is the crop's divided by this: the stride of the network's output.

    Returns
    -------
    image : ndarray
        (crop, crop, 3) uint8.
    label : ndarray
        (crop / label_stride, crop / label_stride) float32 in [0, 1].

    Examples
    --------
    >>> import random
    >>> from subtok_data.training.config import AugmentConfig
    >>> from subtok_data.training.samples import Sample
    >>> sample = Sample(np.zeros((50, 80, 3), np.uint8), np.zeros((50, 80), np.uint8), True)
    >>> [a.shape for a in draw_crop(sample, random.Random(0), AugmentConfig(crop=64))]
    [(64, 64, 3), (32, 32)]
    """
    image, strength, thin = sample
    height, width = strength.shape
    scale = math.exp(rng.uniform(math.log(config.min_side), math.log(config.max_side)))
    scale = max(scale / max(height, width), config.crop / min(height, width))
    stretch = math.exp(rng.uniform(-config.stretch, config.stretch))
    box_width = min(config.crop / scale * stretch, width)
    box_height = min(config.crop / scale / stretch, height)
    left = rng.uniform(0, width - box_width)
    top = rng.uniform(0, height - box_height)
    # The window of whole pixels around the box: only that much of the label is widened.
    x0, y0 = int(left), int(top)
    x1 = min(width, math.ceil(left + box_width))
    y1 = min(height, math.ceil(top + box_height))
    window = np.ascontiguousarray(strength[y0:y1, x0:x1])
    if thin:
        # A thin edge is two pixels wide: the rest of the line's width, half on each side.
        window = widen(window, max(0.0, config.line_width / (2 * scale) - 1))
    box = (left - x0, top - y0, left - x0 + box_width, top - y0 + box_height)
    box = (box[0], box[1], min(box[2], x1 - x0), min(box[3], y1 - y0))
    side = config.crop // label_stride
    label = Image.fromarray(window).resize((side, side), Resampling.BILINEAR, box=box)
    crop = Image.fromarray(np.ascontiguousarray(image[y0:y1, x0:x1])).resize(
        (config.crop, config.crop), Resampling.BICUBIC, box=box
    )
    if rng.random() < config.flip:
        crop, label = _mirror(crop, label, Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < config.flip_vertical:
        crop, label = _mirror(crop, label, Image.Transpose.FLIP_TOP_BOTTOM)
    pixels = _recolour(crop, rng, config)
    return pixels, np.asarray(label, np.float32) / np.float32(255)


def _mirror(
    image: Image.Image, label: Image.Image, how: Image.Transpose
) -> tuple[Image.Image, Image.Image]:
    return image.transpose(how), label.transpose(how)


def _recolour(image: Image.Image, rng: random.Random, config: AugmentConfig) -> NDArray[np.uint8]:
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        factor = math.exp(rng.uniform(-config.colour, config.colour))
        if rng.random() < 0.7:
            image = enhance(image).enhance(factor)
    if rng.random() < config.grey:
        image = image.convert("L").convert("RGB")
    if rng.random() < config.blur:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
    pixels = np.array(image, np.uint8)
    if rng.random() < config.noise:
        noise = np.random.default_rng(rng.getrandbits(32)).normal(
            0, rng.uniform(2, 9), pixels.shape
        )
        pixels = np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)
    return pixels


class Crops(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Crops by number: number k is the same crop in every run of the same seed and data."""

    def __init__(
        self, samples: CheckedSamples, config: TrainConfig, first: int, count: int
    ) -> None:
        self._samples, self._config = samples, config
        self._first, self._count = first, count
        self._order: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        number = self._first + index
        epoch, position = divmod(number, len(self._samples))
        if self._order[0] != epoch:
            order = list(range(len(self._samples)))
            random.Random(f"{self._config.seed} epoch {epoch}").shuffle(order)
            self._order = (epoch, order)
        image, label = draw_crop(
            self._samples[self._order[1][position]],
            random.Random(f"{self._config.seed} crop {number}"),
            self._config.augment,
            label_stride=self._config.label_stride,
        )
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
        return pixels, torch.from_numpy(label)[None]
