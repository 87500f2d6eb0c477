"""Segment workers as processes of our own: who died, and over which image, is always known.

``concurrent.futures`` and ``multiprocessing`` pools cannot say which task a dead worker was at,
start workers that import the user's ``__main__``, and lose every task when one worker dies. Here
each worker has a socket and a few shared-memory slots, one thread of the main process deals out
tasks and collects results, and a dead or silent worker is replaced while the others go on.
"""

from __future__ import annotations

import contextlib
import multiprocessing.connection
import os
import pickle
import socket
import threading
import weakref
from collections import deque
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from subtok_data.data.pool.base import SegmentPool
from subtok_data.data.pool.worker_process import SLOTS, SegmentJob, SegmentProcess
from subtok_data.errors import ConfigError, SampleError, WorkerCrashError
from subtok_data.segment import Segmented, SegmentTask
from subtok_data.segmenters import Evidence

__all__ = ["Dealer", "ProcessSegmentPool"]


def _close_in_owner(dealer: Dealer, owner: int) -> None:
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
        self._dealer = Dealer(workers, timeout_s, max_restarts)
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
        """See :class:`~subtok_data.data.pool.base.SegmentPool`."""
        arrays = dict(evidence)
        if image is not None and task.needs_image:
            arrays["/image"] = image
        job = SegmentJob(task, arrays, size)
        self._dealer.submit(job)
        return job.future

    def close(self) -> None:
        """See :class:`~subtok_data.data.pool.base.SegmentPool`."""
        self._closer()


class Dealer:
    """Deals jobs to worker processes and collects results, in a thread of its own.

    Parameters
    ----------
    workers : int
        Processes.
    timeout_s : float
        Seconds a worker may be at one image.
    max_restarts : int
        Workers replaced before every waiting job fails.

    Attributes
    ----------
    busy_s : float
        Seconds spent cutting so far, summed over workers.
    restarts : int
        Workers lost so far, save those that an image is to blame for.
    pids : list of int
        Process ids of the workers alive.
    """

    def __init__(self, workers: int, timeout_s: float, max_restarts: int) -> None:
        self.busy_s = 0.0
        self.restarts = 0
        self.pids: list[int] = []
        self._count = workers
        self._timeout_s = timeout_s
        self._max_restarts = max_restarts
        self._workers: list[SegmentProcess] = []
        self._lock = threading.Lock()  # of what the threads that submit and close share with ours:
        self._queue: deque[SegmentJob] = deque()
        self._closing = False
        self._broken: WorkerCrashError | None = None
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="subtok-segment-dealer", daemon=True)
        self._thread.start()

    # --- called by any thread -----------------------------------------------------------------

    def submit(self, job: SegmentJob) -> None:
        """Queue a job; its future tells the result."""
        with self._lock:
            if self._broken is not None:
                raise self._broken
            if self._closing:
                raise RuntimeError("the segment pool is closed")
            self._queue.append(job)
        self._wake()

    def close(self) -> None:
        """End the workers and the thread; jobs that are not done fail or are cancelled."""
        with self._lock:
            self._closing = True
        self._wake()
        self._thread.join()

    def _wake(self) -> None:
        # Fails when a wake-up is waiting already, or the thread is gone.
        with contextlib.suppress(OSError):
            self._wake_write.send(b"w")

    # --- the dealing thread -------------------------------------------------------------------

    def _run(self) -> None:
        try:
            for _ in range(self._count):
                self._start()
            while not self._closing and self._broken is None:
                self._deal()
                self._wait()
        except BaseException as error:
            self._break(f"the segment pool failed: {type(error).__name__}: {error}", error)
        finally:
            self._finish()

    def _start(self) -> None:
        self._workers.append(SegmentProcess(self._timeout_s))
        self.pids = [worker.pid for worker in self._workers]

    def _deal(self) -> None:
        """Give every worker an image before any gets its second."""
        for load in range(SLOTS):
            for worker in list(self._workers):
                if worker.ready and len(worker.jobs) == load:
                    job = self._next_job()
                    if job is None:
                        return
                    try:
                        worker.send(job)
                    except OSError:
                        self._lost(worker)

    def _next_job(self) -> SegmentJob | None:
        while True:
            with self._lock:
                if not self._queue:
                    return None
                job = self._queue.popleft()
            if job.future.running() or job.future.set_running_or_notify_cancel():
                return job

    def _wait(self) -> None:
        """Wait until a worker answers, a job comes, or a worker is silent for too long."""
        connections = {worker.connection: worker for worker in self._workers}
        ready = multiprocessing.connection.wait(
            [*connections, self._wake_read], timeout=self._patience()
        )
        for source in ready:
            if source is self._wake_read:
                self._drain_wakes()
            else:
                self._receive(connections[source])  # pyright: ignore[reportArgumentType]
        self._kill_silent()

    def _patience(self) -> float | None:
        left = [worker.left_s for worker in self._workers]
        return min((max(0.0, one) for one in left if one is not None), default=None)

    def _drain_wakes(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._wake_read.recv(4096):
                pass

    def _receive(self, worker: SegmentProcess) -> None:
        try:
            received = worker.receive()
        except (EOFError, OSError, pickle.UnpicklingError):
            self._lost(worker)
            return
        if received is None:
            return
        job, value, seconds = received
        self.busy_s += seconds
        if isinstance(value, Segmented):
            job.future.set_result(value)
        else:
            job.future.set_exception(value)

    def _kill_silent(self) -> None:
        for worker in list(self._workers):
            left = worker.left_s
            if left is not None and left < 0:
                self._lost(worker, f"gave no answer within {worker.limit_s:g} s")

    def _lost(self, worker: SegmentProcess, hung: str = "") -> None:
        """Replace a worker that died, or that hung in the way that is said; do its work again."""
        self._workers.remove(worker)
        ended = worker.end(kill=bool(hung))
        reason = hung or ended
        again = list(worker.jobs)
        if again and _ended_worker_twice(again[0], reason):
            del again[0]  # the image is at fault, not the pool
        else:
            self.restarts += 1
        with self._lock:
            self._queue.extendleft(reversed(again))
        if self.restarts <= self._max_restarts:
            self._start()
            return
        self._break(
            f"{self.restarts} segment workers were lost, {self._max_restarts} may be replaced "
            f"(max_restarts); the last one {reason}. See its messages above; if memory ran out, "
            "use fewer segment_workers; executor='inline' shows the error in this process"
        )

    def _break(self, message: str, cause: BaseException | None = None) -> None:
        error = WorkerCrashError(message)
        error.__cause__ = cause
        with self._lock:
            self._broken = error

    def _finish(self) -> None:
        """End all workers, and settle every job that is left."""
        with self._lock:
            self._closing = True
            jobs = [*(job for worker in self._workers for job in worker.jobs), *self._queue]
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


def _ended_worker_twice(job: SegmentJob, reason: str) -> bool:
    """Count the worker that died over a job; the second one fails the job."""
    job.crashes += 1
    if job.crashes < 2:
        return False
    height, width = job.size
    job.future.set_exception(
        SampleError(
            f"an image of {height}×{width} pixels ended its segment worker twice: the worker "
            f"{reason}",
            stage="segment",
        )
    )
    return True
