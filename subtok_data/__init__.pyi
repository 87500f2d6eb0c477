from .batch import PixelConfig as PixelConfig, validate_batch as validate_batch
from .boundary import BoundaryModel as BoundaryModel
from .data import (
    BatchPlan as BatchPlan,
    ImageFiles as ImageFiles,
    MixedDataset as MixedDataset,
    PromptColumns as PromptColumns,
    RegionDataset as RegionDataset,
    SubobjectCollator as SubobjectCollator,
    SubobjectDataset as SubobjectDataset,
    SubobjectIterableDataset as SubobjectIterableDataset,
    SubobjectLoader as SubobjectLoader,
)
from .errors import (
    SampleError as SampleError,
    SubtokError as SubtokError,
    WorkerCrashError as WorkerCrashError,
)
from .imagefree import ImageFreeDataset as ImageFreeDataset
from .integrations import SubobjectProcessor as SubobjectProcessor
from .nn import TokenEmbedding as TokenEmbedding, merge_visual_tokens as merge_visual_tokens
from .segment import Prompts as Prompts, watershed_tokens as watershed_tokens
from .segmenters import (
    EfficientSAMSegmenter as EfficientSAMSegmenter,
    EPOCSegmenter as EPOCSegmenter,
    PanopticSegmenter as PanopticSegmenter,
    PatchSegmenter as PatchSegmenter,
    PromptedSegmenter as PromptedSegmenter,
    SAMEdgeSegmenter as SAMEdgeSegmenter,
    SAMSegmenter as SAMSegmenter,
    SuperpixelSegmenter as SuperpixelSegmenter,
)
from .text import RegionText as RegionText, TextConfig as TextConfig
from .tokenized_image import TokenizedImage as TokenizedImage
from .tokenizer import SubobjectTokenizer as SubobjectTokenizer

__version__: str
