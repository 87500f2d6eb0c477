"""Segment workers as processes of our own: who died, and over which image, is always known.

``concurrent.futures`` and ``multiprocessing`` pools cannot say which task a dead worker was at,
start workers that import the user's ``__main__``, and lose every task when one worker dies. Here
each worker has a socket and a few shared-memory slots, one thread of the main process deals out
tasks and collects results, and a dead or silent worker is replaced while the others go on.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing.connection
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtok_data.data.pool import SegmentPool
from subtok_data.errors import ConfigError, SampleError, WorkerCrashError
from subtok_data.segment.task import Segmented, SegmentTask
from subtok_data.segment.transport import Slot, allocate_slot
from subtok_data.segmenters import Evidence

__all__ = ["ProcessSegmentPool"]

_SLOTS = 2  # one image being cut, one waiting: the worker never waits for the main process
_START_TIMEOUT_S = 120.0
_EXIT_TIMEOUT_S = 3.0
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
_ENTRY = (
    "import json, sys; path, connection, slots = json.loads(sys.argv[1]); sys.path[:] = path; "
    "from subtok_data.segment.worker import main; main(connection, slots)"
)


@dataclass(eq=False)
class _Job:
    """One image to cut."""

    task: SegmentTask
    arrays: dict[str, NDArray[Any]]
    size: tuple[int, int]
    future: Future[Segmented] = field(default_factory=Future[Segmented])
    crashes: int = 0


class _Worker:
    """One process, its socket and its slots. Used by the dealing thread only."""

    def __init__(self) -> None:
        here, there = socket.socketpair()
        self.slots = [Slot(allocate_slot()) for _ in range(_SLOTS)]
        descriptors = [slot.descriptor for slot in self.slots]
        argument = json.dumps([sys.path, there.fileno(), descriptors])
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _ENTRY, argument],
                stdin=subprocess.DEVNULL,
                pass_fds=(there.fileno(), *descriptors),
                env={**os.environ, **dict.fromkeys(_ONE_THREAD, "1")},
            )
        finally:
            there.close()
        self.connection = Connection(here.detach())
        self.ready = False
        self.free_slots = deque(range(_SLOTS))
        self.jobs: deque[tuple[int, _Job]] = deque()  # (slot, job); the first is being cut
        self.known_tasks: dict[SegmentTask, int] = {}
        self.since = time.monotonic()  # when the first job, or the start, began
        self.reason: str | None = None

    def send(self, job: _Job) -> None:
        """Copy a job's arrays into a free slot and tell the worker."""
        slot = self.free_slots.popleft()
        if not self.jobs:
            self.since = time.monotonic()
        self.jobs.append((slot, job))
        places, free = self.slots[slot].put(job.arrays)
        task = None
        if job.task not in self.known_tasks:
            self.known_tasks[job.task] = len(self.known_tasks)
            task = job.task
        request = (id(job), slot, self.known_tasks[job.task], task, places, free, job.size)
        self.connection.send_bytes(pickle.dumps(request))

    def take(self) -> tuple[_Job, Any, float] | None:
        """Receive one answer: the job, its result or exception, and the seconds it took."""
        answer = pickle.loads(self.connection.recv_bytes())
        if answer[0] == "ready":
            self.ready = True
            self.since = time.monotonic()
            return None
        kind, number, seconds, value, place = answer
        slot, job = self.jobs.popleft()
        if number != id(job):
            raise OSError("a segment worker answered out of order")
        if kind == "done":
            # Copied out at once, so that slots are bounded by workers and not by batches in flight.
            value = replace(value, token_map=self.slots[slot].view(place).copy())
        self.free_slots.append(slot)
        self.since = time.monotonic()
        return job, value, seconds

    def end(self, *, kill: bool) -> int | None:
        """Close the socket, which ends the worker; kill it if asked or if it lingers."""
        self.connection.close()
        if kill:
            self.process.kill()
        try:
            code = self.process.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        for slot in self.slots:
            slot.close()
        return code


