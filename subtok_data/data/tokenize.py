"""``tokenize_dataset``: tokenize every image of a dataset once, and store the tokens.

Decoding runs in DataLoader workers, the boundary model here, segmentation in a segment pool; the
three overlap. Batches start anew at each shard, so that a resumed run gives the model the same
batches, and so the same bits, as one that was never interrupted.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from subtok_data.data.collation import (
    BatchInProgress,
    BatchOptions,
    BatchStages,
    RawSample,
    SampleInProgress,
)
from subtok_data.data.dataloader_workers import WorkerDataLoader, name_crashes
from subtok_data.data.datasets import SubobjectDataset
from subtok_data.data.pool import make_pool
from subtok_data.data.store import StoredRow, TokenWriter
from subtok_data.errors import ConfigError, SampleError
from subtok_data.images import DEFAULT_MAX_PIXELS, Canvas
from subtok_data.tokenizer import SubobjectTokenizer

__all__ = ["FailedRow", "ResizedRows", "TokenizeReport", "decode_ahead", "tokenize_dataset"]

_AHEAD = 3  # batches whose images may wait in the segment pool


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
    folder : Path
        Where the tokens are.
    rows : int
        Rows of the dataset.
    rows_done_before : int
        Rows that an earlier run had stored already.
    images, tokens : int
        Made in this run.
    seconds : float
        Wall time of this run.
    bytes : int
        Size of the folder.
    config_hash : str
        Hash of the tokenizer's configuration.
    failed : tuple of FailedRow
        Rows without tokens, those of earlier runs included.
    """

    folder: Path
    rows: int
    rows_done_before: int
    images: int
    tokens: int
    seconds: float
    bytes: int
    config_hash: str
    failed: tuple[FailedRow, ...]


def tokenize_dataset(
    dataset: Any,
    tokenizer: SubobjectTokenizer,
    out: str | Path,
    *,
    image_column: str = "image",
    batch_size: int = 8,
    num_workers: int = 0,
    segment_workers: int | None = None,
    executor: str = "process",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    on_progress: Callable[[int, int], None] | None = None,
) -> TokenizeReport:
    """Tokenize all images of a map-style dataset and store the tokens in a folder.

    ``SubobjectDataset(dataset, tokens=out)`` reads them back: the same batches, without a model. A
    run that was interrupted goes on at the first shard that is not whole. A bad image is stored as
    such, with its reason, and does not stop the run.

    Parameters
    ----------
    dataset : dataset with ``len`` and integer indexing
        What :class:`~subtok_data.SubobjectDataset` takes.
    tokenizer : SubobjectTokenizer
        How images become tokens.
    out : str or Path
        Folder; made if absent.
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
        another configuration or dataset length.
    SubtokError
        If inference fails on every image of a batch: then the model is at fault, not an image.
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
    if batch_size < 1 or num_workers < 0:
        raise ConfigError(
            f"batch_size={batch_size}, num_workers={num_workers}: give a batch size of at least 1, "
            "and 0 workers or more"
        )
    samples = SubobjectDataset(dataset, image_column=image_column, max_pixels=max_pixels)
    config_hash = tokenizer.config_hash
    writer = TokenWriter(
        out, config=tokenizer.config(), config_hash=config_hash, num_rows=len(samples)
    )
    shards = list(writer.missing())
    done_before = len(samples) - sum(len(shard) for shard in shards)
    if on_progress is not None and done_before:
        on_progress(done_before, 0)
    started = time.perf_counter()
    counts = np.zeros(2, np.int64)  # images, tokens
    if shards:
        decoded = decode_ahead(
            ResizedRows(samples, tokenizer.canvas), shards, batch_size, num_workers
        )
        with make_pool(executor, segment_workers) as pool:
            stages = BatchStages(tokenizer=tokenizer, options=BatchOptions(), pool=pool)
            done = _in_order(decoded, stages)
            for shard in shards:
                rows: list[StoredRow] = []
                while len(rows) < len(shard):
                    batch = next(done)
                    rows += batch
                    if on_progress is not None:
                        on_progress(len(batch), sum(row.error is not None for row in batch))
                writer.write(rows)
                maps = [token_map for row in rows for token_map in row.token_maps]
                counts += (len(maps), sum(int(token_map.max()) + 1 for token_map in maps))
    failed = writer.finish()
    return TokenizeReport(
        folder=writer.folder,
        rows=len(samples),
        rows_done_before=done_before,
        images=int(counts[0]),
        tokens=int(counts[1]),
        seconds=time.perf_counter() - started,
        bytes=sum(file.stat().st_size for file in writer.folder.iterdir()),
        config_hash=config_hash,
        failed=tuple(FailedRow(*row) for row in failed),
    )


def _in_order(
    decoded: Iterator[list[SampleInProgress]], stages: BatchStages
) -> Iterator[list[StoredRow]]:
    """Tokenize batches in the order of the dataset, with a few of them in the pool at a time."""
    waiting: deque[BatchInProgress] = deque()
    for samples in decoded:
        batch = BatchInProgress(samples=samples)
        stages.infer(batch)
        stages.segment(batch)
        waiting.append(batch)
        if len(waiting) > _AHEAD:
            yield _stored_rows(waiting.popleft(), stages)
    while waiting:
        yield _stored_rows(waiting.popleft(), stages)


def _stored_rows(batch: BatchInProgress, stages: BatchStages) -> list[StoredRow]:
    stages.collect(batch)
    return [_stored_row(sample) for sample in batch.samples]


def _stored_row(sample: SampleInProgress) -> StoredRow:
    index, path = sample.raw.index, sample.raw.path
    if sample.error is not None:
        return StoredRow(index, path, error=str(sample.error))
    return StoredRow(
        index,
        path,
        [one.token_map for one in sample.segmented],
        [one.token_fields for one in sample.segmented],
    )


_ADVICE = (
    "What is stored is kept; run again to go on, with num_workers=0 to see the error in this "
    "process"
)


class ResizedRows(Dataset[SampleInProgress]):
    """Decode and resize rows in workers; a failed row is returned with its error as a value."""

    def __init__(self, samples: SubobjectDataset, canvas: Canvas) -> None:
        self.samples = samples
        self.canvas = canvas

    def __getitem__(self, index: int) -> SampleInProgress:
        try:
            sample = self.samples.load(index)
        except SampleError as error:
            return SampleInProgress(
                raw=RawSample(index=index, path=error.path), images=[], error=error
            )
        return SampleInProgress(
            raw=RawSample(index=index, path=sample.path, source_sizes=sample.source_sizes),
            images=[self.canvas.fit(image) for image in sample.images],
        )


def decode_ahead(
    rows: ResizedRows, shards: Sequence[range], batch_size: int, num_workers: int
) -> Iterator[list[SampleInProgress]]:
    """Decode the rows of some shards, batch by batch; no batch reaches over the end of a shard.

    Raises
    ------
    WorkerCrashError
        If a worker dies.
    """
    batches = [
        list(shard[start : start + batch_size])
        for shard in shards
        for start in range(0, len(shard), batch_size)
    ]
    loader = WorkerDataLoader(rows, batch_sampler=batches, num_workers=num_workers, collate_fn=list)
    decoded = iter(loader)
    with name_crashes(decoded, _ADVICE):
        yield from decoded
