"""Reading stored tokens: a row at a time, from shards that are mapped into memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from subtok_data.data.store.format import (
    INDEX,
    META,
    STORE_VERSION,
    decode_record,
    open_shard,
    shard_file,
)
from subtok_data.errors import ConfigError, SampleError

if TYPE_CHECKING:
    from numpy.typing import NDArray


__all__ = ["StoredTokens"]


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
        file = self.folder / META
        if not file.is_file() or not (self.folder / INDEX).is_file():
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
        column = pq.read_table(self.folder / INDEX, columns=["num_visual_tokens"]).column(0)
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
        column = pq.read_table(self.folder / INDEX, columns=["num_visual_tokens"]).column(0)
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
        number, row = divmod(index, self._shard_rows)
        if number not in self._open:
            self._open[number] = open_shard(shard_file(self.folder, number))
        table = self._open[number]
        error = table.column("error")[row].as_py()
        if error is not None:
            raise SampleError(f"no stored tokens: {error}", index=index, stage="decode")
        return [decode_record(record) for record in table.column("records")[row].as_py()]
