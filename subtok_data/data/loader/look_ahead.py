"""Look-ahead: decode, infer, segment and finish run beside the training step, in order.

    DataLoader ─► feeder ─────────► collector ───────────► finisher ──────────► __next__
                  start inference   wait for it,           wait for the pool,   hand over
                                    submit to the pool     pad

Each arrow is a FIFO queue, each of the three in the middle a thread. Memory is bounded by permits:
a batch takes one before it is decoded and gives it back when the user gets it. The feeder starts
batch t + 1 while the collector waits for batch t, so an asynchronous device always has work; a
synchronous model simply runs in the feeder, beside the training step.

With DataLoader workers the feeder pulls from them. Without, the user's thread decodes, when it asks
for a batch: datasets need not be safe for threads, and augmentation seeds global generators.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from subtok_data.data.collation import (
    BatchInProgress,
    BatchStages,
    PendingBatch,
    RawBatch,
    SubobjectCollator,
)
from subtok_data.data.dataloader_workers import hold_forks, name_crashes
from subtok_data.data.loader.stage_threads import (
    LastingThread,
    WorkOfThread,
    use_one_torch_thread,
)
from subtok_data.data.loader.stats import StatsRecorder
from subtok_data.data.position import StreamPosition
from subtok_data.data.process_limit import name_process_limit
from subtok_data.device_streams import DeviceStream, set_thread_device
from subtok_data.errors import SubtokError, WorkerCrashError

__all__ = [
    "IN_STAGES",
    "LoadedBatch",
    "LookAhead",
    "RawBatches",
    "run_ahead",
    "run_in_step",
]

IN_STAGES = 2
"""Batches under way beside those that wait: with fewer, the device idles while one is segmented."""

_JOIN_S = 30.0
_KILL_S = 5.0
_WATCH_S = 1.0
_END = object()


@dataclass(frozen=True)
class LookAhead:
    """Limits of look-ahead.

    Parameters
    ----------
    depth : int
        Finished batches that may wait for the user. Two more are under way: one at the device, one
        in the segment pool.
    total : int or None
        Batches to come; None if nobody knows. Then one more is prepared: it tells whether the batch
        before it is the last.
    timeout_s : float
        How long DataLoader workers may give no batch.
    decode_in_caller : bool
        Whether the user's thread decodes.
    model_stream : DeviceStream
        Where models run, in the feeder, and in the collector where they run again.
    feeder : LastingThread
        Runs models, in every epoch.
    """

    depth: int
    total: int | None
    timeout_s: float
    decode_in_caller: bool
    model_stream: DeviceStream
    feeder: LastingThread


@dataclass(frozen=True)
class _Failure:
    error: BaseException


class LoadedBatch(NamedTuple):
    """A finished batch and what the loader must know about it."""

    batch: dict[str, Any]
    position: StreamPosition | None
    is_last: bool


_ADVICE = "num_workers=0 shows the error in this process"


class RawBatches(Iterator[RawBatch]):
    """Pull raw batches from a DataLoader's iterator, in the calling thread.

    Placeholders of a resumed stream are left out.

    Parameters
    ----------
    source : iterator
        Of a DataLoader whose ``collate_fn`` is ``collator``.
    collator : SubobjectCollator
        Must not finish its batches here.
    stats : StatsRecorder
        Counts bytes, and the time that is waited.
    """

    def __init__(
        self, source: Iterator[Any], collator: SubobjectCollator, stats: StatsRecorder
    ) -> None:
        self._source = source
        self._collator = collator
        self._stats = stats

    def __next__(self) -> RawBatch:
        while True:
            with self._stats.timed("decode"), self._collator.deferred(), self.named_crashes():
                pending = next(self._source, None)
            if pending is None:
                raise StopIteration
            if not isinstance(pending, PendingBatch):
                raise SubtokError(
                    f"the loader's collate_fn gave a {type(pending).__name__}; SubobjectLoader "
                    "needs its own SubobjectCollator: give options to SubobjectLoader, not "
                    "collate_fn="
                )
            if pending.raw is not None:
                self._stats.hold(pending.raw.nbytes)
                return pending.raw

    def named_crashes(self) -> AbstractContextManager[None]:
        """Return a context in which the loss of a worker is a :class:`WorkerCrashError`."""
        return name_crashes(self._source, _ADVICE)

    def kill_workers(self) -> None:
        """Kill the DataLoader workers; torch then ends its wait for them with an error."""
        for process in getattr(self._source, "_workers", ()):
            # Torch's handler of SIGCHLD raises here that a child is dead.
            with contextlib.suppress(RuntimeError):
                process.kill()
                process.join(_KILL_S)


def run_in_step(
    raws: RawBatches, stages: BatchStages, stats: StatsRecorder, total: int | None
) -> Generator[LoadedBatch]:
    """Yield batches without look-ahead: every stage in this thread, one after the other.

    Where the number of batches is not known (``total`` None), one more is decoded: it tells whether
    the batch before it is the last.
    """
    raw, number = next(raws, None), 0
    while raw is not None:
        number += 1
        following = next(raws, None) if total is None else None
        is_last = following is None if total is None else number == total
        with stats.timed("wait"):
            loaded = _hand_over(stages.run(raw), stages, stats, is_last=is_last)
        yield loaded
        raw = following if total is None else next(raws, None)


def run_ahead(
    raws: RawBatches, stages: BatchStages, stats: StatsRecorder, ahead: LookAhead
) -> Generator[LoadedBatch]:
    """Yield batches in order, with up to ``ahead.depth`` of them waiting."""
    threads = _Threads(raws, stages, ahead)
    try:
        yield from _yield_in_order(threads, stages, stats, ahead.total)
    finally:
        threads.stop()


def _yield_in_order(
    threads: _Threads, stages: BatchStages, stats: StatsRecorder, total: int | None
) -> Generator[LoadedBatch]:
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
        loaded = _hand_over(head, stages, stats, is_last=is_last)
        del head  # and with it the decoded images
        threads.permit()
        stats.add("wait", time.perf_counter() - started)
        yield loaded


def _hand_over(
    batch: BatchInProgress, stages: BatchStages, stats: StatsRecorder, *, is_last: bool
) -> LoadedBatch:
    """Finish and count a batch; runs in the user's thread."""
    finished = stages.finish(batch)
    counts = [one.num_tokens for sample in batch.samples for one in sample.segmented]
    stats.count(np.array(counts, np.int64), finished, batch.text_tokens)
    stats.short += sum(one.shortfall > 0 for sample in batch.samples for one in sample.segmented)
    if stages.cache is not None:
        for raw in (sample.raw for sample in batch.samples):
            stats.cache_hits += raw.num_images * (raw.tokens != "model")
            stats.cache_misses += raw.num_images * (raw.tokens == "model")
    stats.hold(-batch.nbytes)
    return LoadedBatch(finished, batch.position, is_last)


