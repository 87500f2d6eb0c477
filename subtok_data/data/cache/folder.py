"""A cache as a folder: what is in it, merging its segments, clearing it."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from subtok_data.data.cache.index import is_segment
from subtok_data.data.store import (
    LocalStorage,
    ShardInfo,
    ShardReader,
    ShardWriter,
    StoredRow,
    writer_name,
)
from subtok_data.errors import ConfigError, StoreError
from subtok_data.token_record import record_size

__all__ = [
    "CacheInfo",
    "SegmentsInfo",
    "clear_cache",
    "compact_cache",
    "describe_cache",
    "open_cache",
    "write_config",
]

MARKER = "subtok-cache.json"
_CONFIG = "config.json"
_FORMAT = 1


@dataclass(frozen=True)
class SegmentsInfo:
    """The segments of one configuration, device and precision.

    Attributes
    ----------
    config_hash : str
        Of the configuration.
    kind : str
        Precision and device, ``"float32-cpu"``.
    segments, records, bytes : int
        How many there are, and what they take. Records of one image that several processes have
        written count several times.
    damaged : tuple of str
        Segments that cannot be read; their records are not counted.
    config : dict or None
        The configuration, where it is known.
    """

    config_hash: str
    kind: str
    segments: int
    records: int
    bytes: int
    damaged: tuple[str, ...] = ()
    config: dict[str, Any] | None = None


@dataclass(frozen=True)
class CacheInfo:
    """What is in a cache.

    Attributes
    ----------
    folder : str
        The cache.
    parts : tuple of SegmentsInfo
        By configuration, device and precision.
    """

    folder: str
    parts: tuple[SegmentsInfo, ...]

    @property
    def segments(self) -> int:
        """Segments of all parts."""
        return sum(part.segments for part in self.parts)

    @property
    def records(self) -> int:
        """Records of all parts."""
        return sum(part.records for part in self.parts)

    @property
    def bytes(self) -> int:
        """Size of all segments."""
        return sum(part.bytes for part in self.parts)


def open_cache(folder: str | Path, *, must_exist: bool = False) -> Path:
    """Check that a folder is a cache, or may become one.

    Raises
    ------
    ConfigError
        If it is a file or a URL, holds something else, or must be a cache and is none.
    """
    text = os.fspath(folder)
    if "://" in text:
        raise ConfigError(
            f"cache={text!r}: a cache is a folder of this machine or of a network disk; tokens in "
            "object storage are stored with `subtok tokenize`, and given as tokens="
        )
    root = Path(folder)
    if root.is_file():
        raise ConfigError(f"cache={text!r} is a file: give a folder")
    if (root / MARKER).is_file():
        return root
    try:
        names = sorted(name for name in os.listdir(root) if not name.startswith("."))
    except FileNotFoundError:
        names = []
    if must_exist or names:
        what = f"it holds {names[0]!r}" if names else "it is empty, or there is no such folder"
        raise ConfigError(
            f"{text!r} is no cache of tokens: {what}. Give the folder of "
            "SubobjectLoader(cache=…), which is a new or an empty one the first time"
        )
    return root


def write_config(root: Path, config_hash: str, config: dict[str, Any]) -> None:
    """Say of a folder that it is a cache, and what a configuration in it is."""
    storage = LocalStorage(root)
    described = {MARKER: {"format": _FORMAT}, f"{config_hash}/{_CONFIG}": config}
    for name, content in described.items():
        if storage.size(name) is None:
            with storage.create(name) as file:
                file.write(json.dumps(content, indent=2).encode() + b"\n")


def describe_cache(folder: str | Path) -> CacheInfo:
    """Count what is in a cache.

    Raises
    ------
    ConfigError
        If the folder is no cache.
    """
    root = open_cache(folder, must_exist=True)
    parts: list[SegmentsInfo] = []
    for config_hash, storage in _parts(root):
        names = _segments(storage)
        records, damaged = 0, []
        for name in names:
            try:
                records += len(ShardReader(storage, name))
            except StoreError:
                damaged.append(name)
        parts.append(
            SegmentsInfo(
                config_hash,
                storage.folder.name,
                len(names),
                records,
                sum(storage.size(name) or 0 for name in names),
                tuple(damaged),
                _config(root, config_hash),
            )
        )
    return CacheInfo(str(root), tuple(parts))


def compact_cache(folder: str | Path, *, only: str | None = None) -> CacheInfo:
    """Merge the segments of each configuration into one; of equal records one stays.

    What is damaged is left out, and written anew by the next epoch that misses it. Loaders that are
    at work go on: what they look up in a segment that is gone they tokenize anew.

    Parameters
    ----------
    folder : str or Path
        The cache.
    only : str, optional
        Delete all configurations but this one (its hash).

    Returns
    -------
    CacheInfo
        What is in the cache then.

    Raises
    ------
    ConfigError
        If the folder is no cache, or ``only`` no configuration in it.
    OSError
        If a file cannot be written; the segments are then as they were.
    """
    root = open_cache(folder, must_exist=True)
    found = list(_parts(root))
    if only is not None and only not in {config_hash for config_hash, _ in found}:
        raise ConfigError(
            f"{only!r} is no configuration in the cache {str(root)!r}: it has "
            f"{sorted({config_hash for config_hash, _ in found})}"
        )
    for config_hash, storage in found:
        if only in (None, config_hash):
            _compact(storage)
        else:
            _delete(root, config_hash, storage)
    return describe_cache(root)


def clear_cache(folder: str | Path) -> CacheInfo:
    """Delete all that is in a cache; other files in its folder stay.

    Returns
    -------
    CacheInfo
        What was in it.

    Raises
    ------
    ConfigError
        If the folder is no cache.
    """
    info = describe_cache(folder)
    root = Path(info.folder)
    for config_hash, storage in list(_parts(root)):
        _delete(root, config_hash, storage)
    _delete_unfinished(root)
    LocalStorage(root).delete(MARKER)
    with suppress(OSError):  # not empty
        root.rmdir()
    return info


def _parts(root: Path) -> Iterator[tuple[str, LocalStorage]]:
    """The folders of segments, each with the configuration that it is of."""
    storage = LocalStorage(root)
    for config_hash in storage.names(""):
        for kind in storage.names(config_hash):
            if (root / config_hash / kind).is_dir():
                yield config_hash, LocalStorage(root / config_hash / kind)


def _segments(storage: LocalStorage) -> list[str]:
    return [name for name in storage.names("") if is_segment(name)]


def _config(root: Path, config_hash: str) -> dict[str, Any] | None:
    try:
        found = json.loads((root / config_hash / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", found) if isinstance(found, dict) else None


def _delete(root: Path, config_hash: str, storage: LocalStorage) -> None:
    for folder in (storage.folder, root / config_hash):
        _delete_unfinished(folder)
    for name in _segments(storage):
        storage.delete(name)
    LocalStorage(root).delete(f"{config_hash}/{_CONFIG}")
    for empty in (storage.folder, root / config_hash):
        with suppress(OSError):
            empty.rmdir()


def _delete_unfinished(folder: Path) -> None:
    for path in folder.glob(".*.part"):
        with suppress(OSError):
            path.unlink()


def _compact(storage: LocalStorage) -> None:
    """Write one segment of all, then delete them."""
    storage.clean("")
    names = _segments(storage)
    readers: list[ShardReader] = []
    for name in names:
        with suppress(StoreError):
            readers.append(ShardReader(storage, name))
    kept = _rows_to_keep(readers)
    if len(names) == 1 and len(readers) == 1 and len(kept[0]) == len(readers[0]):
        return
    rows = sum(map(len, kept))
    if rows:
        first = readers[0].info
        info = ShardInfo(0, 0, rows, first.config_hash, first.device, first.dtype, 1)
        merged = f"seg-{writer_name()}-{secrets.token_hex(4)}-00000.parquet"
        with ExitStack() as stack:
            file = stack.enter_context(storage.create(merged))
            writer = stack.enter_context(ShardWriter(file, info))
            index = 0
            for reader, places in zip(readers, kept, strict=True):
                for place in places:
                    writer.add(replace(reader.row(place), index=index))
                    index += 1
            writer.close()
    for name in names:
        storage.delete(name)


def _rows_to_keep(readers: list[ShardReader]) -> list[list[int]]:
    """Of each segment, the places of whole records that no segment before has."""
    seen: set[bytes | None] = {None}
    kept: list[list[int]] = []
    for reader in readers:
        own: list[int] = []
        with suppress(StoreError):  # a row group that is damaged, and those behind it
            for place, row in enumerate(reader.rows()):
                if row.key not in seen and _is_whole(row):
                    seen.add(row.key)
                    own.append(place)
        kept.append(own)
    return kept


def _is_whole(row: StoredRow) -> bool:
    try:
        sizes = [side for record in row.records for side in record_size(record)]
    except StoreError:
        return False
    return bool(sizes) and sizes == list(row.sizes)
