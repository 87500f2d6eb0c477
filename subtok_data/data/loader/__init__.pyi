from .accelerate import AccelerateState as AccelerateState
from .batch_sampler import (
    BatchPlan as BatchPlan,
    SubobjectBatchSampler as SubobjectBatchSampler,
    rank_and_world_size as rank_and_world_size,
)
from .loader import SubobjectLoader as SubobjectLoader
from .resumable import ResumableDataLoader as ResumableDataLoader
from .stats import LoaderStats as LoaderStats
