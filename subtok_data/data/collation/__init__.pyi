from .collator import SubobjectCollator as SubobjectCollator
from .in_progress import BatchInProgress as BatchInProgress, SampleInProgress as SampleInProgress
from .pending_batch import (
    PendingBatch as PendingBatch,
    RawBatch as RawBatch,
    RawSample as RawSample,
)
from .stages import BatchStages as BatchStages
from .worker import BatchOptions as BatchOptions, WorkerCollator as WorkerCollator
