"""Segment pools inside this process: in the caller's thread, or in threads."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

from subtok_data.data.pool.base import SegmentJob, SegmentPool
from subtok_data.segment import Segmented, warm_up

__all__ = ["InlineSegmentPool", "ThreadSegmentPool"]


class _LocalPool(SegmentPool):
    """Pools inside this process: nobody dies alone, so nobody is replaced."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self._lock = threading.Lock()

    def _timed(self, job: SegmentJob) -> Segmented:
        started = time.perf_counter()
        try:
            return job.run()
        finally:
            with self._lock:
                self.busy_s += time.perf_counter() - started

    def close(self) -> None:
        """See :class:`SegmentPool`."""


class InlineSegmentPool(_LocalPool):
    """Partition images where they are submitted, without threads or processes: for debugging."""

    def __init__(self) -> None:
        super().__init__(workers=1)

    def submit(self, job: SegmentJob) -> Future[Segmented]:
        """See :class:`SegmentPool`."""
        future: Future[Segmented] = Future()
        try:
            future.set_result(self._timed(job))
        except Exception as error:
            future.set_exception(error)
        return future


class ThreadSegmentPool(_LocalPool):
    """Partition images in threads: the kernels release the GIL."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self._executor = ThreadPoolExecutor(workers, "subtok-segment", initializer=warm_up)

    def submit(self, job: SegmentJob) -> Future[Segmented]:
        """See :class:`SegmentPool`."""
        self._refuse_fork()
        return self._executor.submit(self._timed, job)

    def close(self) -> None:
        """See :class:`SegmentPool`."""
        if os.getpid() == self._owner:
            self._executor.shutdown(wait=True, cancel_futures=True)
