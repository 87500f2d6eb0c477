from .folder import (
    CacheInfo as CacheInfo,
    SegmentsInfo as SegmentsInfo,
    clear_cache as clear_cache,
    compact_cache as compact_cache,
    describe_cache as describe_cache,
)
from .index import SegmentIndex as SegmentIndex
from .reader import CacheReader as CacheReader
from .token_cache import TokenCache as TokenCache
from .writer import SegmentWriter as SegmentWriter
