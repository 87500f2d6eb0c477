"""Three ways in which tokens are made for training today, as collate functions.

They are what :mod:`bench_loader` compares with. All use the same boundary model and images; the
last one follows the procedure of the paper's code (float map, scikit-image's watershed, one dense
mask per token, sorted by area, cut and padded to a fixed number).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from skimage.measure import label
from skimage.segmentation import watershed

from subtok_data import SubobjectCollator, SubobjectTokenizer
from subtok_data.images import Canvas

__all__ = ["CollateInWorker", "CollateOriginal", "dense_masks"]

MAX_TOKENS = 256


class CollateInWorker:
    """The tokenizer, model and all, inside spawned DataLoader workers."""

    def __init__(self, tokenizer: SubobjectTokenizer) -> None:
        self._tokenizer = tokenizer
        self._collator: SubobjectCollator | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_tokenizer": self._tokenizer, "_collator": None}

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        torch.set_num_threads(1)
        if self._collator is None:
            self._collator = SubobjectCollator(self._tokenizer)
        return self._collator.finish(self._collator.worker.collate(rows))


class CollateOriginal:
    """The procedure of the paper's code, inside spawned DataLoader workers."""

    def __init__(self, tokenizer: SubobjectTokenizer, threshold: float) -> None:
        self._tokenizer = tokenizer
        self._canvas = Canvas(tokenizer.canvas.size, square=True)  # the original squashes
        self._threshold = threshold

    def __call__(self, rows: list[Any]) -> dict[str, torch.Tensor]:
        torch.set_num_threads(1)
        images = [self._canvas.fit(row["image"]) for row in rows]
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        evidence = self._tokenizer.segmenter.infer(images, sizes)
        masks = [
            dense_masks(one["boundary_map"].astype(np.float32) / 255, self._threshold)
            for one in evidence
        ]
        pixels = np.stack([image.transpose(2, 0, 1) for image in images])
        return {
            "pixel_values": torch.from_numpy(pixels).float() / 255,
            "masks": torch.stack([torch.from_numpy(mask) for mask in masks]),
        }


def dense_masks(probability: np.ndarray, threshold: float) -> np.ndarray:
    """One boolean mask per token, largest first, padded or cut to ``MAX_TOKENS``."""
    markers = label(probability < threshold, connectivity=1)
    labels = watershed(probability, markers)
    found = [labels == number for number in range(1, int(labels.max()) + 1)]
    found.sort(key=lambda mask: -int(mask.sum()))
    stack = np.zeros((MAX_TOKENS, *probability.shape), np.bool_)
    for place, mask in enumerate(found[:MAX_TOKENS]):
        stack[place] = mask
    return stack
