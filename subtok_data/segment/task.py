"""The work on one image: partition, budget, order, geometry, and the tokens of its prompts."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from subtok_data.arguments import check_count
from subtok_data.segment.budget import Budget, apply_budget
from subtok_data.segment.geometry import Order, Segmented, arrange, check_order
from subtok_data.segment.masks import match_regions
from subtok_data.segment.partition import Evidence, Partitioner, as_partitioner
from subtok_data.segment.partitioners import PromptedPartitioner
from subtok_data.segment.prompts import Prompts

__all__ = ["SegmentTask", "segment_image", "warn_of_shortfall"]

_NO_LIMITS = Budget()


@dataclass(frozen=True)
class SegmentTask:
    """Options for segmenting images: small, picklable, hashable, free of torch.

    Parameters
    ----------
    partitioner : Partitioner
        From evidence to partition; any callable that
        :func:`~subtok_data.segment.as_partitioner` takes.
    budget : Budget, optional
        Limits on the number of tokens; none by default.
    order : {"area", "raster"}
        Order of the tokens.
    shape_size : int, optional
        Sample each token's shape on a grid of this side.

    Raises
    ------
    ConfigError
        The order is unknown, ``shape_size`` below 1, the partitioner has another control of
        granularity than the budget, or no cost map to measure ``budget.strength`` on.
    """

    partitioner: Partitioner
    budget: Budget = _NO_LIMITS
    order: Order = "area"
    shape_size: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "partitioner", as_partitioner(self.partitioner))
        check_order(self.order)
        check_count("shape_size", self.shape_size)
        self.refined()  # a contradiction is refused here, not in a worker

    @property
    def needs_image(self) -> bool:
        """Whether tokens may have to be merged by colour."""
        return self.budget.merges and not self.partitioner.has_cost_map

    def refined(self) -> Partitioner:
        """Return the partitioner, fine enough for ``num_tokens`` or ``strength`` of the budget."""
        if self.budget.num_tokens is not None:
            return self.partitioner.for_num_tokens(self.budget.num_tokens)
        if self.budget.strength is not None:
            return self.partitioner.for_strength(self.budget.strength)
        return self.partitioner


def segment_image(
    task: SegmentTask,
    evidence: Evidence,
    size: tuple[int, int],
    image: NDArray[np.uint8] | None = None,
) -> Segmented:
    """Segment one image into tokens.

    Parameters
    ----------
    task : SegmentTask
        Partitioner, budget and order.
    evidence : mapping of str to array
        What the partitioner reads. Prompts among it
        (:meth:`~subtok_data.segment.Prompts.to_evidence`) are matched with the tokens.
    size : (H, W)
        Size of the image in pixels.
    image : (H, W, 3) uint8, optional
        Pixels, for merging by colour; used only if the task needs them. ``evidence["image"]``
        goes before.

    Returns
    -------
    Segmented

    Raises
    ------
    ValueError
        Evidence that the partitioner cannot use, or a partition of another size than the image.

    Examples
    --------
    >>> from subtok_data.segment import GridPartitioner
    >>> segment_image(SegmentTask(GridPartitioner(patch=16)), {}, (32, 48)).num_tokens
    6
    """
    if image is not None and task.needs_image and "image" not in evidence:
        evidence = {**evidence, "image": image}
    partitioner = task.refined()
    prompts = Prompts.from_evidence(evidence)
    if isinstance(partitioner, PromptedPartitioner):
        partition = partitioner.partition(evidence, size, prompts)
    else:
        partition = partitioner(evidence, size)
    if partition.token_map.shape != tuple(size):
        raise ValueError(
            f"{partitioner.name} gave a partition of {partition.token_map.shape} pixels: expected "
            f"{tuple(size)}; the evidence must have the size of the image"
        )
    budget = task.budget
    partition = apply_budget(partition, budget, evidence.get("image"))
    segmented = arrange(partition, task.order, shape_size=task.shape_size, overwrite=True)
    if budget.num_tokens is not None:
        shortfall = max(budget.num_tokens - segmented.num_tokens, 0)
        segmented = replace(segmented, shortfall=shortfall)
    if prompts is None:
        return segmented
    matched = match_regions(
        segmented.token_map, segmented.num_tokens, prompts.regions(), segmented.geometry.areas
    )
    return replace(segmented, prompt_tokens=matched)


def warn_of_shortfall(short: int, images: int, num_tokens: int | None) -> None:
    """Warn of images that have fewer tokens than asked for, unless there are none.

    Parameters
    ----------
    short : int
        How many there are.
    images : int
        Of so many.
    num_tokens : int or None
        Tokens asked for.
    """
    if short:
        warnings.warn(
            f"{short:,} of {images:,} images have fewer tokens than num_tokens={num_tokens}: they "
            "are too flat for more, or min_area joined them",
            UserWarning,
            stacklevel=4,
        )
