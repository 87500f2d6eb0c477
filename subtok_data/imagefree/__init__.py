"""Training data for segmentation made of category words: no image is read, decoded or drawn."""

from __future__ import annotations

from subtok_data.imagefree.dataset import ImageFreeDataset
from subtok_data.imagefree.loader import ImageFreeLoader
from subtok_data.imagefree.regions import DrawnRegions, nearest_index, resize_nearest
from subtok_data.imagefree.sources import GridSource, RegionSource, StoredSource
from subtok_data.imagefree.words import CategoryWords

__all__ = [
    "CategoryWords",
    "DrawnRegions",
    "GridSource",
    "ImageFreeDataset",
    "ImageFreeLoader",
    "RegionSource",
    "StoredSource",
    "nearest_index",
    "resize_nearest",
]
