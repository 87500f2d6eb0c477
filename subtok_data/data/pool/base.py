"""``SegmentPool``: where images are cut. Three executors, the same bits from each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import Future
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from subtok_data.segment import Segmented, SegmentTask
from subtok_data.segmenters import Evidence

__all__ = ["SegmentPool"]


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
