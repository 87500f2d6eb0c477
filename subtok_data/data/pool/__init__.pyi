from .base import SegmentJob as SegmentJob, SegmentPool as SegmentPool
from .executors import EXECUTORS as EXECUTORS, make_pool as make_pool
from .local import InlineSegmentPool as InlineSegmentPool
from .process import ProcessSegmentPool as ProcessSegmentPool
