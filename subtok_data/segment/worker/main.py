"""Entry point of a segment worker process.

Started as its own interpreter, not through ``multiprocessing``: so it never imports the user's
``__main__`` (which would bring torch in, and fails for notebooks, standard input, and scripts
without a main guard), and it starts with numpy and numba only.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from subtok_data.errors import SubtokError
from subtok_data.segment.task import SegmentTask, segment_image
from subtok_data.segment.warmup import warm_up
from subtok_data.segment.worker.shared_memory import ArrayPlace, Slot

__all__ = ["main"]

_PARENT_CHECK_S = 2.0
_BEAT_S = 2.0
_NO_MAP = np.empty((0, 0), np.int16)  # the map itself travels in the slot


def main(connection_fd: int, slot_fds: list[int]) -> None:
    """Answer tasks from the connection until it closes.

    Parameters
    ----------
    connection_fd : int
        Inherited socket to the main process.
    slot_fds : list of int
        Inherited shared memory.
    """
    # Ctrl-C goes to the whole process group; the main process decides when workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The process that launches inference and trains comes first; segmentation has time until then.
    os.nice(5)
    parent = os.getppid()
    connection = Connection(connection_fd)
    slots = [Slot(descriptor) for descriptor in slot_fds]
    tasks: dict[int, SegmentTask] = {}
    try:
        with _signs_of_life(connection):
            warm_up()
        connection.send_bytes(pickle.dumps(("ready", os.getpid())))
        while True:
            while not connection.poll(_PARENT_CHECK_S):
                if (
                    os.getppid() != parent
                ):  # the main process is gone, but a fork of it holds the socket
                    return
            request = pickle.loads(connection.recv_bytes())
            connection.send_bytes(_answer(request, tasks, slots))
    except (EOFError, OSError):
        return


@contextmanager
def _signs_of_life(connection: Connection) -> Generator[None]:
    """Tell the main process now and then that this one is still starting, while it compiles."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(_BEAT_S):
            try:
                connection.send_bytes(pickle.dumps(("starting", os.getpid())))
            except OSError:
                os._exit(1)  # the main process is gone, and the compiler knows nothing of it

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _answer(request: Any, tasks: dict[int, SegmentTask], slots: list[Slot]) -> bytes:
    number, slot_number, task_key, task, places, free, size = request
    started = time.perf_counter()
    try:
        if task is not None:
            tasks[task_key] = task
        slot = slots[slot_number]
        arrays = {name: slot.view(place) for name, place in places.items()}
        image = arrays.pop("/image", None)
        segmented = segment_image(tasks[task_key], arrays, size, image)
        place = ArrayPlace(free, segmented.token_map.dtype.str, segmented.token_map.shape)
        slot.view(place)[...] = segmented.token_map
        seconds = time.perf_counter() - started
        return pickle.dumps(("done", number, seconds, replace(segmented, token_map=_NO_MAP), place))
    except Exception as error:
        error.add_note("in the segment worker:\n" + traceback.format_exc())
        return pickle.dumps(
            ("error", number, time.perf_counter() - started, _picklable(error), None)
        )


def _picklable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return SubtokError(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
    return error
