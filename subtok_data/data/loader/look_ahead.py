"""Look-ahead: decode, infer, segment and finish run beside the training step, in order.

    DataLoader ─► feeder ─────────► collector ───────────► finisher ──────────► __next__
                  launch inference  wait for it,           wait for the cuts,   hand over
                                    submit to the pool     pad

Each arrow is a FIFO queue, each of the three in the middle a thread. Memory is bounded by permits:
a batch takes one before it is decoded and gives it back when the user gets it. The feeder launches
batch t + 1 while the collector waits for batch t, so an asynchronous device always has work; a
synchronous model simply runs in the feeder, beside the training step.

With DataLoader workers the feeder pulls from them. Without, the user's thread decodes, when it asks
for a batch: datasets need not be safe for threads, and augmentation seeds global generators.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from subtok_data.data.collation import BatchInProgress, PendingBatch, RawBatch, SubobjectCollator
from subtok_data.data.loader.stats import StatsRecorder
from subtok_data.data.pool import SegmentPool
from subtok_data.data.position import StreamPosition
from subtok_data.data.worker_crash import name_crashes
from subtok_data.errors import SubtokError, WorkerCrashError
from subtok_data.segmenters import PendingInference

__all__ = [
    "IN_STAGES",
    "Delivery",
    "Flight",
    "LookAhead",
    "Stages",
    "raw_batches",
    "run_ahead",
    "run_in_step",
]

IN_STAGES = 2
"""Batches under way beside those that wait: with fewer, the device idles while one is cut."""

_JOIN_S = 30.0
_WATCH_S = 1.0
_END = object()


@dataclass(frozen=True)
class LookAhead:
    """How far to look ahead.

    Parameters
    ----------
    depth : int
        Finished batches that may wait for the user. Two more are under way: one at the device, one
        being cut.
    total : int or None
        Batches to come; None if nobody knows. Then one more is prepared: it tells whether the batch
        before it is the last.
    timeout_s : float
        How long DataLoader workers may give no batch.
    decode_in_caller : bool
        Whether the user's thread decodes.
    """

    depth: int
    total: int | None
    timeout_s: float
    decode_in_caller: bool


@dataclass(frozen=True)
class _Failure:
    error: BaseException


def run_in_step(source: Iterator[Any], stages: Stages, total: int | None) -> Generator[Delivery]:
    """Give batches without look-ahead: every stage in this thread, one after the other.

    Where the number of batches is not known (``total`` None), one more is decoded: it tells whether
    the batch before it is the last.
    """
    batches = raw_batches(source, stages.collator, stages.stats)
    raw, number = next(batches, None), 0
    while raw is not None:
        number += 1
        following = next(batches, None) if total is None else None
        is_last = following is None if total is None else number == total
        with stages.stats.timed("wait"):
            flight = stages.launch(raw)
            stages.segment(flight)
            stages.finish(flight)
            delivery = stages.deliver(flight, is_last=is_last)
        yield delivery
        raw = following if total is None else next(batches, None)


def run_ahead(source: Iterator[Any], stages: Stages, ahead: LookAhead) -> Generator[Delivery]:
    """Give batches in order, with up to ``ahead.depth`` of them waiting."""
    threads = _Threads(source, stages, ahead)
    try:
        yield from _deliver(threads, stages, ahead.total)
    finally:
        threads.stop()


def _deliver(threads: _Threads, stages: Stages, total: int | None) -> Generator[Delivery]:
    following: Any = None
    number = 0
    while True:
        started = time.perf_counter()
        stages.stats.ready += threads.num_ready
        head = threads.get() if following is None else following
        if head is _END:
            return
        number += 1
        following = threads.get() if total is None else None
        is_last = following is _END if total is None else number == total
        delivery = stages.deliver(head, is_last=is_last)
        threads.permit()
        stages.stats.add("wait", time.perf_counter() - started)
        yield delivery


class _Threads:
    """Feeder, collector and finisher, and the queues between them."""

    def __init__(self, source: Iterator[Any], stages: Stages, ahead: LookAhead) -> None:
        self._source = source
        self._batches = raw_batches(source, stages.collator, stages.stats)
        self._ahead = ahead
        self._permits = threading.Semaphore(ahead.depth + IN_STAGES + (ahead.total is None))
        self._decoding_since: float | None = None
        self._decoded_all = False
        self._stopping = False
        self._raw, self._launched, self._segmenting, self._ready = (
            queue.SimpleQueue[Any]() for _ in range(4)
        )
        feed = self._decoded_by_caller if ahead.decode_in_caller else self._decoded_here
        self._threads = [
            self._start("subtok-feeder", lambda: feed(stages.launch), self._launched),
            self._start(
                "subtok-collector",
                lambda: _relay(self._launched, stages.segment, self._segmenting),
                self._segmenting,
            ),
            self._start(
                "subtok-finisher",
                lambda: _relay(self._segmenting, stages.finish, self._ready),
                self._ready,
            ),
        ]

    def _start(
        self, name: str, work: Callable[[], Any], out: queue.SimpleQueue[Any]
    ) -> threading.Thread:
        """Run ``work``, and put what it returns at its end, or its failure, in its out-queue."""

        def run() -> None:
            try:
                last = work()
            except BaseException as error:
                last = _Failure(error)
            out.put(last)

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread

    @property
    def num_ready(self) -> int:
        """Finished batches that nobody asked for yet."""
        return self._ready.qsize()

    def permit(self) -> None:
        """Allow one more batch in flight."""
        self._permits.release()

    def get(self) -> Any:
        """Return the next batch in order, or ``_END``; raises what a stage raised."""
        if self._ahead.decode_in_caller:
            self._decode()
        while True:
            try:
                item = self._ready.get(timeout=_WATCH_S)
                break
            except queue.Empty:
                self._check_decoding()
        if isinstance(item, _Failure):
            raise item.error
        return item

    def _decode(self) -> None:
        """Decode as many batches as there are permits, in this thread."""
        while not self._decoded_all and self._permits.acquire(blocking=False):
            raw = next(self._batches, None)
            self._decoded_all = raw is None
            self._raw.put(raw)

    def _decoded_by_caller(self, launch: Callable[[RawBatch], Flight]) -> Any:
        while True:
            raw: RawBatch | None = self._raw.get()
            if raw is None or self._stopping:
                return _END
            self._launched.put(launch(raw))

    def _decoded_here(self, launch: Callable[[RawBatch], Flight]) -> Any:
        while True:
            self._permits.acquire()
            if self._stopping:
                return _END
            self._decoding_since = time.monotonic()
            raw = next(self._batches, None)
            self._decoding_since = None
            if raw is None:
                return _END
            self._launched.put(launch(raw))

    def _check_decoding(self) -> None:
        """Give up on DataLoader workers that hang; torch itself notices only those that died."""
        since = self._decoding_since
        if since is None or time.monotonic() - since < self._ahead.timeout_s:
            return
        # The feeder waits for them: torch ends its wait, with an error, when they are dead.
        for process in getattr(self._source, "_workers", ()):
            process.kill()
        raise WorkerCrashError(
            f"the DataLoader gave no batch within timeout_s={self._ahead.timeout_s:g} s: a worker "
            "hangs, or decoding is slower than that; raise timeout_s, or find the sample with "
            "num_workers=0"
        )

    def stop(self) -> None:
        """End the threads and wait for them; work that nobody waits for is cancelled."""
        self._stopping = True
        self._permits.release()
        self._raw.put(None)
        for thread in self._threads:
            thread.join(_JOIN_S)
        for waiting in (self._launched, self._segmenting, self._ready):
            while not waiting.empty():
                item = waiting.get()
                if isinstance(item, Flight):
                    item.cancel()


def _relay(
    source: queue.SimpleQueue[Any],
    work: Callable[[Flight], None],
    target: queue.SimpleQueue[Any],
) -> Any:
    """Work on flights in order; return what ended the queue."""
    while True:
        item = source.get()
        if not isinstance(item, Flight):
            return item
        work(item)
        target.put(item)


_ADVICE = "If memory ran out, use fewer num_workers; num_workers=0 shows the error in this process"


@dataclass(frozen=True)
class Delivery:
    """A finished batch and what the loader must know about it."""

    batch: dict[str, Any]
    position: StreamPosition | None
    is_last: bool


@dataclass
class Flight:
    """A batch on its way; ``batch`` is set when it is finished without a failure."""

    work: BatchInProgress
    position: StreamPosition | None
    nbytes: int
    launch: PendingInference | None = None
    batch: dict[str, Any] | None = None

    def cancel(self) -> None:
        """Take back what waits for a segment worker."""
        for sample in self.work.samples:
            for future in sample.futures:
                future.cancel()


@dataclass(frozen=True)
class Stages:
    """The steps of a batch, each timed; the same ones with and without look-ahead."""

    collator: SubobjectCollator
    pool: SegmentPool
    device: torch.device | None
    stats: StatsRecorder

    def launch(self, raw: RawBatch) -> Flight:
        """Start inference."""
        flight = Flight(self.collator.finisher.open(raw), raw.position, raw.nbytes)
        self.stats.hold(flight.nbytes)
        with self.stats.timed("infer"):
            flight.launch = self.collator.finisher.launch(flight.work)
        return flight

    def segment(self, flight: Flight) -> None:
        """Wait for inference and hand every image to the pool."""
        if flight.launch is None:
            raise TypeError("a batch is segmented before its inference was launched")
        with self.stats.timed("infer"):
            evidence = flight.launch.result()
        flight.launch = None
        self.collator.finisher.segment(flight.work, evidence, self.pool)

    def finish(self, flight: Flight) -> None:
        """Wait for the pool and pad, unless a sample failed: that is left to the user's thread."""
        finisher = self.collator.finisher
        finisher.collect(flight.work)
        if not flight.work.has_failures:
            with self.stats.timed("finish"):
                flight.batch = finisher.build(flight.work, self.device)

    def deliver(self, flight: Flight, *, is_last: bool) -> Delivery:
        """Replace what failed, count, and hand over; runs in the user's thread."""
        work = flight.work
        if flight.batch is None:
            self.collator.finisher.replace_failures(work)
            flight.batch = self.collator.finisher.build(work, self.device)
        self.collator.replaced += work.replaced
        counts = [cut.num_tokens for sample in work.samples for cut in sample.cut]
        self.stats.count(np.array(counts, np.int64), flight.batch, work.replaced)
        self.stats.hold(-flight.nbytes)
        return Delivery(flight.batch, flight.position, is_last)


def raw_batches(
    source: Iterator[Any], collator: SubobjectCollator, stats: StatsRecorder
) -> Iterator[RawBatch]:
    """Pull pending batches in the calling thread; placeholders of a resumed stream are left out."""
    while True:
        with stats.timed("decode"), collator.deferred(), name_crashes(_ADVICE):
            pending = next(source, _END)
        if pending is _END:
            return
        if not isinstance(pending, PendingBatch):
            raise SubtokError(
                f"the loader's collate_fn gave a {type(pending).__name__}; SubobjectLoader needs "
                "its own SubobjectCollator: give options to SubobjectLoader, not collate_fn="
            )
        if pending.raw is not None:
            yield pending.raw