class _Dealer:
    """Deals jobs to workers and collects results, in a thread of its own."""

    def __init__(self, workers: int, timeout_s: float, max_restarts: int) -> None:
        self.count = workers
        self.timeout_s = timeout_s
        self.max_restarts = max_restarts
        self.restarts = 0
        self.busy_s = 0.0
        self.pids: list[int] = []
        self._queue: deque[_Job] = deque()
        self._lock = threading.Lock()
        self._closing = False
        self._broken: WorkerCrashError | None = None
        self._workers: list[_Worker] = []
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self.thread = threading.Thread(target=self._run, name="subtok-segment-dealer", daemon=True)
        self.thread.start()

    def submit(self, job: _Job) -> None:
        with self._lock:
            if self._broken is not None:
                raise self._broken
            if self._closing:
                raise RuntimeError("the segment pool is closed")
            self._queue.append(job)
        self._wake()

    def close(self) -> None:
        with self._lock:
            self._closing = True
        self._wake()
        self.thread.join()

    def _wake(self) -> None:
        # Fails when a wake-up is waiting already, or the thread is gone.
        with contextlib.suppress(OSError):
            self._wake_write.send(b"w")

    def _run(self) -> None:
        try:
            for _ in range(self.count):
                self._start()
            while not self._closing and self._broken is None:
                self._deal()
                self._wait()
        except BaseException as error:
            self._break(f"the segment pool failed: {type(error).__name__}: {error}", error)
        finally:
            self._finish()

    def _start(self) -> None:
        worker = _Worker()
        self._workers.append(worker)
        self.pids = [one.process.pid for one in self._workers]

    def _deal(self) -> None:
        """Give every worker an image before any gets its second."""
        for load in range(_SLOTS):
            for worker in list(self._workers):
                if worker.ready and len(worker.jobs) == load:
                    job = self._next_job()
                    if job is None:
                        return
                    try:
                        worker.send(job)
                    except OSError:
                        self._lost(worker)

    def _next_job(self) -> _Job | None:
        while True:
            with self._lock:
                if not self._queue:
                    return None
                job = self._queue.popleft()
            if job.future.running() or job.future.set_running_or_notify_cancel():
                return job

    def _wait(self) -> None:
        connections = {worker.connection: worker for worker in self._workers}
        ready = multiprocessing.connection.wait(
            [*connections, self._wake_read], timeout=self._patience()
        )
        for source in ready:
            if source is self._wake_read:
                self._drain_wakes()
                continue
            worker = connections[source]  # pyright: ignore[reportArgumentType]
            try:
                taken = worker.take()
            except (EOFError, OSError, pickle.UnpicklingError):
                self._lost(worker)
                continue
            if taken is not None:
                self._deliver(*taken)
        self._kill_silent()

    def _drain_wakes(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._wake_read.recv(4096):
                pass

    def _deliver(self, job: _Job, value: Any, seconds: float) -> None:
        self.busy_s += seconds
        if isinstance(value, BaseException):
            job.future.set_exception(value)
        else:
            job.future.set_result(value)

    def _limit(self, worker: _Worker) -> float | None:
        """How long a worker may be silent now; None while it has nothing to do."""
        if not worker.ready:
            return max(self.timeout_s, _START_TIMEOUT_S)
        return self.timeout_s if worker.jobs else None

    def _patience(self) -> float | None:
        now = time.monotonic()
        limits = [(worker, self._limit(worker)) for worker in self._workers]
        left = [worker.since + limit - now for worker, limit in limits if limit is not None]
        return max(0.0, min(left)) if left else None

    def _kill_silent(self) -> None:
        now = time.monotonic()
        for worker in list(self._workers):
            limit = self._limit(worker)
            if limit is not None and now - worker.since > limit:
                worker.reason = f"gave no answer within {limit:g} s"
                self._lost(worker)

    def _lost(self, worker: _Worker) -> None:
        """Replace a worker that died or was silent; do its work again."""
        self._workers.remove(worker)
        code = worker.end(kill=worker.reason is not None)
        reason = worker.reason or _describe_exit(code)
        blamed = worker.jobs[0][1] if worker.jobs else None
        again = [job for _, job in worker.jobs]
        counts = True
        if blamed is not None:
            blamed.crashes += 1
            if blamed.crashes >= 2:
                # The image is at fault, not the pool.
                counts = False
                again.remove(blamed)
                blamed.future.set_exception(
                    SampleError(
                        f"an image of {blamed.size[0]}×{blamed.size[1]} pixels ended its segment "
                        "worker "
                        f"twice: the worker {reason}",
                        stage="segment",
                    )
                )
        with self._lock:
            self._queue.extendleft(reversed(again))
        self.restarts += counts
        if self.restarts > self.max_restarts:
            self._break(
                f"{self.restarts} segment workers were lost, {self.max_restarts} may be replaced "
                f"(max_restarts); the last one {reason}. See its messages above; if memory ran "
                "out, use "
                "fewer segment_workers; executor='inline' shows the error in this process"
            )
            return
        self._start()

    def _break(self, message: str, cause: BaseException | None = None) -> None:
        error = WorkerCrashError(message)
        error.__cause__ = cause
        with self._lock:
            self._broken = error

    def _finish(self) -> None:
        with self._lock:
            self._closing = True
            jobs = [*(job for w in self._workers for _, job in w.jobs), *self._queue]
            self._queue.clear()
        for worker in self._workers:
            worker.connection.close()  # all at once, so that they end together
        for worker in self._workers:
            worker.end(kill=bool(worker.jobs) or not worker.ready)
        self._workers.clear()
        self.pids = []
        self._wake_read.close()
        self._wake_write.close()
        for job in jobs:
            if self._broken is None and job.future.cancel():
                continue
            if not job.future.done():
                job.future.set_exception(
                    self._broken or WorkerCrashError("the segment pool was closed")
                )


def _describe_exit(code: int | None) -> str:
    if code is not None and code < 0:
        hint = " (killed; out of memory?)" if code == -9 else ""
        return f"was ended by signal {-code}{hint}"
    return f"exited with code {code}"


def _close_in_owner(dealer: _Dealer, owner: int) -> None:
    if os.getpid() == owner:  # a fork inherits the object, but not the right to end its workers
        dealer.close()


class ProcessSegmentPool(SegmentPool):
    """Cut images in worker processes that import no torch.

    Parameters
    ----------
    workers : int
        Processes.
    timeout_s : float, optional
        Seconds an image may take before its worker is killed.
    max_restarts : int, optional
        Workers replaced before every waiting image fails with
        :class:`~subtok_data.errors.WorkerCrashError`.

    Examples
    --------
    >>> import numpy as np
    >>> from subtok_data import SubobjectTokenizer
    >>> task = SubobjectTokenizer().segment_task()
    >>> with ProcessSegmentPool(1) as pool:
    ...     flat = np.zeros((32, 48), np.uint8)
    ...     pool.submit(task, {"boundary_map": flat}, (32, 48)).result().num_tokens
    1
    """

    def __init__(self, workers: int, *, timeout_s: float = 120.0, max_restarts: int = 3) -> None:
        if os.name != "posix":
            raise ConfigError("executor='process' needs a POSIX system; use executor='thread'")
        if timeout_s <= 0 or max_restarts < 0:
            raise ConfigError(
                f"timeout_s={timeout_s}, max_restarts={max_restarts}: give more than 0 s, and 0 "
                "or more"
            )
        self.workers = workers
        self._dealer = _Dealer(workers, timeout_s, max_restarts)
        self._closer = weakref.finalize(self, _close_in_owner, self._dealer, os.getpid())

    @property
    def busy_s(self) -> float:
        """Seconds spent cutting so far, summed over workers."""
        return self._dealer.busy_s

    @property
    def restarts(self) -> int:
        """Workers replaced after they died."""
        return self._dealer.restarts

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers alive."""
        return self._dealer.pids

    def submit(
        self,
        task: SegmentTask,
        evidence: Evidence,
        size: tuple[int, int],
        image: NDArray[np.uint8] | None = None,
    ) -> Future[Segmented]:
        """See :class:`~subtok_data.data.pool.SegmentPool`."""
        arrays = dict(evidence)
        if image is not None and task.needs_image:
            arrays["/image"] = image
        job = _Job(task, arrays, size)
        self._dealer.submit(job)
        return job.future

    def close(self) -> None:
        """See :class:`~subtok_data.data.pool.SegmentPool`."""
        self._closer()
