"""Masks that a promptable model found, on their way from the device to a partitioner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subtok_data.segment import RLEMasks

__all__ = ["GeneratedMasks", "mask_boxes", "mask_runs"]


@dataclass(eq=False)
class GeneratedMasks:
    """Masks of one image, best first within a crop.

    Attributes
    ----------
    runs : list of (R,) int32
        Run lengths of each mask in the whole image (COCO's order).
    boxes : (M, 4) float32
        x0, y0, x1, y1 of the first and last pixels (inclusive), in the image.
    ious, stability : (M,) float32
        Predicted IoU, and stability score.
    points : (M, 2) float32
        The prompt: x, y in the image.
    crops : (M, 4) int64
        Crop that each mask was found in: x0, y0, x1, y1 (half-open).
    """

    runs: list[NDArray[np.int32]]
    boxes: NDArray[np.float32]
    ious: NDArray[np.float32]
    stability: NDArray[np.float32]
    points: NDArray[np.float32]
    crops: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.runs)

    def take(self, kept: NDArray[np.int64]) -> GeneratedMasks:
        """Return some of the masks, in the order given."""
        return GeneratedMasks(
            [self.runs[i] for i in kept],
            self.boxes[kept],
            self.ious[kept],
            self.stability[kept],
            self.points[kept],
            self.crops[kept],
        )

    @classmethod
    def join(cls, parts: Sequence[GeneratedMasks]) -> GeneratedMasks:
        """Put masks one after the other."""
        return cls(
            [run for part in parts for run in part.runs],
            np.concatenate([np.zeros((0, 4), np.float32), *(part.boxes for part in parts)]),
            np.concatenate([np.zeros(0, np.float32), *(part.ious for part in parts)]),
            np.concatenate([np.zeros(0, np.float32), *(part.stability for part in parts)]),
            np.concatenate([np.zeros((0, 2), np.float32), *(part.points for part in parts)]),
            np.concatenate([np.zeros((0, 4), np.int64), *(part.crops for part in parts)]),
        )

    def pack(self, size: tuple[int, int]) -> RLEMasks:
        """Return the masks for a partitioner, scored by predicted IoU."""
        return RLEMasks.from_runs(self.runs, size, self.ious)


def mask_boxes(masks: Tensor) -> Tensor:
    """First and last column and row of each mask, inclusive; zeros for an empty one.

    Parameters
    ----------
    masks : (K, H, W) bool

    Returns
    -------
    (K, 4) int64
        x0, y0, x1, y1.

    Examples
    --------
    >>> mask_boxes(torch.eye(3, dtype=torch.bool)[None, 1:]).tolist()
    [[1, 0, 2, 1]]
    """
    sides: list[Tensor] = []
    for filled in (masks.any(1), masks.any(2)):
        last = filled.shape[1] - 1
        sides += [filled.int().argmax(1), last - filled.flip(1).int().argmax(1)]
    boxes = torch.stack([sides[0], sides[2], sides[1], sides[3]], 1)
    return boxes * masks.flatten(1).any(1)[:, None]


def mask_runs(
    masks: Tensor, crop: tuple[int, int, int, int], size: tuple[int, ...]
) -> list[NDArray[np.int32]]:
    """Run lengths of masks of a crop, in the whole image; only the turns leave the device.

    Parameters
    ----------
    masks : (K, h, w) bool
        Of the crop.
    crop : (int, int, int, int)
        x0, y0, x1, y1, half-open; (h, w) is its size.
    size : (H, W)
        Of the image.

    Returns
    -------
    list of (R,) int32
        Column by column, outside first.

    Examples
    --------
    >>> mask_runs(torch.ones(1, 1, 1, dtype=torch.bool), (1, 0, 2, 1), (1, 3))
    [array([1, 1, 1], dtype=int32)]
    """
    x0, y0, x1, y1 = crop
    padding = (x0, size[1] - x1, y0, size[0] - y1)
    flat = torch.nn.functional.pad(masks, padding).transpose(1, 2).flatten(1)
    # Outside before the first pixel: a mask that begins inside turns there.
    turns_at = torch.cat([flat[:, :1], flat[:, 1:] != flat[:, :-1]], dim=1)
    owner, turn = torch.nonzero(turns_at).cpu().numpy().T
    ends = np.searchsorted(owner, np.arange(len(masks) + 1))
    runs: list[NDArray[np.int32]] = []
    for i in range(len(masks)):
        turns = turn[ends[i] : ends[i + 1]]
        runs.append(np.diff(np.concatenate([[0], turns, [flat.shape[1]]])).astype(np.int32))
    return runs
