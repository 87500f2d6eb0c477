"""``tokenize_dataset``: tokenize every image of a dataset once, and store the tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from subtok_data.arguments import check_count
from subtok_data.data.datasets import SubobjectDataset, open_images
from subtok_data.data.store import (
    ShardReader,
    ShardReport,
    Storage,
    StoredRow,
    StoredTokens,
    StoreMeta,
    TokenWriter,
    default_shard_rows,
    open_storage,
    shard_name,
)
from subtok_data.data.tokenize.engine import Engine, LocalEngine
from subtok_data.data.tokenize.shards import ShardJob
from subtok_data.data.tokenize.source import (
    describe_source,
    find_changed_rows,
    refuse_changed_rows,
    refuse_other_length,
)
from subtok_data.errors import ConfigError, SubtokError
from subtok_data.images import DEFAULT_MAX_PIXELS
from subtok_data.tokenizer import SubobjectTokenizer

__all__ = ["FailedRow", "TokenizeReport", "open_job", "tokenize_dataset"]

_MOST_FAILED = 1000


@dataclass(frozen=True)
class FailedRow:
    """A row of the dataset that has no tokens."""

    index: int
    path: str | None
    reason: str


@dataclass(frozen=True)
class TokenizeReport:
    """What :func:`tokenize_dataset` did.

    Attributes
    ----------
    folder : str
        Where the tokens are.
    rows : int
        Rows of the dataset, or of the part.
    rows_done_before : int
        Rows whose shards an earlier run had stored already.
    images, tokens : int
        In the shards made in this run.
    seconds : float
        Wall time of this run.
    bytes : int
        Size of the shards made in this run.
    config_hash : str
        Hash of the tokenizer's configuration.
    num_failed : int
        Rows without tokens: of the whole store if it is finished, else of the shards made in this
        run.
    failed : tuple of FailedRow
        The first 1,000 of them.
    finished : bool
        Whether the store can be read; parts are finished together, when all are done.
    """

    folder: str
    rows: int
    rows_done_before: int
    images: int
    tokens: int
    seconds: float
    bytes: int
    config_hash: str
    num_failed: int
    failed: tuple[FailedRow, ...]
    finished: bool


def tokenize_dataset(
    dataset: Any,
    tokenizer: SubobjectTokenizer,
    out: str | Path | Storage,
    *,
    part: tuple[int, int] | None = None,
    engine: Engine | None = None,
    mixed: bool = False,
    redo_changed: bool = False,
    image_column: str = "image",
    batch_size: int = 8,
    num_workers: int = 0,
    segment_workers: int | None = None,
    executor: str = "process",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    shard_rows: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> TokenizeReport:
    """Tokenize all images of a map-style dataset and store the tokens in a folder.

    ``SubobjectDataset(dataset, tokens=out)`` reads them back: the same batches, without a model. A
    run that was interrupted goes on where it stopped; shards that are damaged are made anew. A bad
    image is stored as such, with its reason, and does not stop the run.

    Parameters
    ----------
    dataset : dataset with ``len`` and integer indexing, or str, Path or list of them
        What :class:`~subtok_data.SubobjectDataset` takes; or what
        :func:`~subtok_data.data.open_images` does: folders, files and patterns, tar and Parquet
        files, names of Hugging Face, all of them also on ``s3://``, ``gs://`` and ``hf://``.
    tokenizer : SubobjectTokenizer
        How images become tokens.
    out : str, Path or Storage
        Folder, made if absent; or ``s3://BUCKET/PATH``, ``gs://BUCKET/PATH``.
    part : (int, int), optional
        ``(i, n)`` makes the i-th of n parts, from 0 on, and leaves the store unfinished: parts run
        anywhere and in any order, and ``TokenWriter.open(out).finish()`` comes after the last.
    engine : Engine, optional
        Who makes the shards; this process by default.
    mixed : bool, optional
        Whether shards of several devices and precisions may stand in one store.
    redo_changed : bool, optional
        Whether shards are made anew where images are others than those that were tokenized; else
        that is an error.
    image_column : str, optional
        Key of the image in dict rows.
    batch_size : int, optional
        Rows inferred together, at least 1.
    num_workers : int, optional
        DataLoader workers that decode; 0 decodes in this process.
    segment_workers : int, optional
        Images segmented at once; by default the cores of this process, less one.
    executor : {"process", "thread", "inline"}, optional
        Where images are segmented.
    max_pixels : int, optional
        Images with more pixels are not decoded.
    shard_rows : int, optional
        Rows of a shard; by default those of the files, if the dataset has ``shard_lengths``, else
        so many that there are some 64 shards, from 256 to 16,384.
    on_progress : callable, optional
        Called as ``on_progress(rows done, rows failed among them)`` whenever rows are done; first
        for the rows that an earlier run has stored, as (rows, 0).

    Returns
    -------
    TokenizeReport

    Raises
    ------
    ConfigError
        If an option is out of range, the image column is missing, or the folder holds tokens of
        another configuration, dataset, device or precision.
    SubtokError
        If inference fails on every image of a batch: then the model is at fault, not an image. If
        an engine did not make a shard that it was given.
    WorkerCrashError
        If a decoding worker dies, or segment workers die again and again; run again to go on.

    Examples
    --------
    >>> import tempfile
    >>> from subtok_data import PatchSegmenter
    >>> images = [np.zeros((64, 64, 3), np.uint8), b"no image"]
    >>> tokenizer = SubobjectTokenizer(PatchSegmenter(32), size=64)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = tokenize_dataset(images, tokenizer, folder, executor="inline")
    >>> report.images, report.tokens, [row.index for row in report.failed]
    (1, 4, [1])
    """
    started = time.perf_counter()
    _check_part(part)
    job = open_job(
        dataset,
        tokenizer,
        out,
        mixed=mixed,
        image_column=image_column,
        batch_size=batch_size,
        num_workers=num_workers,
        segment_workers=segment_workers,
        executor=executor,
        max_pixels=max_pixels,
        shard_rows=shard_rows,
    )
    writer = job.writer
    own = _shards_of(part, writer.meta.num_shards)
    missing = writer.missing(own)
    missing = _check_content(job, own, missing, redo_changed)
    rows = sum(len(writer.meta.shard_range(number)) for number in own)
    left = sum(len(writer.meta.shard_range(number)) for number in missing)
    if on_progress is not None and rows > left:
        on_progress(rows - left, 0)
    local = engine is None
    engine = LocalEngine(on_progress) if engine is None else engine
    made: set[int] = set()
    totals = np.zeros(4, np.int64)  # images, tokens, failed, bytes
    for report in _made_shards(engine, job, missing, withdraw=part is None):
        if report.shard in made:
            continue
        made.add(report.shard)
        totals += (report.images, report.tokens, report.failed, report.bytes)
        if on_progress is not None and not local:
            on_progress(report.rows, report.failed)
    lost = [
        number
        for number in missing
        if number not in made or writer.storage.size(shard_name(number)) is None
    ]
    if lost:
        raise SubtokError(
            f"{len(lost)} of {len(missing)} shards were not made by {type(engine).__name__}, the "
            f"first is {lost[0]}: what is stored is kept, run again to go on"
        )
    if part is None:
        writer.finish()
    images, tokens, num_failed, size = totals.tolist()
    failed: list[FailedRow] = []
    if part is None:
        stored = StoredTokens(writer.storage)
        failed = [FailedRow(*row) for row in islice(stored.failures(), _MOST_FAILED)]
        num_failed = stored.num_failed
    else:
        for number in sorted(made):
            failed += _failed_rows(ShardReader(writer.storage, shard_name(number)))
    return TokenizeReport(
        folder=str(writer.storage),
        rows=rows,
        rows_done_before=rows - left,
        images=images,
        tokens=tokens,
        seconds=time.perf_counter() - started,
        bytes=size,
        config_hash=writer.meta.config_hash,
        num_failed=num_failed,
        failed=tuple(failed[:_MOST_FAILED]),
        finished=part is None,
    )


def open_job(
    dataset: Any,
    tokenizer: SubobjectTokenizer,
    out: str | Path | Storage,
    *,
    mixed: bool = False,
    image_column: str = "image",
    batch_size: int = 8,
    num_workers: int = 0,
    segment_workers: int | None = None,
    executor: str = "process",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    shard_rows: int | None = None,
    begin: bool = True,
) -> ShardJob:
    """Open or ``begin`` a store, and return what makes its shards; see :func:`tokenize_dataset`.

    Raises
    ------
    ConfigError
        If an option is out of range, the image column is missing, or the folder holds tokens of
        another configuration, length, device or precision.
    """
    if batch_size < 1 or num_workers < 0:
        raise ConfigError(
            f"batch_size={batch_size}, num_workers={num_workers}: give a batch size of at least 1, "
            "and 0 workers or more"
        )
    check_count("shard_rows", shard_rows)
    if isinstance(dataset, str | Path) or _are_names(dataset):
        dataset = open_images(dataset, image_column=image_column)
    samples = SubobjectDataset(dataset, image_column=image_column, max_pixels=max_pixels)
    samples.with_keys = True
    storage = open_storage(out, cached=False)
    found = StoreMeta.read_if_begun(storage) if begin else StoreMeta.read(storage)
    if found is not None and not begin and found.shard_lengths is None:
        shard_rows = shard_rows or found.shard_rows
    lengths = getattr(samples.dataset, "shard_lengths", None) if shard_rows is None else None
    meta = StoreMeta(
        config=tokenizer.config(),
        config_hash=tokenizer.config_hash,
        rows=len(samples),
        shard_rows=shard_rows or max(lengths or [default_shard_rows(len(samples))]),
        shard_lengths=lengths,
        device=tokenizer.device.type,
        dtype=str(tokenizer.dtype).removeprefix("torch."),
        mixed=mixed,
        source=describe_source(samples),
    )
    if found is not None and found.config_hash == meta.config_hash:
        refuse_other_length(samples, found, storage)
    return ShardJob(
        samples=samples,
        tokenizer=tokenizer,
        writer=TokenWriter(storage, meta),
        batch_size=batch_size,
        num_workers=num_workers,
        segment_workers=segment_workers,
        executor=executor,
    )


def _check_part(part: tuple[int, int] | None) -> None:
    if part is None:
        return
    number, parts = part
    if parts < 1 or not 0 <= number < parts:
        raise ConfigError(
            f"part={number}/{parts}: parts count from 0, so that of {parts} parts the last is "
            f"{parts - 1}"
        )


def _made_shards(
    engine: Engine, job: ShardJob, shards: list[int], *, withdraw: bool
) -> Iterator[ShardReport]:
    """Make shards; a run that ends before anything is stored leaves no folder."""
    if not shards:
        return
    try:
        yield from engine.map_shards(job, shards)
    except BaseException:
        if withdraw:
            job.writer.withdraw()
        raise


def _are_names(dataset: Any) -> bool:
    """Whether a dataset is given as names of files, not as rows."""
    if not isinstance(dataset, list | tuple) or not dataset:
        return False
    named = (".tar", ".parquet")
    return all(isinstance(one, str | Path) and str(one).endswith(named) for one in dataset)


def _shards_of(part: tuple[int, int] | None, shards: int) -> range:
    """Shards of a part; every n-th, since neighbouring images often are alike."""
    return range(shards) if part is None else range(part[0], shards, part[1])


def _check_content(job: ShardJob, own: range, missing: list[int], redo_changed: bool) -> list[int]:
    """Compare images with those of the shards that are there; return the shards to make."""
    writer = job.writer
    there = sorted(set(own) - set(missing))
    now = describe_source(job.samples)["fingerprint"]
    if not there or (now is not None and now == writer.stored_fingerprint):
        return missing
    reader: ShardReader | None = None

    def row_of(index: int) -> StoredRow:
        nonlocal reader
        shard, place = writer.meta.find(index)
        if reader is None or reader.info.shard != shard:
            reader = ShardReader(writer.storage, shard_name(shard))
        return reader.row(place)

    every = now is not None or redo_changed
    changed = find_changed_rows(job.samples, writer, there, every=every, row_of=row_of)
    if not redo_changed:
        refuse_changed_rows(changed, str(writer.storage))
    shards = {writer.meta.find(row)[0] for row, _, _ in changed}
    for shard in shards:
        writer.delete(shard)
    if every and len(own) == writer.meta.num_shards:
        writer.take_source()
    return sorted({*missing, *shards})


def _failed_rows(reader: ShardReader) -> list[FailedRow]:
    return [
        FailedRow(row["index"], row["path"], row["error"])
        for table in reader.columns(["index", "path", "error"])
        for row in table.to_pylist()
        if row["error"] is not None
    ]
