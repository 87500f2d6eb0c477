"""Tokens on disk: Arrow shards of compressed records, an index, and what made them.

A folder holds ``tokens.json`` (format version, configuration, its hash), ``tokens-00000.arrow`` …
(one row per dataset row, in order; a shard appears whole or not at all, so an interrupted run goes
on where it stopped) and ``index.parquet`` (counts, sizes and errors without the records).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from subtok_data.data.record import decode_record, encode_record
from subtok_data.errors import ConfigError, SampleError
from subtok_data.segment.geometry import picture_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from subtok_data.data.sample import Sample

__all__ = ["SHARD_ROWS", "StoredRow", "StoredTokens", "TokenWriter"]

STORE_VERSION = 1
SHARD_ROWS = 256
_META = "tokens.json"
_INDEX = "index.parquet"
_SCHEMA = pa.schema(
    [
        ("index", pa.int64()),
        ("path", pa.string()),
        ("num_visual_tokens", pa.list_(pa.int32())),
        ("sizes", pa.list_(pa.int32())),  # h, w of each map, one after the other
        ("error", pa.string()),
        ("records", pa.list_(pa.binary())),
    ]
)


@dataclass(frozen=True)
class StoredRow:
    """Tokens of one dataset row: a map per image, or the error that prevented them."""

    index: int
    path: str | None
    token_maps: Sequence[Any] = ()
    token_fields: Sequence[Mapping[str, Any]] = ()
    error: str | None = None

    def as_arrow(self) -> dict[str, Any]:
        """The row in the schema of the shards."""
        fields = self.token_fields or [{}] * len(self.token_maps)
        return {
            "index": self.index,
            "path": self.path,
            "num_visual_tokens": [int(token_map.max()) + 1 for token_map in self.token_maps],
            "sizes": [side for token_map in self.token_maps for side in token_map.shape],
            "error": self.error,
            "records": [encode_record(m, f) for m, f in zip(self.token_maps, fields, strict=True)],
        }


class TokenWriter:
    """Write the tokens of a dataset to a folder, shard by shard, and go on after an interruption.

    Parameters
    ----------
    folder : str or Path
        Made if absent. One that holds tokens of another configuration or length is refused.
    config : mapping
        ``SubobjectTokenizer.config()``.
    config_hash : str
        ``SubobjectTokenizer.config_hash``.
    num_rows : int
        Rows of the dataset.
    """

    def __init__(
        self, folder: str | Path, *, config: Mapping[str, Any], config_hash: str, num_rows: int
    ) -> None:
        self.folder = Path(folder)
        self.num_rows = num_rows
        meta = {
            "store_version": STORE_VERSION,
            "config_hash": config_hash,
            "num_rows": num_rows,
            "shard_rows": SHARD_ROWS,
            "config": dict(config),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / _META
        if file.exists():
            _refuse_other(json.loads(file.read_text(encoding="utf-8")), meta, self.folder)
        else:
            _write_atomically(file, json.dumps(meta, indent=2).encode() + b"\n")

    def missing(self) -> Iterator[range]:
        """Ranges of dataset indices whose shard does not exist yet."""
        for number, start in enumerate(range(0, self.num_rows, SHARD_ROWS)):
            if not _shard(self.folder, number).exists():
                yield range(start, min(start + SHARD_ROWS, self.num_rows))

    def write(self, rows: Sequence[StoredRow]) -> None:
        """Write one whole shard: the rows of one range of :meth:`missing`, in order."""
        number, rest = divmod(rows[0].index, SHARD_ROWS)
        expected = min(SHARD_ROWS, self.num_rows - rows[0].index)
        if rest or [row.index for row in rows] != list(
            range(rows[0].index, rows[0].index + expected)
        ):
            raise ValueError(
                f"a shard holds {expected} rows in order from a multiple of {SHARD_ROWS}, got "
                f"{len(rows)} rows from {rows[0].index}"
            )
        table = pa.Table.from_pylist([row.as_arrow() for row in rows], schema=_SCHEMA)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, _SCHEMA) as writer:
            writer.write_table(table)
        _write_atomically(_shard(self.folder, number), sink.getvalue())

    def finish(self) -> list[tuple[int, str | None, str]]:
        """Write the index and return (index, path, reason) of every row without tokens."""
        left = list(self.missing())
        if left:
            raise ValueError(f"rows {left[0].start}–{left[0].stop - 1} are not written yet")
        shards = [_open_shard(file) for file in sorted(self.folder.glob("tokens-*.arrow"))]
        table = pa.concat_tables(shards) if shards else _SCHEMA.empty_table()
        index = table.drop_columns(["records"])
        sink = pa.BufferOutputStream()
        pq.write_table(index, sink)
        _write_atomically(self.folder / _INDEX, sink.getvalue())
        return [
            (row["index"], row["path"], row["error"])
            for row in index.select(["index", "path", "error"]).to_pylist()
            if row["error"] is not None
        ]


class StoredTokens:
    """Read the tokens that ``subtok tokenize`` wrote.

    Parameters
    ----------
    folder : str or Path
        Folder of the tokens.

    Attributes
    ----------
    config_hash : str
        Hash of the tokenizer configuration that made them.

    Raises
    ------
    ConfigError
        If the folder holds no finished tokens, or another format version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        file = self.folder / _META
        if not file.is_file() or not (self.folder / _INDEX).is_file():
            raise ConfigError(
                f"no finished tokens in {str(folder)!r}: make them with `subtok tokenize SRC --out "
                f"{folder}`, which also finishes an interrupted run"
            )
        meta = json.loads(file.read_text(encoding="utf-8"))
        if meta["store_version"] != STORE_VERSION:
            raise ConfigError(
                f"tokens in {str(folder)!r} have format version {meta['store_version']}, this "
                f"version of subtok_data reads {STORE_VERSION}: make them again"
            )
        self.config_hash: str = meta["config_hash"]
        self.config: dict[str, Any] = meta["config"]
        self._num_rows: int = meta["num_rows"]
        self._shard_rows: int = meta["shard_rows"]
        self._open: dict[int, Any] = {}

    def __len__(self) -> int:
        return self._num_rows

    def __getstate__(self) -> dict[str, Any]:
        # Memory maps stay in their process; workers open their own.
        return {**self.__dict__, "_open": {}}

    def lengths(self) -> Any:
        """Visual tokens of each dataset row, summed over its images, as an (rows,) int64 array.

        Rows without tokens count 0. The length column of length-bucketed batches.
        """
        column = pq.read_table(self.folder / _INDEX, columns=["num_visual_tokens"]).column(0)
        return np.array([sum(counts) for counts in column.to_pylist()], dtype=np.int64)

    def check_length(self, rows: int) -> None:
        """Refuse a dataset of another length."""
        if rows != self._num_rows:
            raise ConfigError(
                f"the dataset has {rows} rows, but {str(self.folder)!r} holds tokens of "
                f"{self._num_rows}: give the dataset that was tokenized"
            )

    def places(self) -> NDArray[np.int64]:
        """(row, number within the row) of every stored map, as a (maps, 2) array."""
        column = pq.read_table(self.folder / _INDEX, columns=["num_visual_tokens"]).column(0)
        maps = [len(counts) for counts in column.to_pylist()]
        rows = np.repeat(np.arange(len(maps)), maps)
        number = np.arange(len(rows)) - np.repeat(np.cumsum(maps) - maps, maps)
        return np.stack([rows, number], axis=1).astype(np.int64)

    def read(self, index: int) -> list[tuple[NDArray[Any], dict[str, NDArray[Any]]]]:
        """Token maps of one dataset row, each with its token fields, without the images.

        Raises
        ------
        SampleError
            If the row has none; the reason is the one met when they were made.
        """
        records, error = self._row(index)
        if error is not None:
            raise SampleError(f"no stored tokens: {error}", index=index, stage="decode")
        return [decode_record(record) for record in records]

    def _row(self, index: int) -> tuple[list[bytes], str | None]:
        number, row = divmod(index, self._shard_rows)
        if number not in self._open:
            self._open[number] = _open_shard(_shard(self.folder, number))
        table = self._open[number]
        return table.column("records")[row].as_py(), table.column("error")[row].as_py()

    def attach(self, sample: Sample) -> None:
        """Give a sample its token maps, and bring its images and prompts to their size.

        Raises
        ------
        SampleError
            If there are none for this row; the reason is the one met when they were made.
        """
        records, error = self._row(sample.index)
        if error is not None or len(records) != len(sample.images):
            reason = error or f"{len(records)} stored maps for {len(sample.images)} images"
            raise SampleError(
                f"no stored tokens: {reason}",
                index=sample.index,
                path=sample.paths[0] if sample.paths else None,
                stage="decode",
            )
        from subtok_data.images import resize  # here, so that reading maps alone loads no decoder

        found = [decode_record(record) for record in records]
        sample.token_maps = [token_map for token_map, _ in found]
        sample.token_fields = [fields for _, fields in found]
        sizes = [picture_size(token_map) for token_map in sample.token_maps]
        sample.images = [resize(*pair) for pair in zip(sample.images, sizes, strict=True)]
        if sample.prompts is not None:
            pairs = zip(sample.prompts, sizes, strict=True)
            sample.prompts = [prompts.resized(size) for prompts, size in pairs]
        sample.tokens_hash = self.config_hash


