from .coco import CocoRegions as CocoRegions, PanopticRegions as PanopticRegions
from .columns import RegionColumns as RegionColumns
from .refcoco import ReferringRegions as ReferringRegions
from .visual_genome import VisualGenomeRegions as VisualGenomeRegions
