"""Rows and configuration to the file of a shard: the unit of work of every engine.

A shard is a pure function of its rows, the configuration, the size of the batches and the libraries
that compute it, so it does not matter who makes it, how often, or after how many interruptions.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass

from subtok_data.data.collation import BatchInProgress, BatchOptions, BatchStages, SampleInProgress
from subtok_data.data.datasets import SubobjectDataset
from subtok_data.data.pool import SegmentPool, make_pool
from subtok_data.data.store import Journal, ShardReport, StoredRow, TokenWriter
from subtok_data.data.tokenize.decoding import ResizedRows, RowGuard, decode_ahead
from subtok_data.errors import SubtokError
from subtok_data.tokenizer import SubobjectTokenizer

__all__ = ["OnRows", "ShardJob", "make_shards", "tokenize_rows"]

_AHEAD = 3  # batches whose images may wait in the segment pool
_SLOW_S = 2.0  # batches that take longer do not wait: so a kill costs some seconds of work

OnRows = Callable[[int, int], None]
"""Called with the number of rows that are done, and of those among them that failed."""


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """All that makes the shards of a store. Pickled, it goes to other processes and machines.

    Attributes
    ----------
    samples : SubobjectDataset
        The dataset; without augmentation.
    tokenizer : SubobjectTokenizer
        How images become tokens. On an accelerator it is not pickled: move it there where it works.
    writer : TokenWriter
        Where the shards go.
    batch_size : int
        Rows inferred together.
    num_workers : int
        DataLoader workers that decode.
    segment_workers : int or None
        Images segmented at once.
    executor : {"process", "thread", "inline"}
        Where images are segmented.
    guard : RowGuard or None
        Of an engine whose processes die over images that it decodes with ``num_workers=0``.
    """

    samples: SubobjectDataset
    tokenizer: SubobjectTokenizer
    writer: TokenWriter
    batch_size: int = 8
    num_workers: int = 0
    segment_workers: int | None = None
    executor: str = "process"
    guard: RowGuard | None = None


def make_shards(
    job: ShardJob,
    shards: Sequence[int],
    on_rows: OnRows | None = None,
    pool: SegmentPool | None = None,
) -> Iterator[ShardReport]:
    """Make shards one after the other; each is stored when its report is yielded.

    Decoding runs in DataLoader workers, the model here, segmentation in a segment pool; the three
    overlap, over the bounds of shards too. What an interrupted run kept of a shard is used.

    Parameters
    ----------
    job : ShardJob
        What to make.
    shards : sequence of int
        Numbers of the shards.
    on_rows : callable, optional
        Called as ``on_rows(rows, failed)`` whenever rows are done.
    pool : SegmentPool, optional
        For a caller who makes shards one at a time, and starts its workers once. By default that of
        the job's ``executor``, closed at the end.

    Raises
    ------
    SubtokError
        If inference fails on every image of a batch: then the model is at fault, not an image.
    WorkerCrashError
        If a decoding worker dies, or segment workers die again and again.
    """
    with ExitStack() as stack:
        journals: list[Journal] = []
        ranges: list[range] = []
        for number in shards:
            info = job.writer.meta.shard_info(number, job.batch_size)
            journals.append(stack.enter_context(Journal(job.writer.storage.scratch, info)))
            ranges.append(info.range[journals[-1].kept :])
        tokenized = tokenize_rows(job, ranges, pool)
        stack.callback(tokenized.close)
        for journal, left in zip(journals, ranges, strict=True):
            with job.writer.shard(journal.info) as shard:
                for row in journal.rows():
                    shard.add(row)
                if on_rows is not None and journal.kept:
                    on_rows(journal.kept, shard.failed)
                done = 0
                while done < len(left):
                    rows = next(tokenized)
                    journal.append(rows)
                    for row in rows:
                        shard.add(row)
                    done += len(rows)
                    if on_rows is not None:
                        on_rows(len(rows), sum(row.error is not None for row in rows))
            journal.delete()
            yield shard.report


def tokenize_rows(
    job: ShardJob, ranges: Sequence[range], pool: SegmentPool | None = None
) -> Generator[list[StoredRow]]:
    """Tokenize ranges of rows, batch by batch, in order.

    An interruption or an error is raised once the batches before it are yielded.
    """
    ranges = [one for one in ranges if len(one)]
    if not ranges:
        return
    rows = ResizedRows(job.samples, job.tokenizer.canvas, job.guard)
    decoded = decode_ahead(rows, ranges, job.batch_size, job.num_workers)
    with make_pool(job.executor, job.segment_workers) if pool is None else nullcontext(pool) as own:
        stages = BatchStages(tokenizer=job.tokenizer, options=BatchOptions(), pool=own)
        inferring: deque[BatchInProgress] = deque()
        waiting: deque[BatchInProgress] = deque()
        try:
            for samples in decoded:
                started = time.monotonic()
                batch = BatchInProgress(samples=samples)
                stages.infer(batch)
                inferring.append(batch)
                # Of a device that works beside this process, the next batch is launched before
                # this one is waited for: so it never idles.
                while len(inferring) > 1 or (inferring and inferring[0].inference is None):
                    waiting.append(_segmented(inferring, stages))
                slow = time.monotonic() - started > _SLOW_S
                while waiting and (slow or len(waiting) > _AHEAD):
                    yield _stored_rows(waiting.popleft(), stages)
        except (KeyboardInterrupt, SubtokError):
            while inferring:
                waiting.append(_segmented(inferring, stages))
            while waiting:  # what is inferred is kept: the caller asks for more until it raises
                yield _stored_rows(waiting.popleft(), stages)
            raise
        while inferring:
            waiting.append(_segmented(inferring, stages))
        while waiting:
            yield _stored_rows(waiting.popleft(), stages)


def _segmented(inferring: deque[BatchInProgress], stages: BatchStages) -> BatchInProgress:
    """Take the next batch and hand it to the pool; if that fails, those after it are dropped."""
    batch = inferring.popleft()
    try:
        stages.segment(batch)
    except BaseException:
        inferring.clear()
        raise
    return batch


def _stored_rows(batch: BatchInProgress, stages: BatchStages) -> list[StoredRow]:
    stages.collect(batch)
    return [_stored_row(sample) for sample in batch.samples]


def _stored_row(sample: SampleInProgress) -> StoredRow:
    raw = sample.raw
    if sample.error is not None:
        return StoredRow.failed(raw.index, str(sample.error), path=raw.path, key=raw.key)
    return StoredRow.of(
        raw.index,
        [one.token_map for one in sample.segmented],
        [one.token_fields for one in sample.segmented],
        path=raw.path,
        key=raw.key,
    )
