"""Compilation of all kernels ahead of the first image."""

from __future__ import annotations

__all__ = ["warm_up"]


def warm_up() -> None:
    """Compile every kernel, or load its machine code from the disk cache.

    Takes some seconds the first time on a machine, a fraction of one afterwards. Of several
    processes that start together one compiles, and the others wait for its code. No later image
    waits for the compiler, except the first one of more than 32,767 tokens.

    Examples
    --------
    >>> warm_up()
    """
    import numpy as np

    from subtok_data.segment.budget import Budget, apply_budget
    from subtok_data.segment.geometry import arrange
    from subtok_data.segment.kernels import (
        compile_once,
        normalise_planes,
        relabel,
        split_planes,
    )
    from subtok_data.segment.masks import RLEMasks
    from subtok_data.segment.partitioners import MaskPartitioner, PromptedPartitioner
    from subtok_data.segment.prompts import Prompts
    from subtok_data.segment.task import SegmentTask, segment_image
    from subtok_data.segment.watershed import WatershedPartitioner

    with compile_once(relabel):
        boundary_map = np.array([[0, 9, 0, 9, 0]], np.uint8)
        evidence = {"boundary_map": boundary_map}
        for partitioner in (WatershedPartitioner(0.01), WatershedPartitioner(num_tokens=3)):
            partition = partitioner(evidence, (1, 5))
            arrange(apply_budget(partition, Budget(num_tokens=2)), shape_size=1)
        masks = RLEMasks.from_masks([boundary_map == 0])
        MaskPartitioner()(masks.to_evidence(), masks.size)
        prompts = Prompts.of((1, 5), boxes=[[0, 0, 3, 1]])
        task = SegmentTask(PromptedPartitioner(WatershedPartitioner(0.01)))
        segment_image(task, {**evidence, **prompts.to_evidence()}, (1, 5))
        pixel = np.zeros(3, np.uint8)
        ones = np.ones(3, np.float32)
        normalise_planes(pixel, 1, ones, ones, np.empty((3, 1, 1), np.float32))
        split_planes(pixel, 1, np.empty((3, 1, 1), np.uint8))
