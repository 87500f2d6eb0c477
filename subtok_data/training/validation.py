"""Validation during training: the loss on fixed crops, and a preview of some."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from subtok_data.training.crops import draw_crop

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from subtok_data.training.config import TrainConfig
    from subtok_data.training.samples import CheckedSamples

__all__ = ["validate"]

ROWS = 6


@torch.inference_mode()
def validate(
    predict: Callable[[torch.Tensor], torch.Tensor],
    samples: CheckedSamples,
    config: TrainConfig,
    preview: Path,
) -> float:
    """Compute the mean cross entropy over a fixed crop of each image, and draw the first few.

    Parameters
    ----------
    predict : callable
        (1, 3, H, W) uint8 → logits (1, 1, h, w).
    samples : CheckedSamples
        Images held out.
    config : TrainConfig
        Crop size and label form.
    preview : Path
        PNG: a row an image, with crop, label and prediction side by side.

    Returns
    -------
    float
        Nats a pixel.
    """
    plain = replace(
        config.augment, stretch=0, flip=0, flip_vertical=0, colour=0, grey=0, blur=0, noise=0
    )
    total = 0.0
    rows: list[NDArray[np.uint8]] = []
    for index in range(len(samples)):
        image, label = draw_crop(
            samples[index], random.Random(index), plain, label_stride=config.label_stride
        )
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
        logits = predict(pixels).float().cpu()
        target = torch.from_numpy(label)[None, None]
        if logits.shape != target.shape:
            logits = F.interpolate(logits, target.shape[-2:], mode="bilinear")
        total += float(F.binary_cross_entropy_with_logits(logits, target))
        if index < ROWS:
            rows.append(
                np.hstack(
                    [
                        image,
                        _grey(label, plain.crop),
                        _grey(logits.sigmoid()[0, 0].numpy(), plain.crop),
                    ]
                )
            )
    preview.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.vstack(rows)).save(preview)
    return total / len(samples)


def _grey(values: NDArray[np.float32], side: int) -> NDArray[np.uint8]:
    """Draw dark lines on white, (side, side, 3) RGB."""
    grey = Image.fromarray(np.rint(255 * (1 - values)).astype(np.uint8))
    return np.repeat(np.asarray(grey.resize((side, side)))[..., None], 3, axis=2)
