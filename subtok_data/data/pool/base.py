"""``SegmentPool``: partitions images, by one of three executors with the same bits from each."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from subtok_data.segment import Evidence, Segmented, SegmentTask, segment_image

__all__ = ["SegmentJob", "SegmentPool"]


@dataclass(frozen=True, eq=False, slots=True)
class SegmentJob:
    """One image to partition.

    Parameters
    ----------
    task : SegmentTask
        How.
    evidence : mapping of str to array
        What the segmenter found.
    size : (int, int)
        Height and width, px.
    image : (H, W, 3) uint8 array, optional
        Read only where tokens are merged by colour.
    """

    task: SegmentTask
    evidence: Evidence
    size: tuple[int, int]
    image: NDArray[np.uint8] | None = None

    def run(self) -> Segmented:
        """Partition the image in this thread."""
        return segment_image(self.task, self.evidence, self.size, self.image)


class SegmentPool(ABC):
    """Partitions images, in the caller's thread, in threads, or in processes.

    Parameters
    ----------
    workers : int
        How many images are partitioned at once.

    Attributes
    ----------
    workers : int
        As given.
    busy_s : float
        Seconds of work so far, summed over workers.
    restarts : int
        Workers that died and were replaced, without those that an image is to blame for.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._owner = os.getpid()
        self.busy_s = 0.0
        self.restarts = 0

    @abstractmethod
    def submit(self, job: SegmentJob) -> Future[Segmented]:
        """Partition one image.

        Returns
        -------
        Future of Segmented
            Fails with what the task raised, with :class:`~subtok_data.errors.SampleError` for an
            image that killed its worker twice, or :class:`~subtok_data.errors.WorkerCrashError`.
        """

    def _refuse_fork(self) -> None:
        """Raise in a forked child, where the threads of the pool do not exist."""
        if os.getpid() != self._owner:
            raise RuntimeError(
                "this segment pool belongs to the process that this one was forked from: make one "
                "in each process"
            )

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
