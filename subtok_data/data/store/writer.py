"""Writing a store of tokens: shards in any order and by any process, then what follows from all."""

from __future__ import annotations

import hashlib
import os
import time
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from subtok_data.data.store.fsspec_storage import open_storage
from subtok_data.data.store.layout import (
    KEYS,
    LENGTHS,
    MANIFEST,
    META,
    PROVENANCE,
    StoreMeta,
    index_name,
    part_folder,
    shard_name,
    write_json,
)
from subtok_data.data.store.progress import ShardReport
from subtok_data.data.store.row import StoredRow
from subtok_data.data.store.shard import SCHEMA, ShardInfo, ShardWriter, end_writer
from subtok_data.data.store.shard_reader import ShardReader, as_numbers
from subtok_data.data.store.storage import LocalStorage, Storage
from subtok_data.errors import ConfigError, StoreError
from subtok_data.images import KEY_BYTES

__all__ = ["StoreStatus", "TokenWriter", "row_sums"]

_INDEX = ["index", "path", "num_visual_tokens", "sizes", "error"]
_INDEX_ROWS = 16_384  # of a row group of the index, at least: small shards share one
_NO_KEY = bytes(KEY_BYTES)
_LONGEST = np.iinfo(np.uint16).max


@dataclass(frozen=True)
class StoreStatus:
    """How far a store is.

    Attributes
    ----------
    rows, shards : int
        Of the finished store.
    missing : tuple of int
        Shards that are not there.
    damaged : tuple of (int, str)
        Shards that are not what was written, and why.
    finished : bool
        Whether index and lengths are there, so that the store can be read.
    """

    rows: int
    shards: int
    missing: tuple[int, ...]
    damaged: tuple[tuple[int, str], ...]
    finished: bool


