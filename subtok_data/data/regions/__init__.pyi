from .readers import (
    CocoRegions as CocoRegions,
    PanopticRegions as PanopticRegions,
    ReferringRegions as ReferringRegions,
    RegionColumns as RegionColumns,
    VisualGenomeRegions as VisualGenomeRegions,
)
from .region_dataset import RegionDataset as RegionDataset
from .regions import Regions as Regions
