from .boundary_metrics import BASELINES as BASELINES
from .cutters import (
    CountCutter as CountCutter,
    FelzenszwalbCutter as FelzenszwalbCutter,
    PatchCutter as PatchCutter,
    SegmenterCutter as SegmenterCutter,
    SlicCutter as SlicCutter,
    StrengthCutter as StrengthCutter,
    ThresholdCutter as ThresholdCutter,
)
from .datasets import (
    AnnotatedSet as AnnotatedSet,
    read_bsds as read_bsds,
    read_label_maps as read_label_maps,
    read_panoptic as read_panoptic,
)
from .report import MapMaker as MapMaker, evaluate as evaluate, write_report as write_report
