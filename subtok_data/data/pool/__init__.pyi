from .base import SegmentPool as SegmentPool
from .executors import EXECUTORS as EXECUTORS, make_pool as make_pool
from .local import InlineSegmentPool as InlineSegmentPool
