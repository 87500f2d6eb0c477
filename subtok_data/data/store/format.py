"""Layout of a folder of tokens: Arrow shards of compressed records, an index, and what made them.

``tokens.json`` has format version, configuration and its hash; ``tokens-00000.arrow`` … one row per
dataset row, in order; ``index.parquet`` counts, sizes and errors without the records. A shard
appears whole or not at all, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from subtok_data.errors import SubtokError

__all__ = [
    "INDEX",
    "META",
    "SCHEMA",
    "STORE_VERSION",
    "decode_record",
    "encode_record",
    "open_shard",
    "shard_file",
]

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


def encode_record(
    token_map: NDArray[Any], token_fields: Mapping[str, NDArray[Any]] | None = None
) -> bytes:
    """Compress a token map.

    Parameters
    ----------
    token_map : (H, W) int16 or int32 ndarray
        Token of each pixel.
    token_fields : mapping of str to (N, …) ndarray, optional
        Values per token that travel along.

    Returns
    -------
    bytes

    Examples
    --------
    >>> token_map = np.repeat(np.arange(4, dtype=np.int16), 256).reshape(32, 32)
    >>> record = encode_record(token_map)
    >>> len(record) < 150, bool((decode_record(record)[0] == token_map).all())
    (True, True)
    """
    rows = np.ascontiguousarray(token_map)
    steps = rows.copy()
    steps[1:] ^= rows[:-1]
    fields = {name: np.ascontiguousarray(values) for name, values in (token_fields or {}).items()}
    header = {
        "shape": list(rows.shape),
        "dtype": rows.dtype.str,
        "fields": {name: [values.dtype.str, list(values.shape)] for name, values in fields.items()},
    }
    values = [steps.tobytes(), *(values.tobytes() for values in fields.values())]
    return zlib.compress(b"".join([json.dumps(header).encode(), b"\n", *values]), 6)


def decode_record(record: bytes) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """Restore a token map and its fields; the inverse of :func:`encode_record`.

    Raises
    ------
    SubtokError
        If the record is damaged.
    """
    try:
        head, raw = zlib.decompress(record).split(b"\n", 1)
        header = json.loads(head)
        height, width = header["shape"]
        steps = np.frombuffer(raw, header["dtype"], height * width).reshape(height, width)
        token_map = np.bitwise_xor.accumulate(steps, axis=0)
        fields: dict[str, NDArray[Any]] = {}
        offset = steps.nbytes
        for name, (dtype, shape) in header["fields"].items():
            values = np.frombuffer(raw, dtype, math.prod(shape), offset)
            fields[name] = values.reshape(shape).copy()
            offset += fields[name].nbytes
    except (ValueError, KeyError, TypeError, zlib.error) as error:
        raise SubtokError(
            f"a stored token map of {len(record)} bytes is damaged ({error}); delete its shard and "
            "run `subtok tokenize` again: it makes only what is missing"
        ) from error
    return token_map, fields
