from .edges import SAMEdgeSegmenter as SAMEdgeSegmenter
from .efficient_sam import (
    DEFAULT_OPTIONS as DEFAULT_OPTIONS,
    EfficientSAMPrompter as EfficientSAMPrompter,
    EfficientSAMSegmenter as EfficientSAMSegmenter,
)
from .mask_generation import (
    GenerationOptions as GenerationOptions,
    PointDecoder as PointDecoder,
    generate_masks as generate_masks,
    nan_error as nan_error,
)
from .prompter import SAMPrompter as SAMPrompter
from .segmenter import SAMSegmenter as SAMSegmenter
