"""Crops by number, the stream that a run learns from."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch.utils.data import Dataset

from subtok_data.training.augment import draw_crop
from subtok_data.training.config import TrainConfig
from subtok_data.training.sources import CheckedSamples

__all__ = ["Draws"]


class Draws(Dataset[tuple[torch.Tensor, torch.Tensor]]):
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
