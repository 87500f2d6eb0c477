"""One token map as bytes: the record of stored tokens, of caches, of columns of tokens.

A record is a checksum, a header that says how much memory the map takes, and the map, each row XOR
the one above, compressed with zstd. So damage is noticed, and nothing is allocated before its size
is known to be sensible.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from subtok_data.errors import StoreError
from subtok_data.images import DEFAULT_MAX_PIXELS

__all__ = ["decode_record", "encode_record", "record_size"]

_VERSION = 2
_LEVEL = 3
_CRC = struct.Struct("<I")
_HEADER = struct.Struct("<BBIIH")  # version, dtype, height, width, bytes of the field names
_DTYPES = (np.dtype("<i2"), np.dtype("<i4"))
_MAX_FIELD_BYTES = 1 << 26


def encode_record(
    token_map: NDArray[Any], token_fields: Mapping[str, NDArray[Any]] | None = None
) -> bytes:
    """Compress a token map.

    Parameters
    ----------
    token_map : (H, W) int16 or int32 ndarray
        Token of each pixel.
    token_fields : mapping of str to (N, …) ndarray, optional
        Values per token that travel along: integers, floats or bools.

    Returns
    -------
    bytes
        The same for the same values, with one version of zstd.

    Raises
    ------
    ValueError
        If the map is not two-dimensional or of another dtype, or a field holds other values.

    Examples
    --------
    >>> token_map = np.repeat(np.arange(4, dtype=np.int16), 256).reshape(32, 32)
    >>> record = encode_record(token_map)
    >>> len(record) < 150, bool((decode_record(record)[0] == token_map).all())
    (True, True)
    """
    rows = np.ascontiguousarray(token_map)
    if rows.ndim != 2 or rows.dtype not in _DTYPES:
        raise ValueError(
            f"a token map of {rows.dtype} and shape {rows.shape} cannot be stored: give int16 or "
            "int32, (H, W)"
        )
    steps = rows.copy()
    steps[1:] ^= rows[:-1]
    fields = {name: np.ascontiguousarray(values) for name, values in (token_fields or {}).items()}
    described = {name: (values.dtype.str, list(values.shape)) for name, values in fields.items()}
    for name, (dtype, shape) in described.items():
        if _field_bytes(dtype, shape) is None:
            raise ValueError(
                f"field {name!r} of {dtype} and shape {tuple(shape)} cannot be stored: give "
                f"integers, floats or bools, at most {_MAX_FIELD_BYTES >> 20} MiB"
            )
    names = json.dumps(described).encode() if described else b""
    height, width = rows.shape
    header = _HEADER.pack(_VERSION, _DTYPES.index(rows.dtype), height, width, len(names))
    raw = b"".join([steps.tobytes(), *(values.tobytes() for values in fields.values())])
    body = header + names + _codec().compress(raw, asbytes=True)
    return _CRC.pack(zlib.crc32(body)) + body


def decode_record(
    record: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """Restore a token map and its fields; the inverse of :func:`encode_record`.

    Parameters
    ----------
    record : bytes
        What :func:`encode_record` returned.
    max_pixels : int, optional
        Larger maps are refused before memory is taken for them.

    Returns
    -------
    token_map : (H, W) int16 or int32 ndarray
        Writeable.
    token_fields : dict of str to ndarray

    Raises
    ------
    StoreError
        If the record is damaged, or claims a map of more than ``max_pixels``.
    """
    dtype, (height, width), described, begin = _read_header(record)
    if height * width > max_pixels:
        raise StoreError(
            f"a stored token map claims {height} x {width} pixels, the limit is {max_pixels}: it "
            "is refused, since no tokenizer of this configuration makes it"
        )
    nbytes = [_field_bytes(*field) for field in described.values()]
    map_bytes = height * width * dtype.itemsize
    total = map_bytes
    for one in nbytes:
        if one is None or total + one > map_bytes + _MAX_FIELD_BYTES:
            raise StoreError("a stored token map has fields that no tokenizer makes: refused")
        total += one
    try:
        raw = _codec().decompress(record[begin:], decompressed_size=total, asbytes=True)
        token_map = np.frombuffer(raw, dtype, height * width).reshape(height, width).copy()
        # Row by row: NumPy's accumulate over rows takes four times as long.
        for above, row in pairwise(token_map):
            row ^= above
        fields: dict[str, NDArray[Any]] = {}
        offset = map_bytes
        for name, (kind, shape) in described.items():
            values = np.frombuffer(raw, kind, math.prod(shape), offset)
            fields[name] = values.reshape(shape).copy()
            offset += fields[name].nbytes
    except (ValueError, OSError, pa.ArrowException) as error:
        raise _damaged(record, error) from error
    return token_map, fields


def record_size(record: bytes) -> tuple[int, int]:
    """Height and width of the map in a record, checked but not decompressed.

    Raises
    ------
    StoreError
        If the record is damaged.

    Examples
    --------
    >>> record_size(encode_record(np.zeros((30, 40), np.int16)))
    (30, 40)
    """
    return _read_header(record)[1]


def _read_header(
    record: bytes,
) -> tuple[np.dtype[Any], tuple[int, int], dict[str, tuple[str, list[int]]], int]:
    """Dtype, size, fields, and where the compressed values begin."""
    try:
        (crc,) = _CRC.unpack_from(record)
        if zlib.crc32(memoryview(record)[_CRC.size :]) != crc:
            raise ValueError("its checksum does not fit")
        version, dtype, height, width, names = _HEADER.unpack_from(record, _CRC.size)
        if version != _VERSION or dtype >= len(_DTYPES) or not height * width:
            raise ValueError(f"version {version}, dtype {dtype}, {height} x {width} pixels")
        begin = _CRC.size + _HEADER.size + names
        described: dict[str, tuple[str, list[int]]] = {}
        if names:
            found = json.loads(record[begin - names : begin])
            for name, (kind, shape) in found.items():
                described[name] = (kind, [int(side) for side in shape])
    except (ValueError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise _damaged(record, error) from error
    return _DTYPES[dtype], (height, width), described, begin


def _field_bytes(dtype: object, shape: list[int]) -> int | None:
    """Size of a field, None unless it is an array of numbers of a sensible size."""
    try:
        kind = np.dtype(cast("Any", dtype))
    except TypeError:
        return None
    if kind.kind not in "biuf" or kind.itemsize > 8 or min(shape, default=0) < 0:
        return None
    nbytes = math.prod(shape) * kind.itemsize
    return nbytes if nbytes <= _MAX_FIELD_BYTES else None


def _damaged(record: bytes, error: Exception) -> StoreError:
    return StoreError(
        f"a stored token map of {len(record)} bytes is damaged ({error}); run `subtok tokenize` "
        "again: it makes the shards that are missing or damaged anew"
    )


def _codec() -> Any:
    return pa.Codec("zstd", compression_level=_LEVEL)
