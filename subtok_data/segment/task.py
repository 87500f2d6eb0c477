"""What a segment worker is told once, and does for every image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtok_data.errors import ConfigError
from subtok_data.segment.budget import Budget, apply_budget
from subtok_data.segment.geometry import Order, Segmented, arrange, check_order
from subtok_data.segment.masks import match_regions
from subtok_data.segment.partition import Evidence, Partitioner
from subtok_data.segment.prompts import Prompts

__all__ = [
    "SegmentTask",
    "run_task",
    "segment_image",
]


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
        If the order is unknown, ``shape_size`` below 1, or the partitioner has a control of its own
        besides the budget's ``num_tokens``.
    """

    partitioner: Partitioner
    budget: Budget
    order: Order = "area"
    shape_size: int | None = None

    def __post_init__(self) -> None:
        check_order(self.order)
        if self.shape_size is not None and self.shape_size < 1:
            raise ConfigError(f"shape_size={self.shape_size}: give at least 1, or None")
        _for_budget(self.partitioner, self.budget)  # two controls are refused here, not in a worker

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


def segment_image(
    partitioner: Partitioner,
    evidence: Evidence,
    size: tuple[int, int],
    budget: Budget | None = None,
    order: Order = "area",
    shape_size: int | None = None,
) -> Segmented:
    """Cut one picture into tokens.

    Parameters
    ----------
    partitioner : Partitioner
        How to cut. For ``budget.num_tokens`` its ``for_num_tokens`` is used, where it has one.
    evidence : mapping of str to array
        What the partitioner reads. ``"image"``, (H, W, 3) uint8, also serves to merge tokens by
        colour where the partition has no cost map; prompts
        (:meth:`~subtok_data.segment.Prompts.to_evidence`) are matched with the tokens.
    size : (H, W)
        Size of the picture in pixels.
    budget : Budget, optional
        Limits on the tokens; none by default.
    order : {"area", "raster"}
        Order of the tokens.
    shape_size : int, optional
        Sample each token's shape to so many cells squared.

    Returns
    -------
    Segmented
        The tokens.

    Raises
    ------
    ValueError
        The partition does not have the size of the picture.

    Examples
    --------
    >>> from subtok_data.segment import GridPartitioner
    >>> segment_image(GridPartitioner(patch=16), {}, (32, 48)).num_tokens
    6
    """
    budget = budget or Budget()
    partitioner = _for_budget(partitioner, budget)
    partition = partitioner(evidence, size)
    if partition.token_map.shape != tuple(size):
        raise ValueError(
            f"{type(partitioner).__name__} cut a picture of {partition.token_map.shape} pixels: "
            f"expected {tuple(size)}; the evidence must have the size of the picture"
        )
    partition = apply_budget(partition, budget, evidence.get("image"))
    segmented = arrange(
        partition, order, shape_size=shape_size, requested=budget.num_tokens, overwrite=True
    )
    prompts = Prompts.from_evidence(evidence)
    if prompts is None:
        return segmented
    matched = match_regions(
        segmented.token_map, segmented.num_tokens, prompts.regions(), segmented.geometry.areas
    )
    return replace(segmented, prompt_tokens=matched)


def _for_budget(partitioner: Partitioner, budget: Budget) -> Partitioner:
    """Partitioner that is fine enough for the budget, where it can be."""
    refine = getattr(partitioner, "for_num_tokens", None)
    if budget.num_tokens is None or refine is None:
        return partitioner
    return refine(budget.num_tokens)
