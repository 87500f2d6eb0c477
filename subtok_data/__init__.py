"""Subobject tokens for vision-language models, as a PyTorch data loader.

The public names are imported on first use, so that ``subtok_data.segment``, which runs in worker
processes, starts without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from subtok_data.boundary.model import BoundaryModel
    from subtok_data.contract import validate_batch
    from subtok_data.data.collate import SubobjectCollator
    from subtok_data.data.dataset import SubobjectDataset
    from subtok_data.data.files import ImageFiles
    from subtok_data.data.loader import SubobjectLoader
    from subtok_data.data.mixture import MixedDataset
    from subtok_data.data.prompts import PromptColumns
    from subtok_data.data.regions import RegionDataset
    from subtok_data.data.sampler import BatchPlan
    from subtok_data.data.stream import SubobjectIterableDataset
    from subtok_data.errors import SampleError, SubtokError, WorkerCrashError
    from subtok_data.imagefree import ImageFreeDataset
    from subtok_data.nn import TokenEmbedding, merge_visual_tokens
    from subtok_data.pixels import PixelConfig
    from subtok_data.segment.prompts import Prompts
    from subtok_data.segment.watershed import watershed_tokens
    from subtok_data.segmenters import (
        EfficientSAMSegmenter,
        EPOCSegmenter,
        PanopticSegmenter,
        PatchSegmenter,
        PromptedSegmenter,
        SAMEdgeSegmenter,
        SAMSegmenter,
        SuperpixelSegmenter,
    )
    from subtok_data.text import TextConfig
    from subtok_data.text.regions import RegionText
    from subtok_data.tokenized import TokenizedImage
    from subtok_data.tokenizer import SubobjectTokenizer

__version__ = "0.1.0.dev0"

_HOME = {
    "BatchPlan": "subtok_data.data.sampler",
    "BoundaryModel": "subtok_data.boundary.model",
    "EPOCSegmenter": "subtok_data.segmenters",
    "EfficientSAMSegmenter": "subtok_data.segmenters",
    "ImageFiles": "subtok_data.data.files",
    "ImageFreeDataset": "subtok_data.imagefree",
    "MixedDataset": "subtok_data.data.mixture",
    "PanopticSegmenter": "subtok_data.segmenters",
    "PatchSegmenter": "subtok_data.segmenters",
    "PixelConfig": "subtok_data.pixels",
    "PromptColumns": "subtok_data.data.prompts",
    "PromptedSegmenter": "subtok_data.segmenters",
    "Prompts": "subtok_data.segment.prompts",
    "RegionDataset": "subtok_data.data.regions",
    "RegionText": "subtok_data.text.regions",
    "SAMEdgeSegmenter": "subtok_data.segmenters",
    "SAMSegmenter": "subtok_data.segmenters",
    "SampleError": "subtok_data.errors",
    "SubobjectCollator": "subtok_data.data.collate",
    "SubobjectDataset": "subtok_data.data.dataset",
    "SubobjectIterableDataset": "subtok_data.data.stream",
    "SubobjectLoader": "subtok_data.data.loader",
    "SubobjectTokenizer": "subtok_data.tokenizer",
    "SubtokError": "subtok_data.errors",
    "SuperpixelSegmenter": "subtok_data.segmenters",
    "TextConfig": "subtok_data.text",
    "TokenEmbedding": "subtok_data.nn",
    "TokenizedImage": "subtok_data.tokenized",
    "WorkerCrashError": "subtok_data.errors",
    "merge_visual_tokens": "subtok_data.nn",
    "validate_batch": "subtok_data.contract",
    "watershed_tokens": "subtok_data.segment.watershed",
}

__all__ = [
    "BatchPlan",
    "BoundaryModel",
    "EPOCSegmenter",
    "EfficientSAMSegmenter",
    "ImageFiles",
    "ImageFreeDataset",
    "MixedDataset",
    "PanopticSegmenter",
    "PatchSegmenter",
    "PixelConfig",
    "PromptColumns",
    "PromptedSegmenter",
    "Prompts",
    "RegionDataset",
    "RegionText",
    "SAMEdgeSegmenter",
    "SAMSegmenter",
    "SampleError",
    "SubobjectCollator",
    "SubobjectDataset",
    "SubobjectIterableDataset",
    "SubobjectLoader",
    "SubobjectTokenizer",
    "SubtokError",
    "SuperpixelSegmenter",
    "TextConfig",
    "TokenEmbedding",
    "TokenizedImage",
    "WorkerCrashError",
    "merge_visual_tokens",
    "validate_batch",
    "watershed_tokens",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
