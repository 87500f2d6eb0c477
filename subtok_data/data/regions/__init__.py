"""Datasets whose rows have regions with texts."""

from __future__ import annotations

from subtok_data.data.regions.annotated import Regions
from subtok_data.data.regions.coco import CocoRegions, PanopticRegions
from subtok_data.data.regions.columns import RegionColumns
from subtok_data.data.regions.dataset import RegionDataset
from subtok_data.data.regions.refcoco import ReferringRegions
from subtok_data.data.regions.transforms import LargeScaleJitter, TextSafeHorizontalFlip
from subtok_data.data.regions.visual_genome import VisualGenomeRegions

__all__ = [
    "CocoRegions",
    "LargeScaleJitter",
    "PanopticRegions",
    "ReferringRegions",
    "RegionColumns",
    "RegionDataset",
    "Regions",
    "TextSafeHorizontalFlip",
    "VisualGenomeRegions",
]
