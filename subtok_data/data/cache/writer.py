"""Writing to a cache: a segment at a time, each by one process, appearing whole or not at all."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray

from subtok_data.data.store import LocalStorage, ShardInfo, ShardWriter, StoredRow, writer_name

__all__ = ["SegmentWriter"]

FLUSH_ROWS = 512
FLUSH_S = 30.0
_ROW_BYTES = 128
"""What a row takes beside its records, and a share of the footer."""


class SegmentWriter:
    """Collect token maps, and write them as segments.

    Nobody else writes to its files, so no lock is needed: they have names of their own, are
    written aside, and renamed when they are whole.

    Parameters
    ----------
    storage : LocalStorage
        Folder of the segments of one configuration.
    info : ShardInfo
        Configuration, device and precision of the tokens.
    has_room : callable, optional
        Asked, with a number of bytes, before they are written; False ends the writing.

    Attributes
    ----------
    folder : Path
        Of the segments.
    error : OSError or None
        Why the last segment could not be written; then nothing more is.
    is_full : bool
        Whether there was no room.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> info = ShardInfo(0, 0, 0, "a1b2", "cpu", "float32", 1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     writer = SegmentWriter(LocalStorage(folder), info)
    ...     writer.put(bytes(16), [np.zeros((8, 8), np.int16)], [{}])
    ...     writer.flush()
    ...     len(LocalStorage(folder).names(""))
    1
    """

    def __init__(
        self, storage: LocalStorage, info: ShardInfo, has_room: Callable[[int], bool] | None = None
    ) -> None:
        self._storage = storage
        self.folder = storage.folder
        self._info = info
        self._has_room = has_room
        self._name = f"seg-{writer_name()}-{secrets.token_hex(4)}"
        self._segments = 0
        self._rows: dict[bytes, StoredRow] = {}
        self._written: set[bytes] = set()
        self._since = time.monotonic()
        # Look-ahead puts from a thread of its own, replacements from that of the user.
        self._lock = threading.Lock()
        self.error: OSError | None = None
        self.is_full = False

    @property
    def is_open(self) -> bool:
        """Whether what is put will be written."""
        return self.error is None and not self.is_full

    def put(
        self,
        key: bytes,
        token_maps: Sequence[NDArray[Any]],
        token_fields: Sequence[Mapping[str, NDArray[Any]]],
    ) -> None:
        """Take the token maps of images, unless it has them."""
        if not self.is_open or key in self._rows or key in self._written:
            return
        row = StoredRow.of(0, token_maps, token_fields, key=key)
        with self._lock:
            if not self._rows:
                self._since = time.monotonic()
            self._rows[key] = row
            if len(self._rows) >= FLUSH_ROWS or time.monotonic() - self._since >= FLUSH_S:
                self._write()

    def flush(self) -> None:
        """Write what was collected."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        rows, self._rows = self._rows, {}
        if not rows or not self.is_open:
            return
        size = sum(_ROW_BYTES + sum(map(len, row.records)) for row in rows.values())
        try:
            if self._has_room is not None and not self._has_room(size):
                self.is_full = True
                return
            info = replace(self._info, shard=self._segments, start=0, rows=len(rows))
            with (
                self._storage.create(f"{self._name}-{self._segments:05d}.parquet") as file,
                ShardWriter(file, info) as writer,
            ):
                for place, key in enumerate(sorted(rows)):
                    writer.add(replace(rows[key], index=place))
                writer.close()
        except (OSError, pa.ArrowException) as error:
            self.error = error if isinstance(error, OSError) else OSError(str(error))
            return
        self._segments += 1
        self._written.update(rows)
