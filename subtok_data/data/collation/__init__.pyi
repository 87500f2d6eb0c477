from .collator import SubobjectCollator as SubobjectCollator
from .in_progress import BatchInProgress as BatchInProgress, SampleInProgress as SampleInProgress
from .pending_batch import PendingBatch as PendingBatch, RawBatch as RawBatch
from .stages import infer as infer
