"""Reading a shard of stored tokens: any row, or all in order, each checked where it is read."""

from __future__ import annotations

import io
import json
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields as fields_of
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from subtok_data.data.store.row import StoredRow
from subtok_data.data.store.shard import GROUP_ROWS, SCHEMA, ShardInfo
from subtok_data.data.store.shard_checks import (
    INFO,
    LENGTH,
    MAGIC,
    find_checks,
    footer_check,
    group_checks,
    group_spans,
)
from subtok_data.data.store.storage import Storage
from subtok_data.errors import StoreError

__all__ = ["GroupCache", "ShardReader", "as_numbers"]

_COLUMNS = [name for name in SCHEMA.names if name != "records"]
_MAX_FOOTER = 1 << 27
_MAX_COLUMNS = 1 << 28
_REMEDY = "Run `subtok tokenize` again: it makes the shards that are missing or damaged anew"


@dataclass(frozen=True)
class _Place:
    """Where a row group lies in its file: its columns, then its records."""

    start: int  # first row
    rows: int
    columns: int
    records: int
    end: int
    columns_crc: int
    records_crc: int


@dataclass(frozen=True)
class _Group:
    """A row group without its records."""

    table: Any
    begin: NDArray[np.int64]  # of the records of each row, in the file; one more for the end
    sizes: NDArray[np.int32]  # bytes of each record
    first: NDArray[np.int32]  # number of the first record of each row; one more for the end


class GroupCache:
    """Keep the row groups that were read last, without their records: some 60 kB each.

    Parameters
    ----------
    most : int, optional
        How many.
    """

    def __init__(self, most: int = 256) -> None:
        self.most = most
        self._groups: OrderedDict[tuple[str, int], _Group] = OrderedDict()

    def get(self, key: tuple[str, int], read: Callable[[], _Group]) -> _Group:
        """Return a row group, read if it is not kept."""
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = read()
            while len(self._groups) > self.most:
                self._groups.popitem(last=False)
        else:
            self._groups.move_to_end(key)
        return group


