"""Shards: plain Parquet files whose every byte is checked, read row by row."""

from __future__ import annotations

import io
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from subtok_data.data.store import (
    LocalStorage,
    ShardInfo,
    ShardReader,
    ShardWriter,
    StoredRow,
    shard as shard_file,
)
from subtok_data.errors import StoreError

NAME = "data/part=000/tokens-000003.parquet"


def rows_of(start, count, seed=0):
    """Rows with none, one or several images, errors among them."""
    random = np.random.default_rng(seed)
    rows = []
    for index in range(start, start + count):
        kind = index % 5
        if kind == 4:
            rows.append(StoredRow.failed(index, f"bad {index}", path=f"{index}.png", key=bytes(16)))
            continue
        maps = [
            random.integers(0, 9, random.integers(1, 30, 2)).astype(np.int16)
            for _ in range((1, 1, 2, 0)[kind])
        ]
        path = None if kind == 1 else f"folder/{index}.png"
        rows.append(StoredRow.of(index, maps, path=path, key=random.bytes(16)))
    return rows


def write(storage, rows, name=NAME):
    info = ShardInfo(3, rows[0].index if rows else 0, len(rows), "a1b2", "cpu", "float32", 4)
    with storage.create(name) as file:
        with ShardWriter(file, info) as writer:
            for row in rows:
                writer.add(row)
            writer.close()
    return info


@pytest.fixture
def storage(tmp_path):
    return LocalStorage(tmp_path)


@pytest.mark.parametrize("count", [0, 1, 7, 23])
@pytest.mark.parametrize("group_rows", [1, 4, 512])
def test_rows_come_back_at_random_and_in_order(storage, monkeypatch, count, group_rows):
    monkeypatch.setattr(shard_file, "GROUP_ROWS", group_rows)
    rows = rows_of(40, count)
    info = write(storage, rows)
    reader = ShardReader(storage, NAME)
    assert reader.info == info
    assert list(reader.rows()) == rows
    assert list(reader.rows(2, 9)) == rows[2:9]
    for place in np.random.default_rng(0).permutation(count).tolist():
        assert reader.row(place) == rows[place]
    reader.check()


def test_large_rows_make_smaller_row_groups(storage, monkeypatch):
    monkeypatch.setattr(shard_file, "_GROUP_BYTES", 2000)
    rows = rows_of(0, 40)
    write(storage, rows)
    groups = pq.read_metadata(storage.local(NAME)).num_row_groups
    assert groups > 2
    assert list(ShardReader(storage, NAME).rows()) == rows


def test_a_shard_is_a_parquet_file_for_everybody(storage):
    rows = rows_of(0, 23)
    write(storage, rows)
    table = pq.read_table(storage.local(NAME), partitioning=None)
    assert table.column("records").to_pylist() == [list(row.records) for row in rows]
    assert table.column("key").to_pylist() == [row.key for row in rows]
    assert table.column("error").to_pylist() == [row.error for row in rows]


def test_the_same_rows_are_the_same_bytes(storage):
    write(storage, rows_of(0, 23))
    write(storage, rows_of(0, 23), "again")
    assert storage.read(NAME) == storage.read("again")


@pytest.fixture(scope="module")
def content():
    """Bytes of a shard of several row groups."""
    file = io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_file, "GROUP_ROWS", 8)
        with ShardWriter(file, ShardInfo(3, 0, 23, "a1b2", "cpu", "float32", 4)) as writer:
            for row in rows_of(0, 23):
                writer.add(row)
            writer.close()
    return file.getvalue()


def put(folder, content):
    path = folder / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return LocalStorage(folder)


