"""Records: what comes back, what is refused, and how much memory a crafted one can take."""

from __future__ import annotations

import json
import struct
import tracemalloc
import zlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from subtok_data.errors import StoreError
from subtok_data.token_record import decode_record, encode_record, record_size

maps = st.sampled_from([np.int16, np.int32]).flatmap(
    lambda dtype: arrays(dtype, array_shapes(min_dims=2, max_dims=2, max_side=20))
)
fields = st.dictionaries(
    st.text(min_size=1, max_size=5),
    st.sampled_from([np.int64, np.float32, np.uint8, np.bool_]).flatmap(
        lambda dtype: arrays(dtype, array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=5))
    ),
    max_size=3,
)


@given(maps, fields)
def test_records_round_trip(token_map, token_fields):
    record = encode_record(token_map, token_fields)
    found, found_fields = decode_record(record)
    assert found.dtype == token_map.dtype
    np.testing.assert_array_equal(found, token_map)
    assert list(found_fields) == list(token_fields)
    for name, values in token_fields.items():
        assert found_fields[name].dtype == values.dtype
        np.testing.assert_array_equal(found_fields[name], values)
    found[...] = 0  # writeable, as torch asks
    assert record_size(record) == token_map.shape
    assert encode_record(token_map, token_fields) == record


@given(st.data())
def test_any_flipped_byte_is_noticed(data):
    token_map = np.repeat(np.arange(12, dtype=np.int16), 32).reshape(24, 16)
    record = bytearray(encode_record(token_map, {"class": np.arange(12)}))
    place = data.draw(st.integers(0, len(record) - 1))
    record[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(StoreError, match="damaged"):
        decode_record(bytes(record))


@pytest.mark.parametrize("record", [b"", b"nothing", bytes(16), bytes(100)])
def test_what_is_no_record_is_refused(record):
    with pytest.raises(StoreError, match="damaged"):
        decode_record(record)


def test_a_cut_record_is_refused():
    record = encode_record(np.arange(400, dtype=np.int32).reshape(20, 20))
    for length in range(len(record)):
        with pytest.raises(StoreError, match="damaged"):
            decode_record(record[:length])


@pytest.mark.parametrize(
    ("token_map", "token_fields"),
    [
        (np.zeros((4, 4), np.int64), {}),
        (np.zeros(4, np.int16), {}),
        (np.zeros((4, 4), ">i2"), {}),
        (np.zeros((4, 4), np.int16), {"names": np.array(["a"])}),
        (np.zeros((4, 4), np.int16), {"objects": np.array([None])}),
    ],
)
def test_what_cannot_be_stored_is_refused(token_map, token_fields):
    with pytest.raises(ValueError, match="cannot be stored"):
        encode_record(token_map, token_fields)


def crafted(height, width, raw, fields=None):
    """A record whose checksum fits, whatever it says."""
    names = b"" if fields is None else json.dumps(fields).encode()
    compressed = pa.Codec("zstd").compress(raw, asbytes=True)
    body = struct.pack("<BBIIH", 2, 0, height, width, len(names)) + names + compressed
    return struct.pack("<I", zlib.crc32(body)) + body


@pytest.mark.parametrize(
    "record",
    [
        crafted(69_000, 69_000, bytes(10)),  # 9.6 GB
        crafted(2**32 - 1, 2**32 - 1, bytes(10)),
        crafted(8, 8, bytes(128), {"a": ["<i8", [10**10]]}),
        crafted(8, 8, bytes(128), {"a": ["<i8", [-(10**10), -1]]}),
        crafted(8, 8, bytes(128), {"a": ["S999999999", [1]]}),
        crafted(8, 8, bytes(128), {"a": ["O", [1]]}),
        crafted(8, 8, bytes(128), {str(n): ["<i8", [2**22]] for n in range(100)}),
        crafted(8, 8, bytes(1 << 27)),  # 128 MB behind a header of 128 bytes
        crafted(8, 8, bytes(100)),
        crafted(8, 8, bytes(128), [1]),
        crafted(8, 8, bytes(128), {"a": 1}),
        crafted(0, 8, b""),
    ],
)
def test_crafted_records_take_no_memory(record):
    tracemalloc.start()
    try:
        with pytest.raises(StoreError):
            decode_record(record)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 22


def test_maps_above_the_limit_are_refused():
    record = encode_record(np.zeros((30, 40), np.int16))
    assert decode_record(record, max_pixels=1200)[0].shape == (30, 40)
    with pytest.raises(StoreError, match="30 x 40 pixels, the limit is 1199"):
        decode_record(record, max_pixels=1199)
