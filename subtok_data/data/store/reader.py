"""Reading stored tokens: a row at a time, from shards that are checked where they are read."""

from __future__ import annotations

import json
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from subtok_data.arguments import describe
from subtok_data.data.store.fsspec_storage import open_storage
from subtok_data.data.store.layout import MANIFEST, StoreMeta, read_json, shard_name
from subtok_data.data.store.row import StoredRow, TokenMaps
from subtok_data.data.store.shard_reader import GroupCache, ShardReader
from subtok_data.data.store.storage import LocalStorage, Storage
from subtok_data.data.store.writer import row_sums
from subtok_data.errors import ConfigError, SampleError, StoreError
from subtok_data.hub import commit_folder
from subtok_data.images import DEFAULT_MAX_PIXELS, KEY_BYTES

__all__ = ["StoredTokens", "open_tokens"]

_KEPT_SHARDS = 1024


class StoredTokens:
    """Read the tokens that ``subtok tokenize`` wrote.

    Holds few files open and few shards in memory, however many there are.

    Parameters
    ----------
    folder : str, Path or Storage
        Where the tokens are: a folder, ``s3://``, ``gs://`` or ``hf://datasets/USER/NAME``, of
        which shards are fetched to a local cache when they are first read.

    Attributes
    ----------
    folder : Storage
        Where the tokens are.
    meta : StoreMeta
        What they are.

    Raises
    ------
    ConfigError
        If there are no finished tokens, or of another format version.
    StoreError
        If what describes them is damaged.
    """

    def __init__(self, folder: str | Path | Storage) -> None:
        self.folder = open_storage(folder)
        self.meta = StoreMeta.read(self.folder)
        if self.folder.size(MANIFEST) is None:
            raise ConfigError(
                f"no finished tokens in {str(self.folder)!r}: finish them with `subtok tokenize "
                f"SRC --out {self.folder}`, or `subtok tokenize {self.folder} --finish` where all "
                "shards are there"
            )
        self._manifest = read_json(self.folder, MANIFEST)
        side = self.meta.config.get("canvas", {}).get("size")
        self._max_pixels = DEFAULT_MAX_PIXELS if side is None else side * side
        self._shards: OrderedDict[int, ShardReader] = OrderedDict()
        self._groups = GroupCache()
        self._maps: dict[str, NDArray[Any]] = {}
        self._checked: set[str] = set()

    def __len__(self) -> int:
        return self.meta.rows

    def __getstate__(self) -> dict[str, Any]:
        # Open files stay in their process; workers open their own.
        own = {"_shards": OrderedDict[int, Any](), "_groups": GroupCache(), "_maps": {}}
        return {**self.__dict__, **own}

    @property
    def config(self) -> dict[str, Any]:
        """Configuration of the tokenizer that made them."""
        return self.meta.config

    @property
    def config_hash(self) -> str:
        """Hash of that configuration."""
        return self.meta.config_hash

    @property
    def num_failed(self) -> int:
        """Rows without tokens."""
        return self._manifest["failed"]

    def lengths(self) -> NDArray[np.uint16]:
        """Visual tokens of each dataset row, summed over its images, as a (rows,) uint16 array.

        Mapped from its file, whose checksum is compared once. Rows without tokens count 0; 65,535
        stands for that many or more. The length column of length-bucketed batches.

        Raises
        ------
        StoreError
            If the file is damaged.
        """
        found = self._mapped("lengths", np.dtype("<u2"))
        self._check_mapped("lengths", found)
        return found

    def keys(self) -> NDArray[np.uint8]:
        """Key of the image of each row, as a (rows, 16) uint8 array; zeros where there is none.

        Mapped from its file, not read; :meth:`check_keys` compares it with its checksum.

        Raises
        ------
        StoreError
            If the file is missing or truncated.
        """
        return self._mapped("keys", np.dtype((np.uint8, KEY_BYTES)))

    def check_keys(self) -> None:
        """Raise StoreError if the file of keys is not what was written."""
        self._check_mapped("keys", self.keys())

    def _mapped(self, kind: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Map a file of one value a row."""
        if kind in self._maps:
            return self._maps[kind]
        name = self._manifest[kind]["name"]
        if not self.meta.rows:
            return np.zeros(0, dtype)
        try:
            path = self.folder.local(name)
            found = np.memmap(path, dtype.base, "r").reshape(-1, *dtype.shape)
        except (OSError, ValueError) as error:
            raise self._damaged(name, str(error)) from error
        if len(found) != self.meta.rows:
            raise self._damaged(name, f"it has {len(found)} values for {self.meta.rows} rows")
        self._maps[kind] = found
        return found

    def _check_mapped(self, kind: str, found: NDArray[Any]) -> None:
        """Compare a file with its checksum, once."""
        if kind in self._checked:
            return
        if zlib.crc32(cast("Any", found)) != self._manifest[kind]["crc32"]:
            raise self._damaged(self._manifest[kind]["name"], "it is not what was written")
        self._checked.add(kind)

    def check_length(self, rows: int) -> None:
        """Refuse a dataset of another length, where rows go by their number."""
        if rows != self.meta.rows:
            raise ConfigError(
                f"the dataset has {rows} rows, but {str(self.folder)!r} holds tokens of "
                f"{self.meta.rows}, and here row k takes the tokens of row k: give the dataset "
                "that was tokenized"
            )

    def places(self) -> NDArray[np.int64]:
        """(row, number within the row) of every stored map, as a (maps, 2) array."""
        maps = np.concatenate(
            [np.zeros(0, np.int64)]
            + [row_sums(t.column("num_visual_tokens"))[1] for t in self.index("num_visual_tokens")]
        )
        rows = np.repeat(np.arange(len(maps)), maps)
        number = np.arange(len(rows)) - np.repeat(np.cumsum(maps) - maps, maps)
        return np.stack([rows, number], axis=1).astype(np.int64)

    def failures(self) -> Iterator[tuple[int, str | None, str]]:
        """Yield (index, path, reason) of every row without tokens."""
        for table in self.index("index", "path", "error"):
            failed = table.filter(table.column("error").is_valid())
            for row in failed.to_pylist():
                yield row["index"], row["path"], row["error"]

    def index(self, *columns: str) -> Iterator[Any]:
        """Yield Arrow tables of all rows in order: index, path, num_visual_tokens, sizes, error.

        Raises
        ------
        StoreError
            If the index is damaged.
        """
        for part in self._manifest["parts"]:
            try:
                content = self.folder.read(part["name"])
            except FileNotFoundError as error:
                raise self._damaged(part["name"], "it is missing") from error
            if len(content) != part["bytes"] or zlib.crc32(content) != part["crc32"]:
                raise self._damaged(part["name"], "it is not what was written")
            file = pq.ParquetFile(pa.BufferReader(content))
            for number in range(file.num_row_groups):
                yield file.read_row_group(number, columns=list(columns))

    def read(self, index: int, keys: Iterable[bytes] = ()) -> TokenMaps:
        """Token maps of one dataset row, each with its token fields, without the images.

        Parameters
        ----------
        index : int
            Of the dataset.
        keys : iterable of bytes, optional
            Of the image that the tokens are for: one of them must be that of the image they were
            made from. What follows the first that fits is not asked for.

        Raises
        ------
        SampleError
            If the row has none; the reason is the one met when they were made. If they are damaged,
            or of another image.
        """
        return self.maps(self.row(index), keys)

    def maps(self, row: StoredRow, keys: Iterable[bytes] = ()) -> TokenMaps:
        """Token maps of a row that was read; as :meth:`read`."""
        index = row.index
        if row.key is not None:
            _check_key(index, row, row.key, keys)
        if row.error is not None:
            raise SampleError(f"no stored tokens: {row.error}", index=index, stage="decode")
        try:
            return row.decode(max_pixels=self._max_pixels)
        except StoreError as error:
            name = shard_name(self.meta.find(index)[0])
            raise SampleError(
                f"{str(self.folder)!r}: {name}: {error}", index=index, stage="decode"
            ) from error

    def row(self, index: int) -> StoredRow:
        """Read one row as it is stored.

        Raises
        ------
        SampleError
            If its shard is damaged or missing.
        """
        shard, place = self.meta.find(index)
        try:
            return self._shard(shard).row(place)
        except StoreError as error:
            raise SampleError(str(error), index=index, stage="decode") from error

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[StoredRow]:
        """Yield rows in order, several times as fast as one at a time; for streams.

        Parameters
        ----------
        start, stop : int, optional
            Dataset rows; all by default.

        Raises
        ------
        StoreError
            If a shard is damaged or missing.
        """
        stop = self.meta.rows if stop is None else min(stop, self.meta.rows)
        while start < stop:
            shard, place = self.meta.find(start)
            reader = self._shard(shard)
            for row in reader.rows(place, stop - start + place):
                yield row
                start += 1

    def push_to_hub(
        self,
        name: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Upload the folder to a dataset of the Hugging Face hub, made if there is none.

        ``StoredTokens("hf://datasets/USER/NAME")`` reads it from there. Files that are there
        already and have not changed are not sent again.

        Parameters
        ----------
        name : str
            ``"user/name"``, or a name in the account of the token.
        private : bool, optional
            Of a new dataset.
        token : str or bool, optional
            By default that of ``hf auth login``.
        revision : str, optional
            Branch.
        commit_message : str, optional
            Of the commit.

        Returns
        -------
        str
            Address of the commit.

        Raises
        ------
        ConfigError
            If the tokens are not in a local folder. What the hub refuses is raised as
            ``huggingface_hub`` raises it.
        """
        if not isinstance(self.folder, LocalStorage):
            raise ConfigError(
                f"tokens in {str(self.folder)!r} are uploaded from a local folder only: copy them "
                "to one"
            )
        card = _CARD.format(
            rows=len(self),
            config=json.dumps(self.config, indent=2),
            config_hash=self.config_hash,
        )
        return commit_folder(
            self.folder.folder,
            name,
            card,
            repo_type="dataset",
            ignore=("progress/*", ".*", "*/.*"),
            private=private,
            token=token,
            revision=revision,
            commit_message=commit_message or "Stored tokens",
        )

    def _shard(self, number: int) -> ShardReader:
        reader = self._shards.get(number)
        if reader is None:
            reader = ShardReader(self.folder, shard_name(number), self._groups)
            self.meta.check_shard(reader.info, number, str(self.folder))
            self._shards[number] = reader
            while len(self._shards) > _KEPT_SHARDS:
                self._shards.popitem(last=False)
        else:
            self._shards.move_to_end(number)
        return reader

    def _damaged(self, name: str, why: str) -> StoreError:
        return StoreError(
            f"{str(self.folder)!r}: {name} is damaged: {why}. Run `subtok tokenize {self.folder} "
            "--finish`: it follows from the shards"
        )


_CARD = """\
---
tags:
- subobject-tokens
configs:
- config_name: default
  data_files: data/*/*.parquet
---

# {{{{name}}}}

Subobject tokens of {rows} images, without the images: stored by `subtok tokenize`, for the dataset
that they were made from.

```python
SubobjectDataset(dataset, tokens="hf://datasets/{{{{name}}}}")
```

Configuration `{config_hash}`:

```json
{config}
```
"""


def open_tokens(tokens: str | Path | Storage | StoredTokens) -> StoredTokens:
    """Open stored tokens, unless they are open already.

    Parameters
    ----------
    tokens : str, Path, Storage or StoredTokens
        Where they are, or they themselves.

    Raises
    ------
    ConfigError
        If it is something else, or there are no finished tokens.
    """
    if isinstance(tokens, StoredTokens):
        return tokens
    if not isinstance(tokens, str | Path) and not callable(getattr(tokens, "local", None)):
        raise ConfigError(
            f"tokens is {describe(tokens)}, expected str, Path or StoredTokens: give the folder or "
            "URI that `subtok tokenize` wrote to"
        )
    return StoredTokens(tokens)


def _check_key(index: int, row: StoredRow, made_from: bytes, keys: Iterable[bytes]) -> None:
    """Raise SampleError unless tokens were made from the image that has one of the keys."""
    first: bytes | None = None
    for key in keys:
        if key == made_from:
            return
        first = first or key
    if first is not None:
        path = "" if row.path is None else f" ({row.path!r})"
        raise SampleError(
            f"the stored tokens of row {index} belong to another image: they were made from "
            f"{made_from.hex()}{path}, this one is {first.hex()}. The dataset was reordered or "
            "changed since, or gives pixels where it gave files: give the one that was tokenized, "
            "or tokenize again",
            index=index,
            stage="decode",
        )
