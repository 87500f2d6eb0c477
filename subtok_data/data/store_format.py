"""Layout of a folder of tokens: Arrow shards of compressed records, an index, and what made them.

``tokens.json`` has format version, configuration and its hash; ``tokens-00000.arrow`` … one row per
dataset row, in order; ``index.parquet`` counts, sizes and errors without the records. A shard
appears whole or not at all, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

__all__ = ["INDEX", "META", "SCHEMA", "STORE_VERSION", "open_shard", "shard_file"]

STORE_VERSION = 1
META = "tokens.json"
INDEX = "index.parquet"
SCHEMA = pa.schema(
    [
        ("index", pa.int64()),
        ("path", pa.string()),
        ("num_visual_tokens", pa.list_(pa.int32())),
        ("sizes", pa.list_(pa.int32())),  # h, w of each map, one after the other
        ("error", pa.string()),
        ("records", pa.list_(pa.binary())),
    ]
)


def shard_file(folder: Path, number: int) -> Path:
    """File of one shard."""
    return folder / f"tokens-{number:05d}.arrow"


def open_shard(file: Path) -> Any:
    """Return a shard as an Arrow table that reads the file where it is used."""
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all()
