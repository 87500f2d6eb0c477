"""``SegmentPool``: where images are cut. Three executors, the same bits from each."""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from subtok_data.errors import ConfigError
from subtok_data.segment.task import Segmented, SegmentTask, run_task, warm_up
from subtok_data.segmenters import Evidence

__all__ = [
    "EXECUTORS",
    "InlineSegmentPool",
    "SegmentPool",
    "ThreadSegmentPool",
    "default_segment_workers",
    "make_pool",
]

EXECUTORS = ("process", "thread", "inline")


class SegmentPool(ABC):
    """Cuts images, in the caller's thread, in threads, or in processes.

    Attributes
    ----------
    workers : int
        How many images are cut at once.
    """

    workers: int

    @property
    @abstractmethod
    def busy_s(self) -> float:
        """Seconds spent cutting so far, summed over workers."""

    @property
    @abstractmethod
    def restarts(self) -> int:
        """Workers replaced after they died."""

    @abstractmethod
    def submit(
        self,
        task: SegmentTask,
        evidence: Evidence,
        size: tuple[int, int],
        image: NDArray[np.uint8] | None = None,
    ) -> Future[Segmented]:
        """Cut one image.

        Parameters
        ----------
        task : SegmentTask
            How.
        evidence : mapping of str to array
            What the segmenter found.
        size : (int, int)
            Height and width.
        image : (H, W, 3) uint8 array, optional
            Used only where merging goes by colour.

        Returns
        -------
        Future of Segmented
            Fails with what the task raised, with :class:`~subtok_data.errors.SampleError` for an
            image that killed its worker twice, or :class:`~subtok_data.errors.WorkerCrashError`.
        """

    @abstractmethod
    def close(self) -> None:
        """End all workers and wait for them; twice does no harm."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def default_segment_workers() -> int:
    """Cores of this process, shared among the ranks of the machine, less one to train on."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, cores // max(1, sharing) - 1)


def make_pool(
    executor: str,
    workers: int | None = None,
    *,
    timeout_s: float = 120.0,
    max_restarts: int = 3,
) -> SegmentPool:
    """Build a pool.

    Parameters
    ----------
    executor : {"process", "thread", "inline"}
        Where images are cut.
    workers : int, optional
        Threads or processes; :func:`default_segment_workers` by default.
    timeout_s : float, optional
        A worker process that has not answered for so long is killed and replaced.
    max_restarts : int, optional
        Worker processes replaced before the pool gives up.
    """
    if executor not in EXECUTORS:
        raise ConfigError(f"executor must be one of {EXECUTORS}, got {executor!r}")
    if workers is not None and workers < 1:
        raise ConfigError(
            f"segment_workers={workers}: give at least 1, or executor='inline' for none"
        )
    count = default_segment_workers() if workers is None else workers
    if executor == "inline":
        return InlineSegmentPool()
    if executor == "thread":
        return ThreadSegmentPool(count)
    from subtok_data.data.process_pool import ProcessSegmentPool

    return ProcessSegmentPool(count, timeout_s=timeout_s, max_restarts=max_restarts)


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
            future.set_result(self._timed(lambda: run_task(task, evidence, size, image)))
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
        return self._executor.submit(self._timed, lambda: run_task(task, evidence, size, image))

    def close(self) -> None:
        """See :class:`SegmentPool`."""
        self._executor.shutdown(wait=True, cancel_futures=True)
