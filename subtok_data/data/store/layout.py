"""What lies where in a store of tokens, and ``subtok.json``, which says what the store is.

``data/part=000/tokens-000000.parquet`` are the shards, 512 to a folder; ``index/``,
``lengths.u2`` and ``keys.bin`` follow from them once all are there, and
``provenance.jsonl`` says how each was made. ``progress/`` holds what an unfinished run needs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from subtok_data.arguments import compare_options
from subtok_data.data.store.shard import ShardInfo
from subtok_data.data.store.storage import Storage
from subtok_data.errors import ConfigError, StoreError

__all__ = [
    "FORMAT",
    "KEYS",
    "LENGTHS",
    "MANIFEST",
    "META",
    "PROVENANCE",
    "StoreMeta",
    "default_shard_rows",
    "index_name",
    "part_folder",
    "read_json",
    "shard_name",
    "write_json",
]

FORMAT = 2
META = "subtok.json"
PROVENANCE = "provenance.jsonl"
LENGTHS = "lengths.u2"
KEYS = "keys.bin"
MANIFEST = "index/index.json"
_FOLDER_SHARDS = 512
_OLD_META = "tokens.json"
_FEWEST, _MOST, _SHARDS = 256, 16_384, 64


def part_folder(shard: int) -> str:
    """Name of the folder that holds a shard, below ``data`` and ``progress``.

    Examples
    --------
    >>> part_folder(600)
    'part=001'
    """
    return f"part={shard // _FOLDER_SHARDS:03d}"


def shard_name(shard: int) -> str:
    """File of a shard.

    Examples
    --------
    >>> shard_name(3)
    'data/part=000/tokens-000003.parquet'
    """
    return f"data/{part_folder(shard)}/tokens-{shard:06d}.parquet"


def index_name(shard: int) -> str:
    """File of the index that a shard belongs to.

    Examples
    --------
    >>> index_name(3)
    'index/part=000.parquet'
    """
    return f"index/{part_folder(shard)}.parquet"


def default_shard_rows(rows: int) -> int:
    """Rows a shard: some 64 shards, of 256 to 16,384 rows.

    Examples
    --------
    >>> default_shard_rows(5_000), default_shard_rows(118_287), default_shard_rows(10**9)
    (256, 1849, 16384)
    """
    return min(_MOST, max(_FEWEST, -(-rows // _SHARDS)))


@dataclass(frozen=True, kw_only=True)
class StoreMeta:
    """What a store of tokens is: the same for all who write it.

    Attributes
    ----------
    config : dict
        ``SubobjectTokenizer.config()``.
    config_hash : str
        ``SubobjectTokenizer.config_hash``.
    rows : int
        Of the dataset.
    shard_rows : int
        Of each shard; the last may have fewer.
    shard_lengths : list of int or None
        Rows of each shard, where they are those of the dataset's own shards; ``shard_rows`` is the
        most then.
    device, dtype : str
        Where the model runs and in which precision, as :class:`ShardInfo` has them.
    mixed : bool
        Whether shards of other devices and precisions are taken too.
    source : dict
        The dataset: ``uri`` and ``fingerprint``, each None where it is not known.
    """

    config: dict[str, Any]
    config_hash: str
    rows: int
    shard_rows: int
    device: str
    dtype: str
    mixed: bool = False
    source: dict[str, Any] = field(default_factory=dict[str, Any])
    shard_lengths: list[int] | None = None

    @property
    def num_shards(self) -> int:
        """Shards of the finished store."""
        if self.shard_lengths is not None:
            return len(self.shard_lengths)
        return -(-self.rows // self.shard_rows)

    @cached_property
    def shard_starts(self) -> NDArray[np.int64]:
        """First dataset row of each shard, as a (shards,) array."""
        if self.shard_lengths is None:
            return np.arange(self.num_shards, dtype=np.int64) * self.shard_rows
        return np.cumsum([0, *self.shard_lengths], dtype=np.int64)[:-1]

    def shard_range(self, shard: int) -> range:
        """Dataset rows of a shard."""
        if self.shard_lengths is not None:
            start = int(self.shard_starts[shard])
            return range(start, start + self.shard_lengths[shard])
        start = shard * self.shard_rows
        return range(start, min(start + self.shard_rows, self.rows))

    def find(self, row: int) -> tuple[int, int]:
        """Shard of a dataset row, and its place there."""
        if self.shard_lengths is not None:
            shard = int(np.searchsorted(self.shard_starts, row, side="right")) - 1
            return shard, row - int(self.shard_starts[shard])
        return divmod(row, self.shard_rows)

    def shard_info(self, shard: int, batch_size: int) -> ShardInfo:
        """What a shard of this store says of itself."""
        rows = self.shard_range(shard)
        return ShardInfo(
            shard, rows.start, len(rows), self.config_hash, self.device, self.dtype, batch_size
        )

    def check_shard(self, info: ShardInfo, shard: int, where: str) -> None:
        """Refuse a shard of another store, or made in another way.

        Raises
        ------
        StoreError
            Saying what differs.
        """
        rows = self.shard_range(shard)
        expected: dict[str, Any] = {
            "shard": shard,
            "start": rows.start,
            "rows": len(rows),
            "config_hash": self.config_hash,
        }
        if not self.mixed:
            expected |= {"device": self.device, "dtype": self.dtype}
        for name, value in expected.items():
            if getattr(info, name) != value:
                raise StoreError(
                    f"{where}: {shard_name(shard)} has {name} {getattr(info, name)!r}, the store "
                    f"{value!r}: delete that file and run `subtok tokenize` again"
                )

    @classmethod
    def read_if_begun(cls, storage: Storage) -> StoreMeta | None:
        """Read ``subtok.json`` if tokens were begun there; as :meth:`read`."""
        begun = any(storage.size(name) is not None for name in (META, _OLD_META))
        return cls.read(storage) if begun else None

    @classmethod
    def read(cls, storage: Storage) -> StoreMeta:
        """Read ``subtok.json``.

        Raises
        ------
        ConfigError
            There is none, or it is of another format.
        StoreError
            It is damaged.
        """
        if storage.size(META) is None:
            if storage.size(_OLD_META) is not None:
                raise ConfigError(
                    f"{str(storage)!r} holds tokens of format 1, this version of subtok_data reads "
                    f"{FORMAT}: make them again, with `subtok tokenize SRC --out` and another "
                    "folder"
                )
            raise ConfigError(
                f"no finished tokens in {str(storage)!r}: make them with `subtok tokenize SRC "
                f"--out {storage}`"
            )
        found = read_json(storage, META)
        version = found.pop("format", None)
        if version != FORMAT:
            raise ConfigError(
                f"tokens in {str(storage)!r} have format version {version}, this version of "
                f"subtok_data reads {FORMAT}: make them again"
            )
        try:
            meta = cls(**found)
        except TypeError as error:
            raise StoreError(f"{str(storage)!r}: {META} is damaged: {error}") from error
        lengths = meta.shard_lengths
        if (
            meta.shard_rows < 1
            or meta.rows < 0
            or (lengths is not None and (min(lengths, default=0) < 1 or sum(lengths) != meta.rows))
        ):
            raise StoreError(
                f"{str(storage)!r}: {META} has {meta.rows} rows, in shards of "
                f"{meta.shard_rows if lengths is None else lengths}"
            )
        return meta

    def write(self, storage: Storage) -> None:
        """Write ``subtok.json``."""
        write_json(storage, META, {"format": FORMAT, **asdict(self)})

    def refuse_other(self, wanted: StoreMeta, where: str) -> StoreMeta:
        """Check that a run makes what is stored already; return what holds for both.

        Parameters
        ----------
        wanted : StoreMeta
            Of the run.
        where : str
            The store, for messages.

        Raises
        ------
        ConfigError
            Saying what differs, and what to do.
        """
        for name in ("config_hash", "rows", "shard_rows", "shard_lengths"):
            if getattr(self, name) == getattr(wanted, name):
                continue
            values = f"{name} {getattr(self, name)!r}", f"{name} {getattr(wanted, name)!r}"
            if name == "config_hash":  # options say more than their hash
                values = compare_options(self.config, wanted.config) or values
            raise ConfigError(
                f"{where!r} holds tokens with {values[0]}, asked for {values[1]}: give "
                "another folder, or delete this one"
            )
        mixed = self.mixed or wanted.mixed
        if (self.device, self.dtype) != (wanted.device, wanted.dtype) and not mixed:
            raise ConfigError(
                f"{where!r} holds tokens made on {self.device} in {self.dtype}, asked for "
                f"{wanted.device} in {wanted.dtype}, which may give other tokens: choose the same "
                "device and dtype, or take both with mixed=True (--mixed)"
            )
        return replace(wanted, mixed=mixed)


def read_json(storage: Storage, name: str) -> dict[str, Any]:
    """Read what :func:`write_json` wrote.

    Raises
    ------
    StoreError
        If it is not what was written.
    """
    try:
        found = json.loads(storage.read(name))
        check = found.pop("check", None)
        if not isinstance(found, dict) or check != _check(cast("dict[str, Any]", found)):
            raise ValueError("its checksum does not fit")
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise StoreError(
            f"{str(storage)!r}: {name} is damaged ({error}); delete it and run `subtok tokenize` "
            "again: shards that are whole are kept"
        ) from error
    return cast("dict[str, Any]", found)


def write_json(storage: Storage, name: str, value: Mapping[str, Any]) -> None:
    """Write a JSON object with a checksum in it."""
    content = {**value, "check": _check(value)}
    with storage.create(name) as file:
        file.write(json.dumps(content, indent=2).encode() + b"\n")


def _check(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
