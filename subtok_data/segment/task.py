"""What a segment worker is told once, and does for every image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtok_data.errors import ConfigError
from subtok_data.segment.budget import Budget
from subtok_data.segment.order import Order, check_order
from subtok_data.segment.partition import Partitioner
from subtok_data.segment.pipeline import Segmented, segment_image

__all__ = ["SegmentTask", "Segmented", "run_task", "warm_up"]


@dataclass(frozen=True)
class SegmentTask:
    """How images are cut: small, picklable, hashable, free of torch.

    Parameters
    ----------
    partitioner : Partitioner
        From evidence to partition.
    budget : Budget
        Limits on the number of tokens.
    order : {"area", "raster"}
        Order of the tokens.
    shape_size : int, optional
        Sample each token's shape on a grid of this side.

    Raises
    ------
    ConfigError
        If the order is unknown or ``shape_size`` below 1.
    """

    partitioner: Partitioner
    budget: Budget
    order: Order = "area"
    shape_size: int | None = None

    def __post_init__(self) -> None:
        check_order(self.order)
        if self.shape_size is not None and self.shape_size < 1:
            raise ConfigError(f"shape_size={self.shape_size}: give at least 1, or None")

    @property
    def needs_image(self) -> bool:
        """Whether tokens may have to be merged by colour."""
        merges = self.budget.limit is not None or self.budget.min_area > 1
        return merges and not getattr(self.partitioner, "has_cost_map", False)


def run_task(
    task: SegmentTask,
    evidence: Mapping[str, NDArray[Any]],
    size: tuple[int, int],
    image: NDArray[np.uint8] | None = None,
) -> Segmented:
    """Cut one image as a task says.

    Parameters
    ----------
    task : SegmentTask
        How.
    evidence : mapping of str to array
        What the segmenter found.
    size : (int, int)
        Height and width in pixels.
    image : (H, W, 3) uint8 array, optional
        The picture, for merging by colour; used only if the task needs it.

    Returns
    -------
    Segmented
    """
    if image is not None and task.needs_image and "image" not in evidence:
        evidence = {**evidence, "image": image}
    return segment_image(task.partitioner, evidence, size, task.budget, task.order, task.shape_size)


def warm_up() -> None:
    """Compile, or load from the disk cache, everything a task may run."""
    from subtok_data.segment.kernels import warm_up as load_kernels

    load_kernels()