class TokenWriter:
    """Write a store of tokens, or go on with one that another process has begun.

    Parameters
    ----------
    storage : Storage, str or Path
        Where the tokens go.
    meta : StoreMeta
        What the store is.

    Attributes
    ----------
    meta : StoreMeta
        What it is, with the device and the precision of this process.
    stored_fingerprint : str or None
        That of the dataset which the store was begun with.

    Raises
    ------
    ConfigError
        If there are tokens of another configuration, length, format, device or precision.
    """

    def __init__(self, storage: Storage | str | Path, meta: StoreMeta) -> None:
        self.storage = open_storage(storage, cached=False)
        self.meta = meta
        found = StoreMeta.read_if_begun(self.storage)
        self._begun = found is None
        self._made_folder: Path | None = None
        if isinstance(self.storage, LocalStorage) and not self.storage.folder.exists():
            self._made_folder = self.storage.folder
        if found is None:
            meta.write(self.storage)
            found = meta
        else:
            self.meta = found.refuse_other(meta, str(self.storage))
            if self.meta.mixed and not found.mixed:
                replace(found, mixed=True).write(self.storage)
        self.stored_fingerprint: str | None = found.source.get("fingerprint")

    @classmethod
    def open(cls, storage: Storage | str | Path) -> TokenWriter:
        """Open a store that exists.

        Raises
        ------
        ConfigError
            If there is none.
        """
        place = open_storage(storage, cached=False)
        return cls(place, StoreMeta.read(place))

    def withdraw(self) -> None:
        """Leave nothing behind of a store that was begun here and in which nothing is stored."""
        folders = self.storage.names("data")
        scratch = self.storage.scratch
        kept = scratch is not None and any(scratch.rglob("*.rows"))
        if not self._begun or kept or any(self.storage.names(f"data/{one}") for one in folders):
            return
        for name in (META, *(f"data/{folder}/none" for folder in folders)):
            self.storage.delete(name)  # and the folders that are empty then
        if self._made_folder is not None:
            with suppress(OSError):
                self._made_folder.rmdir()

    def missing(self, shards: Iterable[int] | None = None) -> list[int]:
        """Find the shards that are absent, truncated or damaged, of those given or of all.

        Size and footer of each are read. All its bytes are compared with their checksums only where
        the file is not of the time and size that its report says, so a disk that changed bytes by
        itself goes unnoticed here; :meth:`status` and whoever reads the rows notices it.

        Raises
        ------
        StoreError
            If a shard is whole, but of another store, device or precision.
        """
        status = self._look(shards, self._written())
        return sorted([*status.missing, *(number for number, _ in status.damaged)])

    def status(self, shards: Iterable[int] | None = None) -> StoreStatus:
        """Read every byte of the shards there are, those given or all.

        Raises
        ------
        StoreError
            If a shard is whole, but of another store, device or precision.
        """
        return self._look(shards, {})

    def _look(
        self, shards: Iterable[int] | None, written: Mapping[int, ShardReport]
    ) -> StoreStatus:
        """Look at shards; those that are as they were written are not read as a whole."""
        missing: list[int] = []
        damaged: list[tuple[int, str]] = []
        there = self._there()
        for number in range(self.meta.num_shards) if shards is None else shards:
            name = shard_name(number)
            if name not in there:
                missing.append(number)
                continue
            try:
                reader = ShardReader(self.storage, name)
                if not self._is_as_written(name, reader.size, written.get(number)):
                    reader.check()
            except StoreError as error:
                damaged.append((number, str(error)))
                continue
            self.meta.check_shard(reader.info, number, str(self.storage))
        finished = self.storage.size(MANIFEST) is not None
        return StoreStatus(
            self.meta.rows, self.meta.num_shards, tuple(missing), tuple(damaged), finished
        )

    def _is_as_written(self, name: str, size: int, report: ShardReport | None) -> bool:
        if report is None or report.bytes != size:
            return False
        modified_ns = self.storage.modified_ns(name)
        return modified_ns is None or modified_ns == report.modified_ns

    def _written(self) -> dict[int, ShardReport]:
        """Reports of the shards that were made: of finished runs, then of this one."""
        reports: dict[int, ShardReport] = {}
        if self.storage.size(PROVENANCE) is not None:
            for line in self.storage.read(PROVENANCE).splitlines():
                report = ShardReport.of_line(line)
                if report is not None:
                    reports[report.shard] = report
        for folder in self.storage.names("progress"):
            for name in self.storage.names(f"progress/{folder}"):
                if not name.endswith(".json"):
                    continue
                with suppress(FileNotFoundError):  # another process has finished the store
                    report = ShardReport.of_line(self.storage.read(f"progress/{folder}/{name}"))
                    if report is not None:
                        reports[report.shard] = report
        return reports

    @contextmanager
    def shard(self, info: ShardInfo) -> Generator[OpenShard]:
        """Write one shard; it is there once the context ends well, and not before.

        Parameters
        ----------
        info : ShardInfo
            Of :meth:`StoreMeta.shard_info`.
        """
        self.storage.clean(f"data/{part_folder(info.shard)}")
        started = time.perf_counter()
        name = shard_name(info.shard)
        with self.storage.create(name) as file, ShardWriter(file, info) as writer:
            shard = OpenShard(file, writer)
            yield shard
            shard.close(time.perf_counter() - started)
            shard.report.write(self.storage)

    def write(self, shard: int, rows: Sequence[StoredRow], *, batch_size: int = 1) -> ShardReport:
        """Write one shard from all its rows."""
        with self.shard(self.meta.shard_info(shard, batch_size)) as opened:
            for row in rows:
                opened.add(row)
        return opened.report

    def delete(self, shard: int) -> None:
        """Delete a shard, so that it is missing and the store is not finished."""
        self.storage.delete(MANIFEST)
        self.storage.delete(shard_name(shard))

    def take_source(self) -> None:
        """Note the dataset as it is now, once all images are known to be those that are stored."""
        found = StoreMeta.read(self.storage)
        if found.source != self.meta.source:
            replace(found, source=self.meta.source).write(self.storage)

    # --- what follows from all shards -----------------------------------------------------------

    def finish(self) -> None:
        """Write index, lengths and provenance, and clean up; every shard must be there.

        Raises
        ------
        ConfigError
            If shards are missing: which.
        StoreError
            If one is damaged, or of another store.
        """
        there = self._there()
        missing = [n for n in range(self.meta.num_shards) if shard_name(n) not in there]
        if missing:
            rows = self.meta.shard_range(missing[0])
            raise ConfigError(
                f"{len(missing)} of {self.meta.num_shards} shards are missing in "
                f"{str(self.storage)!r}, the first is {missing[0]} (rows {rows.start} to "
                f"{rows.stop - 1}): run `subtok tokenize` for them, then finish"
            )
        totals = np.zeros(4, np.int64)  # rows, images, tokens, failed
        parts: list[dict[str, Any]] = []
        with self.storage.create(LENGTHS) as lengths, self.storage.create(KEYS) as keys:
            for name, shards in self._parts():
                with self.storage.create(name) as file:
                    for shard_lengths, shard_keys, counts in self._index_part(file, shards):
                        lengths.write(shard_lengths.astype("<u2").tobytes())
                        keys.write(shard_keys)
                        totals += counts
                    parts.append({"name": name, **_digest(file)})
            described = {
                "lengths": {"name": LENGTHS, **_digest(lengths)},
                "keys": {"name": KEYS, **_digest(keys)},
            }
        self._write_provenance()
        rows, images, tokens, failed = totals.tolist()
        write_json(
            self.storage,
            MANIFEST,
            {
                "rows": rows,
                "images": images,
                "tokens": tokens,
                "failed": failed,
                **described,
                "parts": parts,
            },
        )
        self._clean()

    def _there(self) -> set[str]:
        """Names of the shards there are: one request for a folder of them, not one for each."""
        folders = [f"data/{folder}" for folder in self.storage.names("data")]
        return {f"{folder}/{name}" for folder in folders for name in self.storage.names(folder)}

    def _parts(self) -> Iterator[tuple[str, list[int]]]:
        shards: list[int] = []
        for number in range(self.meta.num_shards):
            if shards and index_name(number) != index_name(shards[0]):
                yield index_name(shards[0]), shards
                shards = []
            shards.append(number)
        if shards:
            yield index_name(shards[0]), shards

    def _index_part(
        self, file: IO[bytes], shards: Sequence[int]
    ) -> Iterator[tuple[NDArray[np.int64], bytes, NDArray[np.int64]]]:
        """Write one file of the index; yield lengths, keys and totals of each piece of a shard."""
        schema = pa.schema([SCHEMA.field(name) for name in _INDEX])
        writer = pq.ParquetWriter(file, schema, compression="zstd", store_schema=False)
        waiting: list[Any] = []
        rows = 0
        try:
            for number in shards:
                reader = ShardReader(self.storage, shard_name(number))
                self.meta.check_shard(reader.info, number, str(self.storage))
                tables = list(reader.columns([*_INDEX, "key"]))
                waiting += [table.select(_INDEX) for table in tables]
                rows += len(reader)
                if rows >= _INDEX_ROWS or number == shards[-1]:
                    writer.write_table(pa.concat_tables([schema.empty_table(), *waiting]))
                    waiting, rows = [], 0
                for table in tables:
                    counts, images = row_sums(table.column("num_visual_tokens"))
                    failed = table.num_rows - table.column("error").null_count
                    totals = (table.num_rows, images.sum(), counts.sum(), failed)
                    keys = b"".join(key or _NO_KEY for key in table.column("key").to_pylist())
                    yield np.minimum(counts, _LONGEST), keys, np.array(totals, np.int64)
            writer.close()
        finally:
            end_writer(writer)

    def _write_provenance(self) -> None:
        """Join the reports of the shards with those of earlier runs."""
        reports = self._written()
        with self.storage.create(PROVENANCE) as file:
            for number in sorted(reports):
                if number < self.meta.num_shards:
                    file.write(reports[number].line())

    def _clean(self) -> None:
        """Delete what only an unfinished store needs."""
        for folder in self.storage.names("data"):
            self.storage.clean(f"data/{folder}")
        for folder in self.storage.names("progress"):
            self.storage.clean(f"progress/{folder}")
            for name in self.storage.names(f"progress/{folder}"):
                self.storage.delete(f"progress/{folder}/{name}")
        self.storage.clean("index")
        self.storage.clean("")


