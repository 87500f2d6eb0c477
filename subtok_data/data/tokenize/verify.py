"""Compare what is stored with its images, or, without them, with what it says of itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtok_data.data.store import (
    ShardReader,
    Storage,
    StoredRow,
    StoredTokens,
    StoreMeta,
    StoreStatus,
    TokenWriter,
    row_sums,
    shard_name,
)
from subtok_data.data.tokenize.run import open_job
from subtok_data.data.tokenize.shards import tokenize_rows
from subtok_data.errors import StoreError
from subtok_data.images import KEY_BYTES
from subtok_data.tokenizer import SubobjectTokenizer, hash_config

__all__ = ["CheckReport", "DifferingRow", "VerifyReport", "check_tokens", "verify_tokens"]

_MOST_PROBLEMS = 1000


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


@dataclass(frozen=True)
class CheckReport:
    """What :func:`check_tokens` found.

    Attributes
    ----------
    rows : int
        Decoded.
    shards : int
        Of which every byte was compared with its checksum.
    problems : tuple of str
        What is wrong, where, and what to do: the first 1,000.
    """

    rows: int
    shards: int
    problems: tuple[str, ...]


def check_tokens(
    folder: str | Path | Storage, rows: int, *, seed: int | None = None
) -> CheckReport:
    """Check all that can be checked of stored tokens without their images.

    Every byte of the shards against its checksum, the lengths and keys of all rows against those in
    the shards, the configuration against its hash, and the maps of some rows against their sizes
    and numbers of tokens.

    Parameters
    ----------
    folder : str, Path or Storage
        Where they are; nothing is written there.
    rows : int
        How many are decoded, chosen at random.
    seed : int, optional
        Of the choice; another one every time by default.

    Returns
    -------
    CheckReport

    Raises
    ------
    ConfigError
        If there is no store.

    Examples
    --------
    >>> import tempfile
    >>> from subtok_data import PatchSegmenter
    >>> from subtok_data.data import tokenize_dataset
    >>> images = [np.full((64, 64, 3), shade, np.uint8) for shade in range(9)]
    >>> tokenizer = SubobjectTokenizer(PatchSegmenter(32), size=64)
    >>> with tempfile.TemporaryDirectory() as out:
    ...     report = tokenize_dataset(images, tokenizer, out, executor="inline")
    ...     check_tokens(out, 3)
    CheckReport(rows=3, shards=1, problems=())
    """
    writer = TokenWriter.open(folder)
    meta, storage = writer.meta, writer.storage
    problems: list[str] = []
    if hash_config(meta.config) != meta.config_hash:
        problems.append(f"the configuration in {str(storage)!r} is not that of its hash")
    status = writer.status()
    if status.missing:
        problems.append(
            f"{len(status.missing)} of {status.shards} shards are missing, the first is "
            f"{status.missing[0]}: run `subtok tokenize` again"
        )
    problems += [why for _, why in status.damaged]
    whole = sorted({*range(meta.num_shards)} - {*status.missing, *(n for n, _ in status.damaged)})
    if status.finished:
        try:
            problems += _compare_index(StoredTokens(storage), whole)
        except StoreError as error:
            problems.append(str(error))
    else:
        problems.append(f"not finished: run `subtok tokenize {storage} --finish`")
    chosen = _choose_rows(meta, status, rows, seed)
    for index in chosen.tolist():
        shard, place = meta.find(index)
        row = ShardReader(storage, shard_name(shard)).row(place)
        why = _wrong_maps(row)
        if why is not None:
            problems.append(f"row {index} in {shard_name(shard)}: {why}")
    return CheckReport(len(chosen), len(whole), tuple(problems[:_MOST_PROBLEMS]))


def _compare_index(tokens: StoredTokens, shards: list[int]) -> Iterator[str]:
    """What lengths and keys say otherwise than the shards they follow from."""
    lengths, keys = tokens.lengths(), tokens.keys()
    tokens.check_keys()
    for shard in shards:
        reader = ShardReader(tokens.folder, shard_name(shard))
        at = reader.info.start
        for table in reader.columns(["num_visual_tokens", "key"]):
            sums = np.minimum(row_sums(table.column("num_visual_tokens"))[0], 65_535)
            own = b"".join(key or bytes(KEY_BYTES) for key in table.column("key").to_pylist())
            behind = at + table.num_rows
            if not np.array_equal(sums, lengths[at:behind]) or own != keys[at:behind].tobytes():
                yield (
                    f"lengths or keys of the rows {at} to {behind - 1} are not those in "
                    f"{shard_name(shard)}: run `subtok tokenize {tokens.folder} --finish`"
                )
            at = behind


def _wrong_maps(row: StoredRow) -> str | None:
    """Why the maps of a row are not what the row says."""
    try:
        maps = row.decode()
    except StoreError as error:
        return str(error)
    counts = tuple(int(token_map.max()) + 1 for token_map, _ in maps)
    if counts != row.num_visual_tokens:
        return f"it says {row.num_visual_tokens} tokens, its maps have {counts}"
    return None


def _choose_rows(
    meta: StoreMeta, status: StoreStatus, rows: int, seed: int | None
) -> NDArray[np.int64]:
    """Random rows of the shards that are whole, in order."""
    wrong = {*status.missing, *(number for number, _ in status.damaged)}
    ranges = [meta.shard_range(number) for number in range(meta.num_shards) if number not in wrong]
    indices = np.concatenate([np.zeros(0, np.int64), *(np.arange(r.start, r.stop) for r in ranges)])
    return np.sort(np.random.default_rng(seed).permutation(indices)[:rows])


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
    chosen = _choose_rows(meta, job.writer.status(), rows, seed)
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
