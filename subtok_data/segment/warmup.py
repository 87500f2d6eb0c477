"""Compiled loops over pixels, token pairs and merges.

Only these modules import numba, and the modules of :mod:`subtok_data.segment` import them on their
first use, so that describing a partition costs no compiler.
"""

from __future__ import annotations

__all__ = ["warm_up"]


def warm_up() -> None:
    """Compile every kernel, or load its machine code from the disk cache.

    Takes some seconds the first time on a machine, a fraction of one afterwards. Pictures that come
    later then do not wait for the compiler, except the first one of more than 32,767 tokens.

    Examples
    --------
    >>> warm_up()
    """
    import numpy as np

    from subtok_data.segment.budget import Budget, apply_budget
    from subtok_data.segment.geometry import arrange
    from subtok_data.segment.masks import RLEMasks
    from subtok_data.segment.partitioners import MaskPartitioner, PromptedPartitioner
    from subtok_data.segment.prompts import Prompts
    from subtok_data.segment.task import segment_image
    from subtok_data.segment.watershed import WatershedPartitioner

    levels = np.array([[0, 9, 0, 9, 0]], np.uint8)
    evidence = {"boundary_map": levels}
    for partitioner in (WatershedPartitioner(0.01), WatershedPartitioner(num_tokens=3)):
        partition = partitioner(evidence, (1, 5))
        arrange(apply_budget(partition, Budget(num_tokens=2)), shape_size=1)
    masks = RLEMasks.from_masks([levels == 0])
    MaskPartitioner()(masks.to_evidence(), masks.size)
    prompts = Prompts.of((1, 5), boxes=[[0, 0, 3, 1]])
    partitioner = PromptedPartitioner(WatershedPartitioner(0.01))
    segment_image(partitioner, {**evidence, **prompts.to_evidence()}, (1, 5))
