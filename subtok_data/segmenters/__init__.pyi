from .base import (
    AsyncSegmenter as AsyncSegmenter,
    Evidence as Evidence,
    PendingInference as PendingInference,
    Prompter as Prompter,
    Segmenter as Segmenter,
    takes_prompts as takes_prompts,
)
from .classical import PatchSegmenter as PatchSegmenter, SuperpixelSegmenter as SuperpixelSegmenter
from .epoc import EPOCSegmenter as EPOCSegmenter
from .panoptic import PanopticSegmenter as PanopticSegmenter
from .prompted import PromptedSegmenter as PromptedSegmenter
from .registry import SEGMENTERS as SEGMENTERS
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