def _shard(folder: Path, number: int) -> Path:
    return folder / f"tokens-{number:05d}.arrow"


def _open_shard(file: Path) -> Any:
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all()


def _write_atomically(file: Path, content: Any) -> None:
    unfinished = file.with_name(f"{file.name}.{os.getpid()}.part")
    with unfinished.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    unfinished.replace(file)


def _refuse_other(found: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    for name in ("store_version", "config_hash", "num_rows", "shard_rows"):
        if found.get(name) == wanted[name]:
            continue
        have, want = {name: found.get(name)}, {name: wanted[name]}
        if name == "config_hash":  # options say more than their hash
            have, want = _differing(found["config"], wanted["config"]) or (have, want)
        raise ConfigError(
            f"{str(folder)!r} holds tokens with {_listed(have)}, asked for {_listed(want)}: "
            "give another folder, or delete this one"
        )


def _differing(
    found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Options that two configurations do not share, with the value in each."""
    old, new = _flat(found), _flat(wanted)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if not names:
        return None
    return {name: old.get(name) for name in names}, {name: new.get(name) for name in names}


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat.update(
            _flat(cast("Mapping[str, Any]", value)) if isinstance(value, dict) else {name: value}
        )
    return flat


def _listed(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value!r}" for name, value in options.items())
