"""``SegmentPool``: where images are cut. Three executors, the same bits from each."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from subtok_data.data.pool.base import SegmentPool
from subtok_data.segment import Segmented, SegmentTask, segment_image, warm_up
from subtok_data.segmenters import Evidence

__all__ = ["InlineSegmentPool", "ThreadSegmentPool"]


class _LocalPool(SegmentPool):
    """Pools inside this process: nobody dies alone, so nobody is replaced."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._busy_s = 0.0
        self._lock = threading.Lock()

    @property
    def busy_s(self) -> float:
        """Seconds spent cutting so far, summed over workers."""
        return self._busy_s

    @property
    def restarts(self) -> int:
        """Always 0."""
        return 0

    def _timed(self, cut: Callable[[], Segmented]) -> Segmented:
        started = time.perf_counter()
        try:
            return cut()
        finally:
            with self._lock:
                self._busy_s += time.perf_counter() - started

    def close(self) -> None:
        """See :class:`SegmentPool`."""


class InlineSegmentPool(_LocalPool):
    """Cut images where they are submitted: no threads, no processes; the first debugging tool."""

    def __init__(self) -> None:
        super().__init__(workers=1)

    def submit(
        self,
        task: SegmentTask,
        evidence: Evidence,
        size: tuple[int, int],
        image: NDArray[np.uint8] | None = None,
    ) -> Future[Segmented]:
        """See :class:`SegmentPool`."""
        future: Future[Segmented] = Future()
        try:
            future.set_result(self._timed(lambda: segment_image(task, evidence, size, image)))
        except Exception as error:
            future.set_exception(error)
        return future


class ThreadSegmentPool(_LocalPool):
    """Cut images in threads: the kernels release the GIL."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self._executor = ThreadPoolExecutor(workers, "subtok-segment", initializer=warm_up)

    def submit(
        self,
        task: SegmentTask,
        evidence: Evidence,
        size: tuple[int, int],
        image: NDArray[np.uint8] | None = None,
    ) -> Future[Segmented]:
        """See :class:`SegmentPool`."""
        return self._executor.submit(
            self._timed, lambda: segment_image(task, evidence, size, image)
        )

    def close(self) -> None:
        """See :class:`SegmentPool`."""
        self._executor.shutdown(wait=True, cancel_futures=True)