class OpenShard:
    """A shard that is being written.

    Attributes
    ----------
    report : ShardReport
        How it was made, once it is closed.
    """

    report: ShardReport

    def __init__(self, file: IO[bytes], writer: ShardWriter) -> None:
        self._file = file
        self._writer = writer
        self._counts = np.zeros(3, np.int64)  # images, tokens, failed

    @property
    def failed(self) -> int:
        """Rows without tokens so far."""
        return int(self._counts[2])

    def add(self, row: StoredRow) -> None:
        """Append the next row."""
        self._writer.add(row)
        counts = row.num_visual_tokens
        self._counts += (len(counts), sum(counts), row.error is not None)

    def close(self, seconds: float) -> None:
        """Write the last rows and the checksums."""
        self._writer.close()
        self._file.flush()
        info = self._writer.info
        images, tokens, failed = self._counts.tolist()
        self._file.seek(0)
        size, hashed = 0, hashlib.sha256()
        while content := self._file.read(1 << 24):
            hashed.update(content)
            size += len(content)
        self.report = ShardReport(
            shard=info.shard,
            rows=info.rows,
            images=images,
            tokens=tokens,
            failed=failed,
            bytes=size,
            sha256=hashed.hexdigest(),
            seconds=round(seconds, 3),
            device=info.device,
            dtype=info.dtype,
            versions=_versions(),
            modified_ns=os.fstat(self._file.fileno()).st_mtime_ns,
        )


def row_sums(column: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sum and count of the values in each row of an Arrow column of lists.

    Examples
    --------
    >>> row_sums(pa.chunked_array([[[3, 4], [], [5]]], pa.list_(pa.int32())))
    (array([7, 0, 5]), array([2, 0, 1]))
    """
    sums: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    counts = [np.zeros(0, np.int64)]
    for chunk in column.chunks:
        offsets = as_numbers(chunk.offsets, np.int32).astype(np.int64)
        values = as_numbers(chunk.values, np.int32)
        total = np.concatenate([np.zeros(1, np.int64), np.cumsum(values, dtype=np.int64)])
        sums.append(total[offsets[1:]] - total[offsets[:-1]])
        counts.append(np.diff(offsets))
    return np.concatenate(sums), np.concatenate(counts)


@cache
def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("subtok-data", "torch", "transformers", "numpy", "pillow", "pyarrow")
    return {name: version(name) for name in names}


def _digest(file: IO[bytes]) -> dict[str, int]:
    """Size and CRC-32 of a file that is open."""
    file.seek(0)
    size, crc = 0, 0
    while content := file.read(1 << 24):
        crc = zlib.crc32(content, crc)
        size += len(content)
    return {"bytes": size, "crc32": crc}
