from .dataset import ImageFreeDataset as ImageFreeDataset
from .loader import ImageFreeLoader as ImageFreeLoader
from .regions import (
    DrawnRegions as DrawnRegions,
    nearest_index as nearest_index,
    resize_nearest as resize_nearest,
)
from .sources import (
    GridSource as GridSource,
    RegionSource as RegionSource,
    StoredSource as StoredSource,
)
from .words import CategoryWords as CategoryWords
