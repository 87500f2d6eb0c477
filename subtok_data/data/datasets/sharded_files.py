"""Images in tar and Parquet files, by index: the shards of WebDataset and of Hugging Face."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch.utils.data import Dataset

from subtok_data.data.datasets.sample import ColumnError
from subtok_data.data.store import Storage, open_storage
from subtok_data.errors import ConfigError
from subtok_data.images import IMAGE_SUFFIXES

__all__ = ["ParquetImages", "ShardedImages", "StoredImages", "TarImages"]


def _opened(uris: Sequence[str]) -> list[tuple[Storage, str]]:
    """The place of each file, and its name there; files of one folder share their place."""
    places: dict[str, Storage] = {}
    found: list[tuple[Storage, str]] = []
    for uri in uris:
        folder, separator, name = uri.rpartition("/")
        folder = folder if separator else "."
        storage = places.setdefault(folder, open_storage(folder or "/"))
        found.append((storage, name))
    return found


class StoredImages(Dataset[dict[str, Any]]):
    """Image files on S3, the hub or another file system of fsspec, in the order given.

    Parameters
    ----------
    uris : sequence of str
        Of the files.
    """

    def __init__(self, uris: Sequence[str]) -> None:
        self.uris = list(uris)
        self._files = _opened(self.uris)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        storage, name = self._files[index]
        image = {"bytes": storage.read(name), "path": self.uris[index]}
        return {"image": image, "path": name}


class ShardedImages(Dataset[dict[str, Any]]):
    """Rows of several files, one after the other; stored tokens keep these shards.

    Attributes
    ----------
    uris : list of str
        Of the files, local paths or of fsspec.
    shard_lengths : list of int
        Rows of each file.
    """

    def __init__(self, uris: Sequence[str]) -> None:
        self.uris = list(uris)
        self._files = _opened(self.uris)
        self.shard_lengths: list[int] = []

    def _count(self, lengths: Sequence[int]) -> None:
        for uri, length in zip(self.uris, lengths, strict=True):
            if not length:
                raise ConfigError(f"{uri!r} has no rows with images: leave it out")
        self.shard_lengths = list(lengths)
        self._ends = np.cumsum(self.shard_lengths)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.uris)} files, {len(self)} rows)"

    def fingerprint(self) -> str:
        """Hash of the names and sizes of all files."""
        sizes = [str(storage.size(name)) for storage, name in self._files]
        return hashlib.sha256("\0".join([*self.uris, *sizes]).encode()).hexdigest()[:16]

    def _find(self, index: int) -> tuple[int, int]:
        """File of a row, and its place there."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        return number, index - int(self._ends[number]) + self.shard_lengths[number]


class TarImages(ShardedImages):
    """Images of tar files, as WebDataset writes them: members of one key are one row.

    The headers are read once; an image is read from its place in the file. Compressed archives have
    no such places, and are refused.

    Parameters
    ----------
    uris : sequence of str
        Of the tar files, in order.

    Raises
    ------
    ConfigError
        If a file is no plain tar, or has no image.
    """

    def __init__(self, uris: Sequence[str]) -> None:
        super().__init__(uris)
        members = [self._members(storage.local(name), uri) for (storage, name), uri in self._of()]
        self._places = [places for places, _ in members]
        self._names = [names for _, names in members]
        self._count([len(names) for names in self._names])

    def _of(self) -> list[tuple[tuple[Storage, str], str]]:
        return list(zip(self._files, self.uris, strict=True))

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, place = self._find(index)
        storage, name = self._files[number]
        start, length = self._places[number][place].tolist()
        member = self._names[number][place].decode()
        content = storage.read(name, start, length)
        path = f"{self.uris[number]}/{member}"
        return {"image": {"bytes": content, "path": path}, "path": member}

    @staticmethod
    def _members(path: Path, uri: str) -> tuple[NDArray[np.int64], NDArray[np.bytes_]]:
        """Where the image of each row lies, and its name; the first one of a key."""
        places: list[tuple[int, int]] = []
        names: list[bytes] = []
        last = None
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    folder, _, base = member.name.rpartition("/")
                    stem, _, suffix = base.partition(".")
                    if not member.isfile() or f".{suffix.lower().split('.')[-1]}" not in _SUFFIXES:
                        continue
                    if last == (folder, stem):
                        continue
                    last = (folder, stem)
                    places.append((member.offset_data, member.size))
                    names.append(member.name.encode("utf-8", "backslashreplace"))
        except FileNotFoundError as error:
            raise ConfigError(f"there is no file {uri!r}") from error
        except tarfile.TarError as error:
            raise ConfigError(
                f"{uri!r} is no plain tar file ({error}): unpack it if it is compressed"
            ) from error
        return np.array(places, np.int64).reshape(-1, 2), np.array(names, np.bytes_)


_SUFFIXES = frozenset(IMAGE_SUFFIXES)


class ParquetImages(ShardedImages):
    """Images in a column of Parquet files: bytes, or a struct of bytes and path.

    Row groups are read whole, and the last one is kept: read it in order, or in blocks.

    Parameters
    ----------
    uris : sequence of str
        Of the files, in order.
    image_column : str, optional
        Column of the image.

    Raises
    ------
    ConfigError
        If a file is no Parquet, has no rows or no such column.
    """

    def __init__(self, uris: Sequence[str], *, image_column: str = "image") -> None:
        super().__init__(uris)
        self.image_column = image_column
        self._groups: list[NDArray[np.int64]] = []
        for (storage, name), uri in zip(self._files, self.uris, strict=True):
            try:
                file = pq.ParquetFile(storage.local(name))
            except FileNotFoundError as error:
                raise ConfigError(f"there is no file {uri!r}") from error
            except pa.ArrowInvalid as error:
                raise ConfigError(f"{uri!r} is no Parquet file: {error}") from error
            columns = file.schema_arrow.names
            if image_column not in columns:
                raise ColumnError(
                    f"no image column {image_column!r}: {uri!r} has {sorted(columns)}. Name the "
                    "image column with image_column=… (--image-column)"
                )
            rows = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
            self._groups.append(np.cumsum(np.array(rows, np.int64)))
        self._count([int(ends[-1]) if len(ends) else 0 for ends in self._groups])
        self._kept: tuple[int, int, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, place = self._find(index)
        ends = self._groups[number]
        group = int(np.searchsorted(ends, place, side="right"))
        if self._kept is None or self._kept[:2] != (number, group):
            storage, name = self._files[number]
            file = pq.ParquetFile(storage.local(name))
            table = file.read_row_group(group, columns=[self.image_column])
            self._kept = (number, group, table.column(0))
        column = self._kept[2]
        value: Any = column[place - int(ends[group]) + len(column)].as_py()
        path = f"{self.uris[number]}:{place}"
        if isinstance(value, Mapping):
            struct = cast("Mapping[str, Any]", value)
            if struct.get("bytes") is not None:
                value = {"bytes": struct["bytes"], "path": struct.get("path") or path}
        elif isinstance(value, bytes):
            value = {"bytes": value, "path": path}
        return {self.image_column: value, "path": path}
