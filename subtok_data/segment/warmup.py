"""Compilation of the usual kernels ahead of the first image."""

from __future__ import annotations

__all__ = ["warm_up"]


def warm_up() -> None:
    """Compile what tokens of a boundary map take, or load its machine code from the disk cache.

    Takes some seconds the first time on a machine, a fraction of one afterwards. Masks, prompts,
    shapes and label maps have kernels of their own, which are compiled when they are first used, as
    are all of them for images of more than 32,767 tokens. Of several processes one compiles, and
    the others wait for its code.

    Examples
    --------
    >>> warm_up()
    """
    import numpy as np

    from subtok_data.segment.budget import Budget
    from subtok_data.segment.task import SegmentTask, segment_image
    from subtok_data.segment.watershed import WatershedPartitioner

    evidence = {"boundary_map": np.array([[0, 9, 0, 9, 0]], np.uint8)}
    for partitioner, budget in (
        (WatershedPartitioner(), Budget(strength=0.4)),
        (WatershedPartitioner(0.01), Budget(max_tokens=2)),
    ):
        segment_image(SegmentTask(partitioner, budget), evidence, (1, 5))
