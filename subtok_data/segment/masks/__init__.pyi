from .cleanup import clean_masks as clean_masks
from .coco import label_runs as label_runs, segmentation_runs as segmentation_runs
from .fill import (
    FillRules as FillRules,
    fill_parts as fill_parts,
    pick as pick,
    read_cost_map as read_cost_map,
)
from .overlap import match_regions as match_regions, measure_overlaps as measure_overlaps
from .rle import RLEMasks as RLEMasks, mask_box as mask_box
from .spans import Spans as Spans, join_spans as join_spans
