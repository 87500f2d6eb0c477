"""Segmenters: what joins evidence from a device with a partition made on the CPU.

Every way of cutting an image into tokens is the same two steps. ``infer`` runs batched, in the main
process, where the device is, and gives named numpy arrays per image; the ``partitioner`` turns them
into a :class:`~subtok_data.segment.Partition` in worker processes that never import
torch. Budget, order, batch, loader and benchmarks know only this protocol.
"""

from __future__ import annotations

from typing import Any

from subtok_data.segmenters.classical import PatchSegmenter, SuperpixelSegmenter
from subtok_data.segmenters.epoc import EPOCSegmenter
from subtok_data.segmenters.panoptic import PanopticSegmenter
from subtok_data.segmenters.prompted import PromptedSegmenter
from subtok_data.segmenters.sam import (
    EfficientSAMPrompter,
    EfficientSAMSegmenter,
    SAMEdgeSegmenter,
    SAMPrompter,
    SAMSegmenter,
)

__all__ = ["PROMPTERS", "SEGMENTERS"]
SEGMENTERS: dict[str, Any] = {
    cls.name: cls
    for cls in (
        EPOCSegmenter,
        EfficientSAMSegmenter,
        PanopticSegmenter,
        PatchSegmenter,
        PromptedSegmenter,
        SAMEdgeSegmenter,
        SAMSegmenter,
        SuperpixelSegmenter,
    )
}
"""Segmenters by the name that stands in a saved configuration."""

PROMPTERS: dict[str, Any] = {cls.name: cls for cls in (EfficientSAMPrompter, SAMPrompter)}
"""Prompters by the name that stands in a saved configuration."""
