"""Whether a dataset is still the one that was tokenized: by its fingerprint, then by its images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any

import numpy as np

from subtok_data.data.datasets import ImageFiles, ShardedImages, SubobjectDataset, row_key
from subtok_data.data.store import Storage, StoredTokens, StoreMeta, TokenFinder, TokenWriter
from subtok_data.errors import ConfigError, SampleError, StoreError

__all__ = ["describe_source", "find_changed_rows", "refuse_changed_rows", "refuse_other_length"]

_CHECKED = 1024
_LISTED = 5

ChangedRow = tuple[int, bytes, bytes | None]
"""Row, the key of the image that was tokenized, and that of the image there is now."""


def describe_source(samples: SubobjectDataset) -> dict[str, Any]:
    """Where a dataset is from, and what changes when its images do.

    Returns
    -------
    dict
        ``uri`` and ``fingerprint``, each None where it is not known.
    """
    dataset = samples.dataset
    if isinstance(dataset, ImageFiles):
        return {"uri": str(dataset.folder), "fingerprint": dataset.fingerprint()}
    if isinstance(dataset, ShardedImages):
        return {"uri": dataset.uris[0], "fingerprint": dataset.fingerprint()}
    fingerprint = getattr(dataset, "_fingerprint", None)  # Hugging Face
    return {"uri": None, "fingerprint": fingerprint if isinstance(fingerprint, str) else None}


def find_changed_rows(
    samples: SubobjectDataset,
    writer: TokenWriter,
    shards: Iterable[int],
    *,
    every: bool,
    row_of: Callable[[int], Any],
) -> list[ChangedRow]:
    """Compare images with the keys that are stored.

    Parameters
    ----------
    samples : SubobjectDataset
        The dataset as it is now.
    writer : TokenWriter
        The store.
    shards : iterable of int
        Shards that are whole.
    every : bool
        Whether all of their rows are compared, or 1,024 spread over them.
    row_of : callable
        Reads a stored row.
    """
    ranges = [writer.meta.shard_range(number) for number in shards]
    rows = np.concatenate([np.zeros(0, np.int64), *(np.arange(r.start, r.stop) for r in ranges)])
    if not every and len(rows) > _CHECKED:
        rows = rows[np.linspace(0, len(rows) - 1, _CHECKED).astype(np.int64)]
    changed: list[ChangedRow] = []
    for index in rows.tolist():
        stored = row_of(index).key
        if stored is None:
            continue
        key = row_key(samples, index)
        if key != stored:
            changed.append((index, stored, key))
    return changed


def refuse_changed_rows(changed: list[ChangedRow], where: str) -> None:
    """Raise ConfigError that names rows whose images are others than those that were tokenized."""
    if not changed:
        return
    listed = "; ".join(
        f"row {index}: stored {old.hex()}, now {'unreadable' if new is None else new.hex()}"
        for index, old, new in changed[:_LISTED]
    )
    more = f"; and {len(changed) - _LISTED} more" if len(changed) > _LISTED else ""
    raise ConfigError(
        f"{len(changed)} images are not those that {where!r} holds tokens of ({listed}{more}): the "
        "dataset was changed or reordered since. Give the one that was tokenized, or another "
        "folder; or make the shards of these rows anew, with redo_changed=True (--redo-changed)"
    )


def refuse_other_length(samples: SubobjectDataset, found: StoreMeta, storage: Storage) -> None:
    """Raise ConfigError for a dataset that has more or fewer rows than a store.

    Parameters
    ----------
    samples : SubobjectDataset
        The dataset as it is now.
    found : StoreMeta
        Of the store.
    storage : Storage
        Where that is.
    """
    where, rows = str(storage), len(samples)
    if rows == found.rows:
        return
    what = f"{where!r} holds tokens of {found.rows} rows, the dataset has {rows}: "
    read = f"SubobjectDataset(dataset, tokens={where!r})"
    if rows < found.rows:
        raise ConfigError(
            f"{what}a part of what was tokenized needs no tokens of its own, {read} finds them by "
            "image; for another dataset give another folder"
        )
    raise ConfigError(
        f"{what}it has grown since, or is another one{_without_tokens(samples, storage)}. {read} "
        "finds the tokens of those that have some; give another folder to tokenize all"
    )


def _without_tokens(samples: SubobjectDataset, storage: Storage) -> str:
    """Say which image is the first that has no stored tokens, if that is soon found."""
    try:
        finder = TokenFinder(StoredTokens(storage), len(samples))
        rows = _rows_to_compare(samples, finder.tokens)
        for row in islice(rows, _CHECKED):
            key = row_key(samples, row)
            try:
                if key is not None:
                    finder.at(row, [key])
                    continue
            except SampleError:
                pass
            files = isinstance(samples.dataset, ImageFiles)
            name = repr(samples.dataset[row]["image"]) if files else f"row {row}"
            return f"; the first image without tokens is {name}"
        return "" if any(True for _ in rows) else ", but all its images have tokens"
    except (ConfigError, StoreError):  # unfinished, or damaged: the length says enough
        return ""


def _rows_to_compare(samples: SubobjectDataset, tokens: StoredTokens) -> Iterator[int]:
    """Rows whose file is new, where files are known; else those behind the stored ones first."""
    dataset = samples.dataset
    if not isinstance(dataset, ImageFiles):
        yield from chain(range(len(tokens), len(samples)), range(len(tokens)))
        return
    known = {path for table in tokens.index("path") for path in table.column(0).to_pylist()}
    for row in range(len(dataset)):
        if dataset[row]["image"] not in known:
            yield row