def read_all(storage):
    reader = ShardReader(storage, NAME)
    reader.check()
    for row in reader.rows():
        row.decode()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_flipped_byte_is_a_named_error(tmp_path_factory, content, data):
    place = data.draw(st.integers(0, len(content) - 1))
    damaged = bytearray(content)
    damaged[place] ^= data.draw(st.integers(1, 255))
    storage = put(tmp_path_factory.mktemp("flip"), bytes(damaged))
    with pytest.raises(StoreError, match="tokens-000003.parquet is damaged") as caught:
        read_all(storage)
    assert "subtok tokenize" in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_reading_rows_of_a_damaged_shard_gives_them_or_a_named_error(
    tmp_path_factory, content, data
):
    place = data.draw(st.integers(0, len(content) - 1))
    damaged = bytearray(content)
    damaged[place] ^= data.draw(st.integers(1, 255))
    storage = put(tmp_path_factory.mktemp("flip"), bytes(damaged))
    wanted = rows_of(0, 23)
    try:
        reader = ShardReader(storage, NAME)
    except StoreError:
        return
    for number, row in enumerate(wanted):
        try:
            found = reader.row(number)
            maps = found.decode()
        except StoreError:
            continue
        assert found == row
        for (one, _), (other, _) in zip(maps, row.decode(), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_truncated_shard_is_a_named_error(tmp_path, content):
    for length in [*range(0, 200), *range(200, len(content), 97), len(content) - 1]:
        storage = put(tmp_path / str(length), content[:length])
        with pytest.raises(StoreError, match="is damaged"):
            read_all(storage)


@pytest.mark.parametrize("tail", [b"\0", b"PAR1", bytes(100)])
def test_a_shard_with_something_behind_it_is_a_named_error(tmp_path, content, tail):
    with pytest.raises(StoreError, match="is damaged"):
        read_all(put(tmp_path, content + tail))


def test_a_missing_shard_is_a_named_error(tmp_path):
    with pytest.raises(StoreError, match="tokens-000003.parquet is missing"):
        ShardReader(LocalStorage(tmp_path), NAME)


def test_other_parquet_files_are_no_shards(tmp_path):
    import pyarrow as pa

    (tmp_path / "data/part=000").mkdir(parents=True)
    pq.write_table(pa.table({"index": [1, 2]}), tmp_path / NAME)
    with pytest.raises(StoreError, match="no shard of tokens"):
        ShardReader(LocalStorage(tmp_path), NAME)


@pytest.mark.parametrize("order", [[0, 2], [1], [0, 0], [0, 1, 2, 3]])
def test_only_all_rows_in_order_make_a_shard(order):
    rows = rows_of(0, 4)

    def write_all():
        info = ShardInfo(0, 0, 3, "a1b2", "cpu", "float32", 4)
        with ShardWriter(io.BytesIO(), info) as writer:
            for number in order:
                writer.add(rows[number])
            writer.close()

    with pytest.raises(ValueError, match="in order: got|lacks the rows"):
        write_all()


# --- the folder ---------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_nothing(storage, tmp_path):
    def write_half():
        with storage.create("data/file") as file:
            file.write(b"half")
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        write_half()
    assert list((tmp_path / "data").iterdir()) == []


def test_few_files_stay_open(tmp_path):
    storage = LocalStorage(tmp_path, max_open=5)
    for number in range(30):
        with storage.create(str(number)) as file:
            file.write(bytes([number]))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for number in range(30):
            assert storage.read(str(number)) == bytes([number])
    assert len(os.listdir("/proc/self/fd")) - before <= 5


def test_unfinished_files_of_the_dead_are_cleaned_up(storage, tmp_path):
    from subtok_data.data.store.storage import writer_name

    host = writer_name().rsplit("-", 1)[0]
    dead = f".tokens.{host}-999999999-0.part"
    living = f".tokens.{host}-{os.getpid()}-0.part"
    elsewhere = ".tokens.another_host-1-0.part"
    for name in (dead, living, elsewhere, "tokens"):
        (tmp_path / name).write_bytes(b"")
    storage.clean("")
    assert sorted(os.listdir(tmp_path)) == sorted([living, elsewhere, "tokens"])
    os.utime(tmp_path / elsewhere, (0, 0))
    storage.clean("")
    assert sorted(os.listdir(tmp_path)) == sorted([living, "tokens"])
