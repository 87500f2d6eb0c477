"""Segment workers as processes of our own: who died, and over which image, is always known.

``concurrent.futures`` and ``multiprocessing`` pools cannot say which task a dead worker was at,
start workers that import the user's ``__main__``, and lose every task when one worker dies. Here
each worker has a socket and a few shared-memory slots, one thread of the main process deals out
tasks and collects results, and a dead or silent worker is replaced while the others go on.
"""

from __future__ import annotations

import os
import weakref
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from subtok_data.data.dealer import Dealer
from subtok_data.data.pool import SegmentPool
from subtok_data.data.segment_process import SegmentJob
from subtok_data.errors import ConfigError
from subtok_data.segment.task import Segmented, SegmentTask
from subtok_data.segmenters import Evidence

__all__ = ["ProcessSegmentPool"]


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
        """See :class:`~subtok_data.data.pool.SegmentPool`."""
        arrays = dict(evidence)
        if image is not None and task.needs_image:
            arrays["/image"] = image
        job = SegmentJob(task, arrays, size)
        self._dealer.submit(job)
        return job.future

    def close(self) -> None:
        """See :class:`~subtok_data.data.pool.SegmentPool`."""
        self._closer()
