"""One segment worker as the main process sees it: a process, its socket and its shared memory."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any

from numpy.typing import NDArray

from subtok_data.data.pool.base import SegmentJob
from subtok_data.data.process_limit import name_process_limit
from subtok_data.segment import Segmented, SegmentTask, Slot, allocate_slot

__all__ = ["SLOTS", "QueuedJob", "SegmentProcess"]

SLOTS = 2
"""One image at work, one waiting: the worker never waits for the main process."""

_START_TIMEOUT_S = 120.0
_EXIT_TIMEOUT_S = 3.0
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
_ENTRY = (
    "import json, sys; path, connection, slots = json.loads(sys.argv[1]); sys.path[:] = path; "
    "from subtok_data.segment.worker.main import main; main(connection, slots)"
)


@dataclass(eq=False, slots=True)
class QueuedJob:
    """A job that waits or is worked on, its future, and how many workers died over it."""

    job: SegmentJob
    future: Future[Segmented] = field(default_factory=Future[Segmented])
    crashes: int = 0

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays that the worker needs."""
        arrays = dict(self.job.evidence)
        if self.job.image is not None and self.job.task.needs_image:
            arrays["/image"] = self.job.image
        return arrays


class SegmentProcess:
    """A worker process and the jobs it was given; used by one thread only.

    Parameters
    ----------
    timeout_s : float
        Seconds an image may take; starting may take longer.

    Attributes
    ----------
    connection : Connection
        Socket to the process; can be waited for.
    ready : bool
        Whether it has started; only then it may be given jobs, at most :data:`SLOTS` at a time.
    jobs : tuple of QueuedJob
        What it was given and has not answered; it works on the first.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        here, there = socket.socketpair()
        self._slots = [Slot(allocate_slot()) for _ in range(SLOTS)]
        descriptors = [slot.descriptor for slot in self._slots]
        path = [os.fspath(entry) for entry in sys.path]  # paths too, which Python itself ignores
        argument = json.dumps([path, there.fileno(), descriptors])
        try:
            with name_process_limit():
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _ENTRY, argument],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(there.fileno(), *descriptors),
                    env={**os.environ, **dict.fromkeys(_ONE_THREAD, "1")},
                )
        finally:
            there.close()
        self._socket = here
        self.connection = Connection(os.dup(here.fileno()))
        self.ready = False
        self._free_slots = deque(range(SLOTS))
        self._given: deque[tuple[int, QueuedJob]] = deque()  # with the slot of each
        self._known_tasks: dict[SegmentTask, int] = {}
        self._since = time.monotonic()  # when the first job, or the start, began

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    @property
    def jobs(self) -> tuple[QueuedJob, ...]:
        """What it was given and has not answered, in order."""
        return tuple(job for _, job in self._given)

    def send(self, queued: QueuedJob) -> None:
        """Copy a job's arrays into a free slot and tell the worker.

        Raises
        ------
        OSError
            If the worker is dead; the job is among its :attr:`jobs` nevertheless.
        MemoryError
            If the arrays find no place; the worker was told nothing.
        """
        slot = self._free_slots[0]
        places, free = self._slots[slot].put(queued.arrays())
        self._free_slots.popleft()
        if not self._given:
            self._since = time.monotonic()
        self._given.append((slot, queued))
        job, new = queued.job, len(self._known_tasks)
        key = self._known_tasks.setdefault(job.task, new)
        task = job.task if key == new else None
        request = (id(queued), slot, key, task, places, free, job.size)
        self.connection.send_bytes(pickle.dumps(request))

    def receive(self) -> tuple[QueuedJob, Segmented | Exception, float] | None:
        """Read one answer: the job, its result or exception, and the seconds it took.

        None if the worker only says that it is starting, or has started.

        Raises
        ------
        EOFError, OSError, pickle.UnpicklingError
            If the worker is dead.
        """
        answer = pickle.loads(self.connection.recv_bytes())
        self._since = time.monotonic()
        if answer[0] in ("starting", "ready"):
            self.ready = answer[0] == "ready"
            return None
        kind, number, seconds, value, place = answer
        slot, queued = self._given.popleft()
        if number != id(queued):
            raise OSError("a segment worker answered out of order")
        if kind == "done":
            # Copied out at once, so that slots are bounded by workers and not by batches in flight.
            try:
                value = replace(value, token_map=self._slots[slot].view(place).copy())
            except MemoryError as error:
                value = error
        self._free_slots.append(slot)
        return queued, value, seconds

    @property
    def limit_s(self) -> float | None:
        """Seconds it may be silent before it counts as hung; None while it has nothing to do.

        While it starts it gives signs of life, so the compiler may take as long as it needs.
        """
        if not self.ready:
            return max(self._timeout_s, _START_TIMEOUT_S)
        return self._timeout_s if self._given else None

    @property
    def left_s(self) -> float | None:
        """What is left of :attr:`limit_s`, below 0 when it is over."""
        limit = self.limit_s
        return None if limit is None else self._since + limit - time.monotonic()

    @property
    def is_stopped(self) -> bool:
        """Whether someone stopped the process (SIGSTOP, a debugger); only Linux tells."""
        try:
            with open(f"/proc/{self.pid}/stat", encoding="latin-1") as file:
                state = file.read().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            return False
        return state in ("T", "t")

    def hang_up(self) -> None:
        """Tell the worker to end: it reads the end of the stream."""
        # Closing is not enough: a process that was forked from this one holds the socket too.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self.connection.close()

    def end(self, *, kill: bool) -> str:
        """End the process, give back what it held, and return how it ended.

        Closing the socket ends a worker that waits for a job; one that lingers is killed, and one
        that shall be killed is not waited for.
        """
        self.hang_up()
        if kill:
            self._process.kill()
        try:
            code = self._process.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        for slot in self._slots:
            slot.close()
        if code >= 0:
            return f"exited with code {code}"
        if code == -signal.SIGKILL:
            return (
                "was ended by signal 9, killed from outside; if memory ran out, use fewer "
                "segment_workers"
            )
        return f"was ended by signal {-code}"
