"""Rows are found by the image that they were made from, in stores of several shards."""

from __future__ import annotations

import hashlib
import pickle

import numpy as np
import pytest
from helpers.stores import store_rows

from subtok_data.data import StoredTokens
from subtok_data.data.store import StoredRow, TokenCursor, TokenFinder, cursor
from subtok_data.errors import SampleError, StoreError

ROWS = 60


def key_of(number):
    return hashlib.sha256(str(number).encode()).digest()[:16]


@pytest.fixture
def folder(tmp_path):
    rows = [
        StoredRow.of(n, [np.zeros((2, 2), np.int16)], path=f"{n}.png", key=key_of(n))
        for n in range(ROWS)
    ]
    store_rows(tmp_path / "t", rows, shard_rows=16)
    return tmp_path / "t"


@pytest.fixture(params=[3, 1 << 16], ids=["scan first", "table"])
def near(request, monkeypatch):
    """How far neighbours are looked at before a table is made, and how large is small."""
    monkeypatch.setattr(cursor, "_NEAR", request.param)
    return request.param


@pytest.mark.parametrize("seed", range(3))
def test_any_row_is_found_from_anywhere(folder, near, seed):
    random = np.random.default_rng(seed)
    finder = TokenFinder(StoredTokens(folder), ROWS)
    for number in random.integers(0, ROWS, 200).tolist():
        expected = int(random.integers(0, ROWS + 20))
        assert finder.at(expected, [key_of("other"), key_of(number)]).index == number
    assert pickle.loads(pickle.dumps(finder)).at(0, [key_of(50)]).index == 50


@pytest.mark.parametrize("seed", range(3))
def test_a_stream_is_followed_where_it_jumps(folder, near, seed):
    random = np.random.default_rng(seed)
    reader = TokenCursor(StoredTokens(folder))
    for _ in range(20):
        start, stop = sorted(random.integers(0, ROWS, 2).tolist())
        for number in range(start, stop):
            assert reader.next([key_of(number)]).index == number
        assert stop == start or reader.row == stop


def test_keys_that_begin_alike_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(cursor, "_NEAR", 1)
    keys = [bytes(8) + bytes([n]) * 8 for n in range(1, 9)]
    store_rows(tmp_path, [StoredRow.failed(n, "bad", key=key) for n, key in enumerate(keys)])
    finder = TokenFinder(StoredTokens(tmp_path))
    assert [finder.at(0, [key]).index for key in keys] == list(range(8))


@pytest.mark.parametrize("index", [5, ROWS - 1, ROWS, ROWS + 7])
def test_an_image_without_tokens_is_an_error_with_the_row_and_both_keys(folder, near, index):
    finder = TokenFinder(StoredTokens(folder), ROWS + 8)
    row = min(index, ROWS - 1)
    for _ in range(2):
        with pytest.raises(SampleError, match=f"of row {row}") as caught:
            finder.at(index, [key_of("other"), key_of("its pixels")])
        for key in (key_of(row), key_of("other")):
            assert key.hex() in str(caught.value)
        assert f"{ROWS} rows were tokenized, it has {ROWS + 8}" in str(caught.value)
        assert caught.value.index == index


def test_a_damaged_file_of_keys_gives_no_other_tokens(folder, near):
    content = bytearray((folder / "keys.bin").read_bytes())
    content[16 * 20 : 16 * 21], content[16 * 40 : 16 * 41] = key_of(40), key_of(20)
    (folder / "keys.bin").write_bytes(content)
    finder = TokenFinder(StoredTokens(folder))
    assert finder.at(20, [key_of(20)]).index == 20
    for _ in range(2):
        with pytest.raises(StoreError, match=r"keys\.bin is damaged"):
            finder.at(3, [key_of(20)])


def test_the_file_of_lengths_is_compared_with_its_checksum_once(folder):
    tokens = StoredTokens(folder)
    assert tokens.lengths().tolist() == [1] * ROWS
    (folder / "lengths.u2").write_bytes(bytes(2 * ROWS))
    assert len(tokens.lengths()) == ROWS
    with pytest.raises(StoreError, match=r"lengths\.u2 is damaged"):
        StoredTokens(folder).lengths()
