"""Writing tokens: shard by shard, each whole or not at all, and on where an earlier run stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from subtok_data.data.store.format import (
    INDEX,
    META,
    SCHEMA,
    STORE_VERSION,
    encode_record,
    open_shard,
    shard_file,
)
from subtok_data.errors import ConfigError

__all__ = ["SHARD_ROWS", "StoredRow", "TokenWriter"]

SHARD_ROWS = 256


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
            "path": _escaped(self.path),
            "num_visual_tokens": [int(token_map.max()) + 1 for token_map in self.token_maps],
            "sizes": [side for token_map in self.token_maps for side in token_map.shape],
            "error": _escaped(self.error),
            "records": [encode_record(m, f) for m, f in zip(self.token_maps, fields, strict=True)],
        }


def _escaped(text: str | None) -> str | None:
    """Text that UTF-8 can hold: other bytes of file names become their escapes."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode("utf-8")


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
        file = self.folder / META
        if file.exists():
            _refuse_other(json.loads(file.read_text(encoding="utf-8")), meta, self.folder)
        else:
            _write_atomically(file, json.dumps(meta, indent=2).encode() + b"\n")

    def missing(self) -> Iterator[range]:
        """Ranges of dataset indices whose shard does not exist yet."""
        for number, start in enumerate(range(0, self.num_rows, SHARD_ROWS)):
            if not shard_file(self.folder, number).exists():
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
        table = pa.Table.from_pylist([row.as_arrow() for row in rows], schema=SCHEMA)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, SCHEMA) as writer:
            writer.write_table(table)
        _write_atomically(shard_file(self.folder, number), sink.getvalue())

    def finish(self) -> list[tuple[int, str | None, str]]:
        """Write the index and return (index, path, reason) of every row without tokens."""
        left = list(self.missing())
        if left:
            raise ValueError(f"rows {left[0].start}–{left[0].stop - 1} are not written yet")
        shards = [open_shard(file) for file in sorted(self.folder.glob("tokens-*.arrow"))]
        table = pa.concat_tables(shards) if shards else SCHEMA.empty_table()
        index = table.drop_columns(["records"])
        sink = pa.BufferOutputStream()
        pq.write_table(index, sink)
        _write_atomically(self.folder / INDEX, sink.getvalue())
        return [
            (row["index"], row["path"], row["error"])
            for row in index.select(["index", "path", "error"]).to_pylist()
            if row["error"] is not None
        ]


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
