"""Networks and pictures for tests of the boundary model, in a module that workers can import."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

from subtok_data import BoundaryModel
from subtok_data.devices import DeviceError


class Constant(nn.Module):
    """The same logit everywhere, at a quarter of the side."""

    def __init__(self, value: float = 0.7) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        count, _, height, width = pixels.shape
        return self.value.expand(count, 1, height // 4, width // 4)


class Red(nn.Module):
    """A pointwise network: the mean red of each 4 x 4 block, so tiles must change nothing."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(pixels[:, :1], 4)


def pictures(*sizes: tuple[int, int], seed: int = 0) -> list[np.ndarray]:
    """Coloured rectangles on a ramp: flat parts, edges, and some noise."""
    rng = np.random.default_rng(seed)
    found = []
    for height, width in sizes:
        image = np.linspace(40, 120, width)[None, :, None] + np.zeros((height, 1, 3))
        for _ in range(6):
            top, left = rng.integers(0, height), rng.integers(0, width)
            image[top : top + height // 3 + 1, left : left + width // 3 + 1] = rng.integers(
                0, 256, 3
            )
        found.append((image + rng.normal(0, 4, image.shape)).clip(0, 255).astype(np.uint8))
    return found


class PredictsInWorker(Dataset):
    def __init__(self, model: BoundaryModel, device: str) -> None:
        self.model = model
        self.device = device

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> str:
        torch.set_num_threads(1)
        try:
            if self.device != "cpu":
                self.model.to(self.device)
            return str(self.model.predict(np.zeros((8, 8, 3), np.uint8)).shape)
        except DeviceError as error:
            return str(error)
