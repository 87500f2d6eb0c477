from .cache import (
    CacheInfo as CacheInfo,
    clear_cache as clear_cache,
    compact_cache as compact_cache,
    describe_cache as describe_cache,
)
from .collation import PendingBatch as PendingBatch, SubobjectCollator as SubobjectCollator
from .dataloader_workers import (
    WorkerStart as WorkerStart,
    shared_epoch as shared_epoch,
    worker_start_method as worker_start_method,
)
from .datasets import (
    ImageFiles as ImageFiles,
    LargeScaleJitter as LargeScaleJitter,
    MixedDataset as MixedDataset,
    PromptColumns as PromptColumns,
    SubobjectDataset as SubobjectDataset,
    SubobjectIterableDataset as SubobjectIterableDataset,
    TextSafeHorizontalFlip as TextSafeHorizontalFlip,
    open_images as open_images,
)
from .loader import (
    AccelerateState as AccelerateState,
    BatchPlan as BatchPlan,
    LoaderStats as LoaderStats,
    ResumableDataLoader as ResumableDataLoader,
    SubobjectBatchSampler as SubobjectBatchSampler,
    SubobjectLoader as SubobjectLoader,
    rank_and_world_size as rank_and_world_size,
)
from .position import LoaderState as LoaderState
from .regions import (
    CocoRegions as CocoRegions,
    PanopticRegions as PanopticRegions,
    ReferringRegions as ReferringRegions,
    RegionColumns as RegionColumns,
    RegionDataset as RegionDataset,
    Regions as Regions,
    VisualGenomeRegions as VisualGenomeRegions,
)
from .store import StoredTokens as StoredTokens, TokenWriter as TokenWriter
from .tokenize import (
    Engine as Engine,
    ExportReport as ExportReport,
    RayEngine as RayEngine,
    TokenizeReport as TokenizeReport,
    check_tokens as check_tokens,
    export_panoptic as export_panoptic,
    tokenize_dataset as tokenize_dataset,
    verify_tokens as verify_tokens,
)