class _Threads:
    """Feeder, collector and finisher, and the queues between them."""

    def __init__(self, raws: RawBatches, stages: BatchStages, ahead: LookAhead) -> None:
        self._raws = raws
        self._stages = stages
        self._ahead = ahead
        self._permits = threading.Semaphore(ahead.depth + IN_STAGES + (ahead.total is None))
        self._decoding_since: float | None = None
        self._decoded_all = False
        self._stopping = False
        self._decoded, self._inferring, self._segmenting, self._ready = (
            queue.SimpleQueue[Any]() for _ in range(4)
        )
        models = ahead.model_stream.device
        batches = torch.device("cpu") if stages.upload is None else stages.upload.device
        feed = self._feed_decoded if ahead.decode_in_caller else self._decode_and_feed
        self._owner = os.getpid()
        _RUNNING.add(self)
        self._threads: list[threading.Thread | WorkOfThread] = []
        begin = self._threads.append
        try:
            begin(ahead.feeder.begin(lambda: _run_stage(models, feed, self._inferring)))
            begin(
                _start(
                    "subtok-collector",
                    lambda: _run_stage(models, self._segment, self._segmenting),
                )
            )
            begin(_start("subtok-finisher", lambda: _run_stage(batches, self._finish, self._ready)))
        except BaseException:
            self.stop()  # those that did start
            raise

    @property
    def num_ready(self) -> int:
        """Number of finished batches that wait for the user."""
        return self._ready.qsize()

    def permit(self) -> None:
        """Allow one more batch under way."""
        self._permits.release()

    def get(self) -> Any:
        """Return the next batch in order, or ``_END``; raises what a stage raised."""
        if self._ahead.decode_in_caller:
            self._decode()
        while True:
            try:
                # Torch tells the main thread about a dead child in the middle of whatever it does.
                with self._raws.named_crashes():
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
            raw = next(self._raws, None)
            self._decoded_all = raw is None
            self._decoded.put(raw)

    def _feed_decoded(self) -> Any:
        while True:
            raw: RawBatch | None = self._decoded.get()
            if raw is None or self._stopping:
                return _END
            self._feed(raw)

    def _decode_and_feed(self) -> Any:
        while True:
            self._permits.acquire()
            if self._stopping:
                return _END
            self._decoding_since = time.monotonic()
            raw = next(self._raws, None)
            self._decoding_since = None
            if raw is None or self._stopping:
                return _END
            self._feed(raw)

    def _feed(self, raw: RawBatch) -> None:
        batch = self._stages.open(raw)
        with hold_forks(), self._ahead.model_stream.entered():
            self._stages.infer(batch)
        self._inferring.put(batch)

    def _segment(self) -> Any:
        with self._ahead.model_stream.entered():
            return self._relay(self._inferring, self._stages.segment, self._segmenting)

    def _finish(self) -> Any:
        """Wait for the pool and pad; what is not settled is left to the user's thread."""
        use_one_torch_thread()  # a team of them would wait for cores that other stages use
        return self._relay(self._segmenting, self._collect, self._ready)

    def _collect(self, batch: BatchInProgress) -> None:
        self._stages.collect(batch)
        if batch.is_settled:
            self._stages.build(batch)

    def _relay(
        self,
        source: queue.SimpleQueue[Any],
        work: Callable[[BatchInProgress], None],
        target: queue.SimpleQueue[Any],
    ) -> Any:
        """Run a stage on batches in order; return what ended the queue."""
        while True:
            item = source.get()
            if not isinstance(item, BatchInProgress):
                return item
            if self._stopping:
                item.cancel()
                continue
            work(item)
            target.put(item)

    def _check_decoding(self) -> None:
        """Give up on DataLoader workers that hang; torch itself notices only those that died."""
        since = self._decoding_since
        if since is None or time.monotonic() - since < self._ahead.timeout_s:
            return
        self._raws.kill_workers()  # the feeder waits for them
        raise WorkerCrashError(
            f"the DataLoader gave no batch within timeout_s={self._ahead.timeout_s:g} s: a worker "
            "hangs, or decoding is slower than that; raise timeout_s, or find the sample with "
            "num_workers=0"
        )

    def stop(self) -> None:
        """End the threads and wait for them; work that nobody waits for is cancelled."""
        if os.getpid() != self._owner:
            return  # a forked child has none of them
        self._stopping = True
        self._permits.release()
        self._decoded.put(None)
        until = time.monotonic() + _JOIN_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        for waiting in (self._inferring, self._segmenting, self._ready):
            while not waiting.empty():
                item = waiting.get()
                if isinstance(item, BatchInProgress):
                    item.cancel()


def _start(name: str, work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, name=name, daemon=True)
    with name_process_limit():
        thread.start()
    return thread


def _run_stage(device: torch.device, work: Callable[[], Any], out: queue.SimpleQueue[Any]) -> None:
    """Run ``work``, and put what it returns at its end, or its failure, in its out-queue."""
    try:
        set_thread_device(device)
        last = work()
    except BaseException as error:
        last = _Failure(error)
    out.put(last)


_RUNNING: weakref.WeakSet[_Threads] = weakref.WeakSet()


def _stop_all() -> None:
    """End what an iteration that was left runs, before torch and CUDA are torn down."""
    for threads in list(_RUNNING):
        threads.stop()


atexit.register(_stop_all)
