"""A model that takes our batches: small, deterministic, and it remembers what it saw."""

from __future__ import annotations

import torch
from torch import nn


class TinyModel(nn.Module):
    """Regresses a label from mean colours of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 1)
        self.seen: list[list[int]] = []

    def forward(self, pixel_values, visual_token_areas, visual_token_mask, sample_index, label):
        self.seen.append(sample_index.tolist())
        color = pixel_values.mean((2, 3))
        largest = (visual_token_areas * visual_token_mask).max(1).values[:, None]
        guess = self.head(torch.cat([color, largest], 1))[:, 0]
        loss = ((guess - label.float() / 10) ** 2).mean()
        return {"loss": loss, "logits": guess, "indices": sample_index}
