"""Threads of the look-ahead: one that lasts from epoch to epoch, and torch's own kept to one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import torch

from subtok_data.data.process_limit import name_process_limit

__all__ = ["LastingThread", "WorkOfThread", "use_one_torch_thread"]

_JOIN_S = 30.0


class WorkOfThread:
    """Work that a :class:`LastingThread` was given; joined like a thread."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work: Callable[[], None] | None = work
        self._done = threading.Event()

    def run(self) -> None:
        """Do the work, and forget it."""
        work, self._work = self._work, None
        try:
            if work is not None:
                work()
        finally:
            self._done.set()

    def join(self, timeout: float | None = None) -> None:
        """Wait until it is done."""
        self._done.wait(timeout)

    def is_alive(self) -> bool:
        """Whether it is not done yet."""
        return not self._done.is_set()


class LastingThread:
    """A thread that does one piece of work after the other, until it is closed.

    cuDNN's plans of convolutions, and what else torch keeps for each thread, are so made once for a
    loader and not in every epoch. The thread starts with its first work.

    Parameters
    ----------
    name : str
        Of the thread.

    Examples
    --------
    >>> thread, found = LastingThread("subtok-example"), []
    >>> for _ in range(2):
    ...     thread.begin(lambda: found.append(threading.current_thread())).join()
    >>> found[0] is found[1]
    True
    >>> thread.close()
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue = queue.SimpleQueue[WorkOfThread | None]()
        self._thread: threading.Thread | None = None
        self._latest: WorkOfThread | None = None

    def begin(self, work: Callable[[], None]) -> WorkOfThread:
        """Begin work; in a new thread if the one before hangs."""
        if self._latest is not None and self._latest.is_alive():
            self._dismiss()
        if self._thread is None:
            # The thread must not keep this object, nor what owns it.
            thread = threading.Thread(
                target=_work_until_none, args=(self._queue,), name=self._name, daemon=True
            )
            with name_process_limit():
                thread.start()
            self._thread = thread
        self._latest = WorkOfThread(work)
        self._queue.put(self._latest)
        return self._latest

    def close(self) -> None:
        """End the thread and wait for it."""
        thread = self._dismiss()
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN_S)

    def _dismiss(self) -> threading.Thread | None:
        """Let the thread end behind its work, and let the next work begin another one."""
        self._queue.put(None)
        thread = self._thread
        self._queue, self._thread = queue.SimpleQueue[WorkOfThread | None](), None
        return thread


def _work_until_none(given: queue.SimpleQueue[WorkOfThread | None]) -> None:
    while (work := given.get()) is not None:
        work.run()
        del work


def use_one_torch_thread() -> None:
    """Let torch compute with one thread in the calling thread, and only there.

    ``torch.set_num_threads`` is for the calling thread, but is remembered for all threads that
    begin to compute later; so the old number is set again in a thread that ends at once.

    Examples
    --------
    >>> thread = threading.Thread(target=use_one_torch_thread)
    >>> before = torch.get_num_threads()
    >>> thread.start(); thread.join()
    >>> torch.get_num_threads() == before
    True
    """
    before = torch.get_num_threads()
    if before == 1:
        return
    torch.set_num_threads(1)
    restoring = threading.Thread(target=torch.set_num_threads, args=(before,), daemon=True)
    with name_process_limit():
        restoring.start()
    restoring.join()
