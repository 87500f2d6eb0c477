"""Where the records of a cache lie: the keys of all its segments, merged and sorted.

A segment is a shard of stored tokens (:class:`~subtok_data.data.store.ShardWriter`) whose rows are
any images, not those of a dataset. The index takes 32 bytes a record. One process reads the
segments; others on the machine map what it saved.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from subtok_data.data.store import ShardReader
from subtok_data.errors import StoreError

__all__ = ["Place", "SegmentIndex", "is_segment", "read_segment"]

_KEY = struct.Struct(">QQ")
_LENGTH = struct.Struct("<Q")
_ALIGNED = 64
_SIZE_BITS = 32
_MOST_BYTES = (1 << _SIZE_BITS) - 1

Entries = NDArray[np.uint64]
"""(4, n): first half of each key, second half, where its records begin, segment << 32 | bytes."""


class Place(NamedTuple):
    """Where the records of an image lie.

    Attributes
    ----------
    segment : str
        The file.
    begin, size : int
        Of its records there, bytes.
    """

    segment: str
    begin: int
    size: int


def is_segment(name: str) -> bool:
    """Tell whether a file of a cache is a segment.

    Examples
    --------
    >>> is_segment("seg-host-12-a1b2c3d4-00000.parquet"), is_segment("config.json")
    (True, False)
    """
    return name.startswith("seg-") and name.endswith(".parquet")


def read_segment(reader: ShardReader) -> Entries:
    """Read the keys of a segment and the places of their records; not the records.

    Returns
    -------
    (4, n) uint64 ndarray
        In the order of the file, as the entries of a :class:`SegmentIndex` of one segment.

    Raises
    ------
    StoreError
        If it is damaged, or a row has no key.
    """
    parts: list[Entries] = [np.empty((4, 0), np.uint64)]
    for keys, begin in reader.spans():
        if keys.null_count:
            raise StoreError(f"{reader.name} is damaged: a row has no key")
        content = b"".join(keys.to_pylist())
        part = np.empty((4, len(keys)), np.uint64)
        part[:2] = np.frombuffer(content, ">u8").reshape(-1, 2).T
        part[2] = begin[:-1]
        part[3] = np.diff(begin)
        parts.append(part)
    return np.concatenate(parts, axis=1)


class SegmentIndex:
    """Find the records of an image among all segments of a folder.

    Parameters
    ----------
    folder : str or Path
        Of the segments.
    segments : sequence of str
        Their files.
    entries : (4, n) uint64 ndarray, optional
        Sorted by the first half of the key. Equal keys are all kept: what one segment has lost
        another may have.

    Examples
    --------
    >>> key = bytes(range(16))
    >>> halves = np.frombuffer(key, ">u8")
    >>> entry = np.array([[halves[0]], [halves[1]], [4], [100]], np.uint64)
    >>> index = SegmentIndex("cache").joined([("seg-a.parquet", entry)])
    >>> list(index.find(key)), list(index.find(bytes(16)))
    ([Place(segment='seg-a.parquet', begin=4, size=100)], [])
    """

    def __init__(
        self, folder: str | Path, segments: Sequence[str] = (), entries: Entries | None = None
    ) -> None:
        self.folder = Path(folder)
        self.segments = tuple(segments)
        self.entries = np.empty((4, 0), np.uint64) if entries is None else entries

    def __len__(self) -> int:
        return self.entries.shape[1]

    def find(self, key: bytes) -> Iterator[Place]:
        """Yield every place of the records of a key."""
        high, low = (np.uint64(half) for half in _KEY.unpack(key))
        at = int(np.searchsorted(self.entries[0], high))
        while at < len(self) and self.entries[0, at] == high:
            if self.entries[1, at] == low:
                place = int(self.entries[3, at])
                segment = self.segments[place >> _SIZE_BITS]
                yield Place(segment, int(self.entries[2, at]), place & _MOST_BYTES)
            at += 1

    def joined(self, more: Iterable[tuple[str, Entries]]) -> SegmentIndex:
        """Return an index of these and more segments, given as :func:`read_segment` reads them."""
        segments, parts = list(self.segments), [self.entries]
        for name, entries in more:
            part = entries.copy()
            part[3] |= np.uint64(len(segments) << _SIZE_BITS)
            segments.append(name)
            parts.append(part)
        if len(parts) == 1:
            return self
        entries = np.concatenate(parts, axis=1)
        # By the first half of each key, which is enough to search by; segments are sorted already,
        # which a stable sort makes use of.
        order = np.argsort(entries[0], kind="stable")
        return SegmentIndex(self.folder, segments, np.ascontiguousarray(entries[:, order]))

    def save(self, file: IO[bytes]) -> None:
        """Write the index for other processes of this machine."""
        described = {"folder": str(self.folder), "segments": self.segments, "records": len(self)}
        header = json.dumps(described).encode()
        header += b" " * (-(len(header) + _LENGTH.size) % _ALIGNED)
        file.write(_LENGTH.pack(len(header)) + header)
        file.write(np.ascontiguousarray(self.entries).data)

    @classmethod
    def map(cls, path: Path) -> SegmentIndex:
        """Map what :meth:`save` wrote: its pages are shared by all who do.

        Raises
        ------
        OSError
            If there is no such file.
        """
        with path.open("rb") as file:
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            found: dict[str, Any] = json.loads(file.read(length))
            if not found["records"]:
                return cls(found["folder"], found["segments"])
            entries = np.memmap(file, np.uint64, "r", _LENGTH.size + length, (4, found["records"]))
        return cls(found["folder"], found["segments"], entries)
