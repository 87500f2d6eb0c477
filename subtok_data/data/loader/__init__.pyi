from .accelerate import AccelerateState as AccelerateState
from .batch_plan import BatchPlan as BatchPlan
from .batch_sampler import SubobjectBatchSampler as SubobjectBatchSampler
from .loader import SubobjectLoader as SubobjectLoader
from .ranks import rank_and_world_size as rank_and_world_size
from .resumable import ResumableDataLoader as ResumableDataLoader
from .stats import LoaderStats as LoaderStats
