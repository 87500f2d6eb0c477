from .boundary_metrics import BASELINES as BASELINES
from .cutters import (
    FelzenszwalbCutter as FelzenszwalbCutter,
    MergeCutter as MergeCutter,
    PatchCutter as PatchCutter,
    SegmenterCutter as SegmenterCutter,
    SlicCutter as SlicCutter,
    ThresholdCutter as ThresholdCutter,
)
from .datasets import (
    AnnotatedSet as AnnotatedSet,
    read_bsds as read_bsds,
    read_label_maps as read_label_maps,
    read_panoptic as read_panoptic,
)
from .report import MapMaker as MapMaker, evaluate as evaluate, write_report as write_report
