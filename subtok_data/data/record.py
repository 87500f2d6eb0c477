"""One stored token map: a compressed, lossless record of a few kilobytes.

A record is a JSON header line and the values, deflated together, so that the checksum of zlib
covers both. Labels repeat down the columns, so each row is stored as its XOR with the row above:
nearly all zeros, which deflate packs about forty times smaller than the map.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtok_data.errors import SubtokError

__all__ = ["decode_record", "encode_record"]


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
