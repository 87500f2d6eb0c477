"""What a run leaves while a shard is made: its rows so far, and how each shard was made.

Rows go to a journal as soon as they are done, so that an interruption loses a batch or two, not
a shard. A shard that is made from a journal and the rest has the bytes of one made in one go, since
batches begin at the same rows.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

from subtok_data.data.store.layout import part_folder
from subtok_data.data.store.row import StoredRow
from subtok_data.data.store.shard import ShardInfo
from subtok_data.data.store.storage import Storage, open_new, writer_name

__all__ = ["Journal", "ShardReport"]

_FRAME = struct.Struct("<II")  # bytes, CRC-32
_MOST_ROW_BYTES = 1 << 30


@dataclass(frozen=True)
class ShardReport:
    """How a shard was made: what travels back from the process that made it.

    Attributes
    ----------
    shard : int
        Its number.
    rows, images, tokens : int
        In the shard.
    failed : int
        Rows without tokens.
    bytes : int
        Size of the file.
    sha256 : str
        Of the file.
    seconds : float
        Wall time, without that of runs which were interrupted.
    device, dtype : str
        Where the model ran, in which precision.
    versions : dict of str to str
        Of the libraries that decide the bits.
    modified_ns : int
        When the file was written, by the clock of its file system; 0 if unknown.
    """

    shard: int
    rows: int
    images: int
    tokens: int
    failed: int
    bytes: int
    sha256: str
    seconds: float
    device: str
    dtype: str
    versions: dict[str, str] = field(default_factory=dict[str, str])
    modified_ns: int = 0

    @staticmethod
    def name(shard: int) -> str:
        """File of the report until the store is finished."""
        return f"progress/{part_folder(shard)}/tokens-{shard:06d}.json"

    def write(self, storage: Storage) -> None:
        """Write the report beside the unfinished store."""
        with storage.create(self.name(self.shard)) as file:
            file.write(self.line())

    def line(self) -> bytes:
        """The report as a line of ``provenance.jsonl``."""
        return json.dumps(asdict(self), sort_keys=True).encode() + b"\n"

    @classmethod
    def of_line(cls, line: bytes) -> ShardReport | None:
        """Read what :meth:`line` wrote; None if it is something else."""
        try:
            found = json.loads(line)
            numbers = found["shard"], found["bytes"], found["modified_ns"]
            return cls(**found) if all(isinstance(one, int) for one in numbers) else None
        except (ValueError, TypeError, KeyError):
            return None


class Journal:
    """Rows of an unfinished shard, in a file of this process.

    Parameters
    ----------
    folder : Path or None
        Local; with None nothing is kept.
    info : ShardInfo
        The shard. Rows that were kept for another one, or for batches of another size, are not
        used.

    Attributes
    ----------
    kept : int
        Rows that an interrupted run has kept.

    Examples
    --------
    >>> import tempfile
    >>> info = ShardInfo(0, 0, 4, "a1b2", "cpu", "float32", 2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Journal(Path(folder), info) as journal:
    ...         journal.append([StoredRow(0, "a.png"), StoredRow(1, "b.png")])
    ...     with Journal(Path(folder), info) as again:
    ...         [row.path for row in again.rows()]
    ['a.png', 'b.png']
    """

    def __init__(self, folder: Path | None, info: ShardInfo) -> None:
        self.info = info
        self.kept = 0
        self._folder = None if folder is None else folder / part_folder(info.shard)
        self._source: IO[bytes] | None = None
        self._file: IO[bytes] | None = None
        self._find()

    def rows(self) -> Iterator[StoredRow]:
        """Yield the rows that were kept, in order: whole batches from the first row on."""
        # The file stays open from the count on: another process may finish the shard and delete it.
        if self._source is not None:
            yield from islice(_read(self._source, self.info), self.kept)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._source, self._file):
            if file is not None:
                file.close()
        self._source = self._file = None

    def append(self, rows: list[StoredRow]) -> None:
        """Keep the rows of a batch; they are safe from the end of this process at once."""
        if self._folder is None or not rows:
            return
        if self._file is None:
            self._file = self._begin(self._folder)
        self._file.write(b"".join(map(_frame, rows)))
        self._file.flush()

    def delete(self) -> None:
        """Forget the shard, which is stored now: also what others kept of it."""
        self.__exit__()
        for file in self._files():
            with suppress(OSError):
                file.unlink()
        if self._folder is not None:
            with suppress(OSError):  # not empty
                self._folder.rmdir()
                self._folder.parent.rmdir()

    def _find(self) -> None:
        """Open the file with the most rows, of all processes."""
        for path in self._files():
            try:
                file = path.open("rb")
            except OSError:
                continue
            count = sum(1 for _ in _read(file, self.info))
            if count < self.info.rows:
                count -= count % self.info.batch_size
            if count > self.kept:
                file, self._source = self._source, file
                self.kept = count
            if file is not None:
                file.close()

    def _begin(self, folder: Path) -> IO[bytes]:
        """Start a file of this process with the rows that were kept."""
        target = folder / f"tokens-{self.info.shard:06d}.{writer_name()}.rows"
        aside = target.with_name(f".{target.name}-0.part")
        with open_new(aside, "wb") as file:
            file.write(_head(self.info))
            for row in self.rows():
                file.write(_frame(row))
        aside.replace(target)
        return target.open("ab")

    def _files(self) -> list[Path]:
        if self._folder is None:
            return []
        return sorted(self._folder.glob(f"tokens-{self.info.shard:06d}.*.rows"))


def _head(info: ShardInfo) -> bytes:
    return _packed(json.dumps(asdict(info), sort_keys=True).encode())


def _frame(row: StoredRow) -> bytes:
    values = asdict(row)
    records = values.pop("records")
    values["key"] = None if row.key is None else row.key.hex()
    values["record_sizes"] = [len(record) for record in records]
    return _packed(b"".join([json.dumps(values).encode(), b"\n", *records]))


def _packed(content: bytes) -> bytes:
    return _FRAME.pack(len(content), zlib.crc32(content)) + content


def _read(file: IO[bytes], info: ShardInfo) -> Iterator[StoredRow]:
    """Rows up to the first that is not whole: the process may have ended in the midst of it."""
    file.seek(0)
    try:
        if _next(file) != _head(info)[_FRAME.size :]:
            return
        expected = info.start
        while (content := _next(file)) is not None:
            row = _unframe(content)
            if row.index != expected or row.index >= info.range.stop:
                return
            yield row
            expected += 1
    except (OSError, ValueError, KeyError, TypeError):
        return


def _next(file: IO[bytes]) -> bytes | None:
    head = file.read(_FRAME.size)
    if len(head) < _FRAME.size:
        return None
    length, crc = _FRAME.unpack(head)
    if length > _MOST_ROW_BYTES:
        return None
    content = file.read(length)
    return content if len(content) == length and zlib.crc32(content) == crc else None


def _unframe(content: bytes) -> StoredRow:
    head, records = content.split(b"\n", 1)
    values: dict[str, Any] = json.loads(head)
    found: list[bytes] = []
    at = 0
    for size in values.pop("record_sizes"):
        found.append(records[at : at + size])
        at += size
    key = values["key"]
    return StoredRow(
        values["index"],
        values["path"],
        None if key is None else bytes.fromhex(key),
        tuple(values["num_visual_tokens"]),
        tuple(values["sizes"]),
        tuple(found),
        values["error"],
    )
