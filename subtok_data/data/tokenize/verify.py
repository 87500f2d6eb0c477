"""Recompute some stored rows and compare them with what is stored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from subtok_data.data.store import ShardReader, Storage, StoredRow, shard_name
from subtok_data.data.tokenize.run import open_job
from subtok_data.data.tokenize.shards import tokenize_rows
from subtok_data.tokenizer import SubobjectTokenizer

__all__ = ["DifferingRow", "VerifyReport", "verify_tokens"]


@dataclass(frozen=True)
class DifferingRow:
    """A stored row that came out otherwise.

    Attributes
    ----------
    index : int
        Dataset row.
    what : str
        What differs.
    pixels : float
        Share of pixels whose token has another number; 1 where maps have another size.
    """

    index: int
    what: str
    pixels: float


@dataclass(frozen=True)
class VerifyReport:
    """What :func:`verify_tokens` found.

    Attributes
    ----------
    rows : int
        Recomputed.
    differing : tuple of DifferingRow
        Those that are not the same.
    """

    rows: int
    differing: tuple[DifferingRow, ...]


def verify_tokens(
    dataset: Any,
    tokenizer: SubobjectTokenizer,
    folder: str | Path | Storage,
    rows: int,
    *,
    seed: int | None = None,
    **options: Any,
) -> VerifyReport:
    """Recompute random rows, each in the batch that it was made in, and compare bit by bit.

    Parameters
    ----------
    dataset : dataset with ``len`` and integer indexing
        The one that was tokenized.
    tokenizer : SubobjectTokenizer
        The one that made the tokens.
    folder : str, Path or Storage
        Where they are; nothing is written there.
    rows : int
        How many, of those whose shards are there.
    seed : int, optional
        Of the choice; another one every time by default.
    **options
        Others of :func:`~subtok_data.data.tokenize_dataset` that say how images are read and where
        they are segmented.

    Returns
    -------
    VerifyReport

    Raises
    ------
    ConfigError
        If the store is of another configuration, length, device or precision.

    Examples
    --------
    >>> import tempfile
    >>> from subtok_data import PatchSegmenter
    >>> from subtok_data.data import tokenize_dataset
    >>> images = [np.full((64, 64, 3), shade, np.uint8) for shade in range(9)]
    >>> tokenizer = SubobjectTokenizer(PatchSegmenter(32), size=64)
    >>> with tempfile.TemporaryDirectory() as out:
    ...     report = tokenize_dataset(images, tokenizer, out, executor="inline")
    ...     verify_tokens(images, tokenizer, out, 3, executor="inline")
    VerifyReport(rows=3, differing=())
    """
    job = open_job(dataset, tokenizer, folder, begin=False, **options)
    meta, storage = job.writer.meta, job.writer.storage
    missing = set(job.writer.missing())
    ranges = [
        meta.shard_range(number) for number in range(meta.num_shards) if number not in missing
    ]
    indices = np.concatenate([np.zeros(0, np.int64), *(np.arange(r.start, r.stop) for r in ranges)])
    chosen = np.sort(np.random.default_rng(seed).permutation(indices)[:rows])
    stored: dict[int, list[StoredRow]] = {}  # by the size of their batches
    batches: dict[int, list[range]] = {}
    for index in chosen.tolist():
        shard, place = meta.find(index)
        reader = ShardReader(storage, shard_name(shard))
        size, own = reader.info.batch_size, reader.info.range
        start = index - place % size
        stored.setdefault(size, []).append(reader.row(place))
        batches.setdefault(size, []).append(range(start, min(start + size, own.stop)))
    differing: list[DifferingRow] = []
    for size, rows_of_one in stored.items():
        again = tokenize_rows(replace(job, batch_size=size), batches[size])
        for row, batch, found in zip(rows_of_one, batches[size], again, strict=True):
            difference = _compare(row, found[row.index - batch.start])
            if difference is not None:
                differing.append(difference)
    return VerifyReport(len(chosen), tuple(differing))


def _compare(stored: StoredRow, found: StoredRow) -> DifferingRow | None:
    if stored == found:
        return None
    if stored.key != found.key:
        return DifferingRow(stored.index, "the image is another one", 1.0)
    if stored.error != found.error:
        words = f"stored {stored.error or 'tokens'!r}, now {found.error or 'tokens'!r}"
        return DifferingRow(stored.index, words, 1.0)
    try:
        pairs = list(zip(stored.decode(), found.decode(), strict=True))
    except ValueError as error:
        return DifferingRow(stored.index, str(error), 1.0)
    if stored.sizes != found.sizes:
        return DifferingRow(stored.index, f"maps of {stored.sizes}, now {found.sizes}", 1.0)
    share = float(np.mean([np.mean(old[0] != new[0]) for old, new in pairs])) if pairs else 0.0
    counts = f"{stored.num_visual_tokens} tokens, now {found.num_visual_tokens}"
    return DifferingRow(stored.index, counts, share)