class ShardReader:
    """Read a shard: any row, or all in order. Holds no file open.

    Parameters
    ----------
    storage : Storage
        Where the shard is.
    name : str
        Its file.
    groups : GroupCache, optional
        Keeps row groups, of other shards of the storage too.

    Attributes
    ----------
    info : ShardInfo
        What the shard is.
    size : int
        Bytes of its file.

    Raises
    ------
    StoreError
        If the file is missing or truncated, or its footer damaged. What else is damaged is noticed
        when it is read, or by :meth:`check`.
    """

    def __init__(self, storage: Storage, name: str, groups: GroupCache | None = None) -> None:
        self._storage = storage
        self.name = name
        size = storage.size(name)
        if size is None:
            raise StoreError(f"{self._file} is missing: {_REMEDY}")
        self.size = size
        footer = self._read_footer()
        self._metadata, self.info, checks = self._parse(footer)
        self._places = self._find_groups(checks, size - len(footer))
        self._starts = [place.start for place in self._places]
        self._groups = GroupCache() if groups is None else groups

    def __len__(self) -> int:
        return self.info.rows

    @property
    def _file(self) -> str:
        return f"{str(self._storage)!r}: {self.name}"

    def row(self, place: int) -> StoredRow:
        """Read one row.

        Parameters
        ----------
        place : int
            From 0 on within the shard.

        Raises
        ------
        StoreError
            If it is damaged. Records are compared with their own checksums when they are decoded.
        """
        number = int(np.searchsorted(self._starts, place, side="right")) - 1
        group = self._group(number)
        inside = place - self._starts[number]
        begin, end = int(group.begin[inside]), int(group.begin[inside + 1])
        content = self._storage.read(self.name, begin, end - begin) if end > begin else b""
        return self._row(group, inside, content)

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[StoredRow]:
        """Read rows in order, a row group at a time.

        Parameters
        ----------
        start, stop : int, optional
            Places within the shard; all by default.

        Raises
        ------
        StoreError
            If a row group is damaged.
        """
        stop = len(self) if stop is None else min(stop, len(self))
        for number, place in enumerate(self._places):
            first, last = max(start - place.start, 0), min(stop - place.start, place.rows)
            if first >= last:
                continue
            group = self._group(number)
            base, end = int(group.begin[first]), int(group.begin[last])
            content = self._storage.read(self.name, base, end - base) if end > base else b""
            for inside in range(first, last):
                begin, end = int(group.begin[inside]) - base, int(group.begin[inside + 1]) - base
                yield self._row(group, inside, content[begin:end])

    def columns(self, names: Sequence[str]) -> Iterator[Any]:
        """Read columns other than ``records``, as an Arrow table for each row group."""
        for number in range(len(self._places)):
            yield self._group(number).table.select(list(names))

    def spans(self) -> Iterator[tuple[Any, NDArray[np.int64]]]:
        """Yield the keys of each row group, and where the records of its rows begin in the file.

        There is one place more than rows: the end. Records lie as their length, 4 bytes, and their
        bytes, one after the other.
        """
        for number in range(len(self._places)):
            group = self._group(number)
            yield group.table.column("key"), group.begin

    def check(self) -> None:
        """Read every byte and compare checksums.

        Raises
        ------
        StoreError
            If one is not as it was written.
        """
        for number, place in enumerate(self._places):
            self._read_columns(number)
            crc, at = 0, place.records
            while at < place.end:
                content = self._storage.read(self.name, at, min(1 << 24, place.end - at))
                if not content:
                    break
                crc = zlib.crc32(content, crc)
                at += len(content)
            if crc != place.records_crc:
                raise self._damaged(f"the records of row group {number} are not what was written")

    # --- rows -----------------------------------------------------------------------------------

    def _row(self, group: _Group, inside: int, content: bytes) -> StoredRow:
        values = {name: group.table.column(name)[inside].as_py() for name in _COLUMNS[:-1]}
        records: list[bytes] = []
        at = 0
        for size in group.sizes[group.first[inside] : group.first[inside + 1]].tolist():
            if content[at : at + 4] != LENGTH.pack(size) or len(content) < at + 4 + size:
                raise self._damaged(f"a record of row {values['index']} is not what was written")
            records.append(content[at + 4 : at + 4 + size])
            at += 4 + size
        return StoredRow(
            values["index"],
            values["path"],
            values["key"],
            tuple(values["num_visual_tokens"]),
            tuple(values["sizes"]),
            tuple(records),
            values["error"],
        )

    def _group(self, number: int) -> _Group:
        return self._groups.get((self.name, number), lambda: self._open_group(number))

    def _open_group(self, number: int) -> _Group:
        place = self._places[number]
        content = self._read_columns(number)
        try:
            file = pa.PythonFile(_Window(content, place.columns, self.size), mode="r")
            parquet = pq.ParquetFile(file, metadata=self._metadata, pre_buffer=False)
            table = parquet.read_row_group(number, columns=_COLUMNS, use_threads=False)
            lists = table.column("record_sizes").combine_chunks()
            first = as_numbers(lists.offsets, np.int32)
            sizes = as_numbers(lists.values, np.int32)
            index = as_numbers(table.column("index").combine_chunks(), np.int64)
        except Exception as error:  # Arrow has many; all that is read here was checked
            raise self._damaged(f"row group {number}: {error}") from error
        ends = np.concatenate([[0], np.cumsum(sizes.astype(np.int64) + 4)])
        begin = place.end - ends[-1] + ends[first]
        expected = self.info.start + place.start + np.arange(place.rows)
        if sizes.min(initial=0) < 0 or begin[0] < place.records or first[-1] != len(sizes):
            raise self._damaged(f"row group {number} has records of impossible sizes")
        if not np.array_equal(index, expected):
            raise self._damaged(f"row group {number} holds other rows")
        return _Group(table, begin, sizes, first)

    def _read_columns(self, number: int) -> bytes:
        place = self._places[number]
        content = self._storage.read(self.name, place.columns, place.records - place.columns)
        if zlib.crc32(content) != place.columns_crc:
            raise self._damaged(f"the columns of row group {number} are not what was written")
        return content

    # --- the footer -----------------------------------------------------------------------------

    def _read_footer(self) -> bytes:
        """Footer, its length and the magic at the end, compared with its checksum."""
        end = self._storage.read(self.name, max(0, self.size - 8), 8)
        if len(end) < 8 or self.size < 12 or end[4:] != MAGIC:
            raise self._damaged(f"its {self.size} bytes do not end as they must, truncated perhaps")
        length = LENGTH.unpack(end[:4])[0] + 8
        if length + 4 > self.size or length > _MAX_FOOTER:
            raise self._damaged("its footer is not what was written")
        if self._storage.read(self.name, 0, 4) != MAGIC:
            raise self._damaged("its first bytes are not what was written")
        footer = self._storage.read(self.name, self.size - length, length)
        if len(footer) != length:
            raise self._damaged("it ended while it was read")
        return footer

    def _parse(self, footer: bytes) -> tuple[Any, ShardInfo, bytes]:
        place = find_checks(footer)
        if place is None:
            raise self._damaged("its footer has no checksums: no shard of tokens, or damaged")
        begin, end = place
        checks = footer[begin:end]
        expected = footer_check(footer, end)
        if checks[-len(expected) :] != expected:
            raise self._damaged("its footer is not what was written")
        try:
            metadata = pq.read_metadata(pa.BufferReader(MAGIC + footer))
            found = cast("dict[bytes, bytes]", metadata.metadata)
            info = ShardInfo(**json.loads(found[INFO]))
            for field in fields_of(ShardInfo):
                if type(getattr(info, field.name)).__name__ != field.type:
                    raise ValueError(f"{field.name}={getattr(info, field.name)!r}")
            if metadata.num_rows != info.rows:
                raise ValueError(f"{metadata.num_rows} rows, not {info.rows}")
            if metadata.schema.to_arrow_schema().names != SCHEMA.names:
                raise ValueError(f"columns {metadata.schema.to_arrow_schema().names}")
        except Exception as error:  # the footer was checked: made by something else
            raise self._damaged(f"it is no shard of tokens: {error}") from error
        return metadata, info, checks

    def _find_groups(self, checks: bytes, footer: int) -> list[_Place]:
        places: list[_Place] = []
        start, at = 0, len(MAGIC)
        groups = self._metadata.num_row_groups
        crcs = group_checks(checks, groups)
        if crcs is None:
            raise self._damaged(f"it has {groups} row groups, its checksums are of others")
        for number, (columns, records, end) in enumerate(group_spans(self._metadata)):
            rows = self._metadata.row_group(number).num_rows
            impossible = not columns <= records <= end <= footer or rows > GROUP_ROWS
            if columns != at or impossible or records - columns > _MAX_COLUMNS:
                raise self._damaged(f"row group {number} lies where it cannot")
            places.append(_Place(start, rows, columns, records, end, *crcs[number]))
            start, at = start + rows, end
        if at != footer:
            raise self._damaged(f"{footer - at} bytes before its footer belong to nothing")
        return places

    def _damaged(self, what: str) -> StoreError:
        return StoreError(f"{self._file} is damaged: {what}. {_REMEDY}")


def as_numbers(array: Any, dtype: type[np.integer[Any]]) -> NDArray[Any]:
    """View an Arrow array of integers without nulls; its own conversion would import pandas.

    Examples
    --------
    >>> as_numbers(pa.array([3, 4, 5], pa.int32())[1:], np.int32)
    array([4, 5], dtype=int32)
    """
    _, content = array.buffers()
    if content is None:
        return np.zeros(0, dtype)
    return np.frombuffer(content, dtype, len(array), array.offset * np.dtype(dtype).itemsize)


class _Window(io.RawIOBase):
    """A part of a file, for Arrow: whoever reads elsewhere gets nothing."""

    def __init__(self, content: bytes, start: int, size: int) -> None:
        self._content = content
        self._start = start
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        begin = self._at - self._start
        if begin < 0:
            return b""
        found = self._content[begin:] if size < 0 else self._content[begin : begin + size]
        self._at += len(found)
        return found
