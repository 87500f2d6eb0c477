from .base import (
    Component as Component,
    Evidence as Evidence,
    PendingInference as PendingInference,
    Prompter as Prompter,
    PrompterLike as PrompterLike,
    ReadyInference as ReadyInference,
    Segmenter as Segmenter,
    SegmenterLike as SegmenterLike,
    as_prompter as as_prompter,
    as_segmenter as as_segmenter,
)
from .classical import PatchSegmenter as PatchSegmenter, SuperpixelSegmenter as SuperpixelSegmenter
from .epoc import EPOCSegmenter as EPOCSegmenter
from .panoptic import PanopticSegmenter as PanopticSegmenter
from .prompted import PromptedSegmenter as PromptedSegmenter
from .registry import (
    PROMPTERS as PROMPTERS,
    SEGMENTERS as SEGMENTERS,
    build_prompter as build_prompter,
    build_segmenter as build_segmenter,
    build_without_weights as build_without_weights,
)
from .sam import (
    DEFAULT_OPTIONS as DEFAULT_OPTIONS,
    EfficientSAMPrompter as EfficientSAMPrompter,
    EfficientSAMSegmenter as EfficientSAMSegmenter,
    GenerationOptions as GenerationOptions,
    PointDecoder as PointDecoder,
    SAMEdgeSegmenter as SAMEdgeSegmenter,
    SAMPrompter as SAMPrompter,
    SAMSegmenter as SAMSegmenter,
    generate_masks as generate_masks,
)
