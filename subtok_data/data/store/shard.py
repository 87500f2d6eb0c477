"""A shard of stored tokens, as it is written: a Parquet file that can be checked, and read by row.

Any Parquet reader reads it. Three things are added, all within the format:

* The footer's metadata ``subtok`` say what the shard is (:class:`ShardInfo`), and ``subtok.check``
  hold the checksums of every row group and of the footer itself, which are put in when the file is
  written. They are compared before Arrow parses anything, since Arrow may end the process over
  damaged bytes.
* Records are stored as they are in one page per row group, so that the place of each follows from
  ``record_sizes``: a row is read with one read of its bytes.
* A record carries its own checksum, so that a row needs no look at its neighbours.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from subtok_data.data.store.row import StoredRow
from subtok_data.data.store.shard_checks import CHECK, INFO, empty_checks, seal
from subtok_data.images import KEY_BYTES

__all__ = ["GROUP_ROWS", "SCHEMA", "ShardInfo", "ShardWriter", "end_writer"]

GROUP_ROWS = 512
"""Rows of a row group, fewer where their records are large."""

SCHEMA = pa.schema(
    [
        ("index", pa.int64()),
        ("key", pa.binary(KEY_BYTES)),
        ("path", pa.string()),
        ("num_visual_tokens", pa.list_(pa.int32())),
        ("sizes", pa.list_(pa.int32())),  # h, w of each map, one after the other
        ("error", pa.string()),
        ("record_sizes", pa.list_(pa.int32())),
        ("records", pa.list_(pa.binary())),
    ]
)

_GROUP_BYTES = 1 << 26


@dataclass(frozen=True)
class ShardInfo:
    """What a shard is, without a look at its rows.

    Attributes
    ----------
    shard : int
        Its number.
    start, rows : int
        First dataset row, and how many.
    config_hash : str
        Of the tokenizer's configuration.
    device, dtype : str
        Where the model ran and in which precision: ``"cpu"``, ``"bfloat16"``.
    batch_size : int
        Rows that were inferred together, from ``start`` on.
    """

    shard: int
    start: int
    rows: int
    config_hash: str
    device: str
    dtype: str
    batch_size: int

    @property
    def range(self) -> range:
        """Dataset rows of the shard."""
        return range(self.start, self.start + self.rows)


class ShardWriter:
    """Write a shard row by row.

    Parameters
    ----------
    file : binary file
        New, open for writing and reading, at its begin.
    info : ShardInfo
        What it will be; the rows must come in its order.

    Examples
    --------
    >>> import io
    >>> import numpy as np
    >>> file = io.BytesIO()
    >>> with ShardWriter(file, ShardInfo(0, 0, 1, "a1b2", "cpu", "float32", 8)) as writer:
    ...     writer.add(StoredRow.of(0, [np.zeros((4, 4), np.int16)]))
    ...     writer.close()
    >>> pq.read_table(io.BytesIO(file.getvalue())).column("num_visual_tokens").to_pylist()
    [[1]]
    """

    def __init__(self, file: IO[bytes], info: ShardInfo) -> None:
        self._file = file
        self.info = info
        self._rows: list[StoredRow] = []
        self._bytes = 0
        self._groups = 0
        self._next = info.start
        self._writer = pq.ParquetWriter(
            file,
            SCHEMA,
            # Records are compressed already, and the rest must not grow when it is read.
            compression="none",
            use_dictionary=False,
            write_statistics=False,
            store_schema=False,
            # One page for a row group: then records lie one after the other.
            data_page_size=1 << 30,
            data_page_version="1.0",
        )

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        end_writer(self._writer)

    def add(self, row: StoredRow) -> None:
        """Append a row.

        Raises
        ------
        ValueError
            If it is not the next one.
        """
        if row.index != self._next or row.index not in self.info.range:
            expected = self.info.range
            raise ValueError(
                f"shard {self.info.shard} holds the rows {expected.start} to {expected.stop - 1} "
                f"in order: got {row.index}, the next is {self._next}"
            )
        self._next += 1
        self._rows.append(row)
        self._bytes += sum(map(len, row.records))
        if len(self._rows) == GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            self._write_group()

    def close(self) -> None:
        """Write what is left, and the checksums; without it the file is no shard.

        Raises
        ------
        ValueError
            If rows are missing.
        """
        if self._next != self.info.range.stop:
            raise ValueError(
                f"shard {self.info.shard} lacks the rows {self._next} to {self.info.range.stop - 1}"
            )
        if self._rows:
            self._write_group()
        self._writer.add_key_value_metadata(
            {
                INFO: json.dumps(asdict(self.info)),
                CHECK: empty_checks(self._groups),
            }
        )
        self._writer.close()
        seal(self._file)

    def _write_group(self) -> None:
        rows, self._rows, self._bytes = self._rows, [], 0
        columns: dict[str, list[Any]] = {
            name: [getattr(row, name) for row in rows]
            for name in SCHEMA.names
            if name != "record_sizes"
        }
        columns["record_sizes"] = [[len(record) for record in row.records] for row in rows]
        self._writer.write_table(pa.table(columns, schema=SCHEMA), row_group_size=len(rows))
        self._groups += 1


def end_writer(writer: Any) -> None:
    """Close a Parquet writer while its file is open; after an error too, which it would repeat."""
    with suppress(OSError, pa.ArrowException):
        writer.close()
    writer.is_open = False
