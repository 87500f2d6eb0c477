"""Look-ahead: decode, infer and segment run beside the training step; batches come out in order.

    DataLoader iterator ─► feeder thread ─► collector thread ─► FIFO ─► __next__
                           launch inference   wait for it,              wait for the cuts,
                                              submit to the pool        pad, give away

Order comes from the FIFO. Memory is bounded by permits: a batch takes one before it is pulled from
the DataLoader and gives it back when the user gets it. The feeder launches batch t + 1 while the
collector waits for batch t, so an asynchronous device always has work; a synchronous model simply
runs in the feeder, beside the training step.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from subtok_data.data.collate import SubobjectCollator
from subtok_data.data.finish import BatchWork
from subtok_data.data.pending import PendingBatch, RawBatch, StreamPosition
from subtok_data.data.pool import SegmentPool
from subtok_data.data.stats import StatsRecorder
from subtok_data.errors import SubtokError, WorkerCrashError
from subtok_data.segmenters import Launch

__all__ = ["Delivery", "run_ahead", "run_in_step"]

_JOIN_S = 30.0
_WATCH_S = 1.0


@dataclass(frozen=True)
class Delivery:
    """A finished batch and what the loader must know about it."""

    batch: dict[str, Any]
    position: StreamPosition | None
    is_last: bool


@dataclass
class _Flight:
    """A batch between DataLoader and user."""

    work: BatchWork
    position: StreamPosition | None
    nbytes: int
    launch: Launch | None = None


@dataclass(frozen=True)
class _Failure:
    error: BaseException


_END = object()


def _raw_batches(
    source: Iterator[Any], collator: SubobjectCollator, stats: StatsRecorder
) -> Iterator[RawBatch]:
    """Pull pending batches in the calling thread; placeholders of a resumed stream are left out."""
    while True:
        with stats.timed("decode"), collator.deferred():
            try:
                pending = next(source)
            except StopIteration:
                return
            except SubtokError:
                raise
            except RuntimeError as error:
                if "DataLoader" in str(error):
                    raise WorkerCrashError(
                        f"a DataLoader worker died or did not answer: {error}. If memory ran out, "
                        "use fewer num_workers; num_workers=0 shows the error in this process"
                    ) from error
                raise
        if not isinstance(pending, PendingBatch):
            raise SubtokError(
                f"the loader's collate_fn gave a {type(pending).__name__}; SubobjectLoader needs "
                "its "
                "own SubobjectCollator: give options to SubobjectLoader, not collate_fn="
            )
        if pending.raw is not None:
            yield pending.raw


def _finish(
    flight: _Flight,
    is_last: bool,
    collator: SubobjectCollator,
    device: torch.device | None,
    stats: StatsRecorder,
) -> Delivery:
    for sample in flight.work.samples:
        for future in sample.futures:
            _settle(future)
    with stats.timed("finish"):
        batch = collator.finisher.close(flight.work, device)
    collator.replaced += flight.work.replaced
    counts = [cut.num_tokens for sample in flight.work.samples for cut in sample.cut]
    stats.count(np.array(counts, np.int64), batch, flight.work.replaced)
    stats.hold(-flight.nbytes)
    return Delivery(batch, flight.position, is_last)


def _settle(future: Future[Any]) -> None:
    """Wait for a future without raising what it holds: the finisher decides about that."""
    future.exception()


def _open(raw: RawBatch, collator: SubobjectCollator, stats: StatsRecorder) -> _Flight:
    flight = _Flight(collator.finisher.open(raw), raw.position, raw.nbytes)
    stats.hold(flight.nbytes)
    return flight


def run_in_step(
    source: Iterator[Any],
    collator: SubobjectCollator,
    pool: SegmentPool,
    device: torch.device | None,
    stats: StatsRecorder,
    total: int | None,
) -> Generator[Delivery]:
    """Give batches without look-ahead: every stage in this thread, one after the other.

    Where the number of batches is not known (``total`` None), one more is decoded: it tells whether
    the batch before it is the last.
    """
    batches = _raw_batches(source, collator, stats)
    raw, number = next(batches, None), 0
    while raw is not None:
        number += 1
        following = next(batches, None) if total is None else None
        is_last = following is None if total is None else number == total
        yield _now(_open(raw, collator, stats), is_last, collator, pool, device, stats)
        raw = following if total is None else next(batches, None)


def _now(
    flight: _Flight,
    is_last: bool,
    collator: SubobjectCollator,
    pool: SegmentPool,
    device: torch.device | None,
    stats: StatsRecorder,
) -> Delivery:
    with stats.timed("wait"):
        with stats.timed("infer"):
            evidence = collator.finisher.launch(flight.work).result()
        collator.finisher.segment(flight.work, evidence, pool)
        return _finish(flight, is_last, collator, device, stats)


def run_ahead(
    source: Iterator[Any],
    collator: SubobjectCollator,
    pool: SegmentPool,
    device: torch.device | None,
    stats: StatsRecorder,
    depth: int,
    total: int | None,
    timeout_s: float,
) -> Generator[Delivery]:
    """Give batches in order, preparing up to ``depth`` of them beside the caller.

    Where the number of batches is not known (``total`` None), one more is prepared: it tells
    whether the batch before it is the last.
    """
    threads = _Threads(source, collator, pool, stats, depth + (total is None), timeout_s)
    try:
        yield from _deliver(threads, collator, device, stats, total)
    finally:
        threads.stop()


def _deliver(
    threads: _Threads,
    collator: SubobjectCollator,
    device: torch.device | None,
    stats: StatsRecorder,
    total: int | None,
) -> Generator[Delivery]:
    following: Any = None
    number = 0
    while True:
        started = time.perf_counter()
        stats.ready += threads.num_ready
        head = threads.get() if following is None else following
        if head is _END:
            return
        number += 1
        following = threads.get() if total is None else None
        is_last = following is _END if total is None else number == total
        delivery = _finish(head, is_last, collator, device, stats)
        threads.permit()
        stats.add("wait", time.perf_counter() - started)
        yield delivery


class _Threads:
    """Feeder and collector."""

    def __init__(
        self,
        source: Iterator[Any],
        collator: SubobjectCollator,
        pool: SegmentPool,
        stats: StatsRecorder,
        depth: int,
        timeout_s: float,
    ) -> None:
        self._source = source
        self._timeout_s = timeout_s
        self._decoding_since: float | None = None
        self._collator = collator
        self._pool = pool
        self._stats = stats
        self._permits = threading.Semaphore(depth)
        self._launched: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._segmenting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._feed, name="subtok-feeder", daemon=True),
            threading.Thread(target=self._collect, name="subtok-collector", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def num_ready(self) -> int:
        """Batches handed to the pool and not asked for yet."""
        return self._segmenting.qsize()

    def permit(self) -> None:
        """Allow one more batch in flight."""
        self._permits.release()

    def get(self) -> Any:
        """Return the next batch in order, or ``_END``; raises what a stage raised."""
        while True:
            try:
                item = self._segmenting.get(timeout=_WATCH_S)
                break
            except queue.Empty:
                self._check_decoding()
        if isinstance(item, _Failure):
            raise item.error
        return item

    def _check_decoding(self) -> None:
        """Give up on DataLoader workers that hang; torch itself notices only those that died."""
        since = self._decoding_since
        if since is None or time.monotonic() - since < self._timeout_s:
            return
        # The feeder waits for them: torch ends its wait, with an error, when they are dead.
        for process in getattr(self._source, "_workers", ()):
            process.kill()
        raise WorkerCrashError(
            f"the DataLoader gave no batch within timeout_s={self._timeout_s:g} s: a worker "
            "hangs, or "
            "decoding is slower than that; raise timeout_s, or find the sample with num_workers=0"
        )

    def stop(self) -> None:
        """End both threads and wait for them; work that nobody waits for is cancelled."""
        self._stopping = True
        self._permits.release()
        for thread in self._threads:
            thread.join(_JOIN_S)
        while not self._segmenting.empty():
            item = self._segmenting.get()
            if isinstance(item, _Flight):
                self._stats.hold(-item.nbytes)
                for sample in item.work.samples:
                    for future in sample.futures:
                        future.cancel()

    def _feed(self) -> None:
        try:
            batches = _raw_batches(self._source, self._collator, self._stats)
            while True:
                self._permits.acquire()
                if self._stopping:
                    break
                self._decoding_since = time.monotonic()
                raw = next(batches, None)
                self._decoding_since = None
                if raw is None:
                    break
                flight = _open(raw, self._collator, self._stats)
                with self._stats.timed("infer"):
                    flight.launch = self._collator.finisher.launch(flight.work)
                self._launched.put(flight)
        except BaseException as error:
            self._launched.put(_Failure(error))
        else:
            self._launched.put(_END)

    def _collect(self) -> None:
        while True:
            item = self._launched.get()
            if not isinstance(item, _Flight) or item.launch is None:
                self._segmenting.put(item)
                return
            try:
                with self._stats.timed("infer"):
                    evidence = item.launch.result()
                item.launch = None
                self._collator.finisher.segment(item.work, evidence, self._pool)
            except BaseException as error:
                self._segmenting.put(_Failure(error))
                self._stopping = True
                return
            self._segmenting.put(item)
