"""Segment workers as processes: which of them died, and over which image, is always known.

``concurrent.futures`` loses every task when one worker dies, ``multiprocessing.Pool`` waits for the
lost task for ever, and both start workers that import the user's ``__main__``. Pebble names the
task that a worker died over and kills those that hang, but sends arrays pickled through a pipe.
Here each worker has a socket and two slots of shared memory, one thread of the main process deals
out jobs and collects results, and a dead or silent worker is replaced while the others go on.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import selectors
import socket
import threading
from collections import deque
from concurrent.futures import Future

from subtok_data.data.pool.base import SegmentJob, SegmentPool
from subtok_data.data.pool.worker_process import SLOTS, QueuedJob, SegmentProcess
from subtok_data.data.process_limit import name_process_limit
from subtok_data.errors import ConfigError, SampleError, WorkerCrashError
from subtok_data.segment import Segmented

__all__ = ["ProcessSegmentPool"]


class ProcessSegmentPool(SegmentPool):
    """Partition images in worker processes that import no torch.

    A thread of the pool deals jobs out to the workers and collects results. It keeps the pool
    alive: close it, or use it in a ``with`` statement. Workers also end with the process that made
    them, however it ends.

    Parameters
    ----------
    workers : int
        Processes.
    timeout_s : float, optional
        Seconds an image may take before its worker is killed.
    max_restarts : int, optional
        Workers replaced before every waiting image fails with
        :class:`~subtok_data.errors.WorkerCrashError`.

    Attributes
    ----------
    pids : list of int
        Process ids of the workers alive.

    Raises
    ------
    ConfigError
        If the system is not POSIX, or an option out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from subtok_data import SubobjectTokenizer
    >>> task = SubobjectTokenizer().segment_task()
    >>> flat = {"boundary_map": np.zeros((32, 48), np.uint8)}
    >>> with ProcessSegmentPool(1) as pool:
    ...     pool.submit(SegmentJob(task, flat, (32, 48))).result().num_tokens
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
        super().__init__(workers)
        self.pids: list[int] = []
        self._timeout_s = timeout_s
        self._max_restarts = max_restarts
        self._processes: list[SegmentProcess] = []
        self._lock = threading.Lock()  # of what the threads that submit and close share with ours:
        self._queue: deque[QueuedJob] = deque()
        self._closing = False
        self._broken: WorkerCrashError | None = None
        self._wake_read, self._wake_write = socket.socketpair()
        self._sources = selectors.PollSelector()
        self._sources.register(self._wake_read, selectors.EVENT_READ)
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="subtok-segment-pool", daemon=True)
        with name_process_limit():
            self._thread.start()

    # --- called by any thread -----------------------------------------------------------------

    def submit(self, job: SegmentJob) -> Future[Segmented]:
        """See :class:`~subtok_data.data.pool.SegmentPool`."""
        self._refuse_fork()
        queued = QueuedJob(job)
        with self._lock:
            if self._broken is not None:
                raise self._broken
            if self._closing:
                raise RuntimeError("the segment pool is closed")
            self._queue.append(queued)
            waits = len(self._queue) > 1  # then the thread is awake, or all workers have enough
        if not waits:
            self._wake()
        return queued.future

    def close(self) -> None:
        """End the workers and the thread; jobs that are not done fail or are cancelled."""
        if os.getpid() != self._owner:
            return  # a fork inherits the object, but not the right to end its workers
        with self._lock:
            self._closing = True
        self._wake()
        self._thread.join()

    def _wake(self) -> None:
        # Fails when a wake-up is waiting already, or the thread is gone.
        with contextlib.suppress(OSError):
            self._wake_write.send(b"w")

    # --- the thread of the pool -------------------------------------------------------------------

    def _run(self) -> None:
        try:
            for _ in range(self.workers):
                self._start()
            while not self._closing and self._broken is None:
                self._deal()
                self._wait()
        except BaseException as error:
            self._break(f"the segment pool failed: {type(error).__name__}: {error}", error)
        finally:
            self._finish()

    def _start(self) -> None:
        worker = SegmentProcess(self._timeout_s)
        self._processes.append(worker)
        self._sources.register(worker.connection, selectors.EVENT_READ, worker)
        self.pids = [worker.pid for worker in self._processes]

    def _deal(self) -> None:
        """Give every worker an image before any gets its second."""
        for load in range(SLOTS):
            for worker in list(self._processes):
                if worker.ready and len(worker.jobs) == load:
                    queued = self._next_job()
                    if queued is None:
                        return
                    try:
                        worker.send(queued)
                    except MemoryError as error:
                        queued.future.set_exception(error)  # the worker has not heard of it
                        self._wake()  # no answer of it will end the wait
                    except OSError:
                        self._lost(worker)

    def _next_job(self) -> QueuedJob | None:
        while True:
            with self._lock:
                if not self._queue:
                    return None
                queued = self._queue.popleft()
            if queued.future.running() or queued.future.set_running_or_notify_cancel():
                return queued

    def _wait(self) -> None:
        """Wait until a worker answers, a job comes, or a worker is silent for too long."""
        for source, _ in self._sources.select(self._patience()):
            if source.data is None:
                self._drain_wakes()
            else:
                self._receive(source.data)
        self._kill_silent()

    def _patience(self) -> float | None:
        left = [worker.left_s for worker in self._processes]
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
        queued, value, seconds = received
        self.busy_s += seconds
        if isinstance(value, Segmented):
            queued.future.set_result(value)
        else:
            queued.future.set_exception(value)

    def _kill_silent(self) -> None:
        for worker in list(self._processes):
            left = worker.left_s
            if left is not None and left < 0:
                what = "gave no answer" if worker.ready else "gave no sign of life at its start"
                stopped = worker.is_stopped
                suffix = ", since it was stopped from outside (SIGSTOP)" if stopped else ""
                reason = f"{what} within {worker.limit_s:g} s{suffix}"
                self._lost(worker, reason, blame_image=not stopped)

    def _lost(self, worker: SegmentProcess, hung: str = "", *, blame_image: bool = True) -> None:
        """Replace a worker that died, or that hung as ``hung`` says, and queue its jobs again."""
        self._processes.remove(worker)
        self._sources.unregister(worker.connection)
        ended = worker.end(kill=bool(hung))
        reason = hung or ended
        again = list(worker.jobs)
        if again and blame_image and _ended_worker_twice(again[0], reason):
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
            f"(max_restarts); the last one {reason}. See its messages above; executor='inline' "
            "shows the error in this process"
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
            left = [*(one for worker in self._processes for one in worker.jobs), *self._queue]
            self._queue.clear()
        for worker in self._processes:
            worker.hang_up()  # all at once, so that they end together
        for worker in self._processes:
            worker.end(kill=bool(worker.jobs) or not worker.ready)
        self._processes.clear()
        self.pids = []
        self._sources.close()
        self._wake_read.close()
        self._wake_write.close()
        for queued in left:
            if self._broken is None and queued.future.cancel():
                continue
            if not queued.future.done():
                queued.future.set_exception(
                    self._broken or WorkerCrashError("the segment pool was closed")
                )


def _ended_worker_twice(queued: QueuedJob, reason: str) -> bool:
    """Count the worker that died over a job; the second one fails the job."""
    queued.crashes += 1
    if queued.crashes < 2:
        return False
    height, width = queued.job.size
    queued.future.set_exception(
        SampleError(
            f"an image of {height}×{width} pixels ended its segment worker twice: the worker "
            f"{reason}",
            stage="segment",
        )
    )
    return True
