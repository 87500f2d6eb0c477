from .cursor import TokenCursor as TokenCursor, TokenFinder as TokenFinder
from .fsspec_storage import FsspecStorage as FsspecStorage, open_storage as open_storage
from .layout import (
    StoreMeta as StoreMeta,
    default_shard_rows as default_shard_rows,
    shard_name as shard_name,
)
from .progress import Journal as Journal, ShardReport as ShardReport
from .reader import StoredTokens as StoredTokens, open_tokens as open_tokens
from .row import StoredRow as StoredRow, TokenMaps as TokenMaps
from .shard import ShardInfo as ShardInfo, ShardWriter as ShardWriter
from .shard_reader import ShardReader as ShardReader
from .storage import (
    LocalStorage as LocalStorage,
    Storage as Storage,
    writer_name as writer_name,
)
from .writer import (
    StoreStatus as StoreStatus,
    TokenWriter as TokenWriter,
    row_sums as row_sums,
)
