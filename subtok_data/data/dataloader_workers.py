"""DataLoader workers: how they start, that they end with the main process, and why one died.

Workers are forked where nothing forbids it, as those of a plain DataLoader on Linux are. Then a
script needs no main guard, and classes of notebook cells, lambdas and open files just work.
"""

from __future__ import annotations

import errno
import multiprocessing
import multiprocessing.connection
import os
import pickle
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch.utils.data import DataLoader

from subtok_data.data.process_limit import name_process_limit
from subtok_data.errors import ConfigError, WorkerCrashError

__all__ = [
    "WorkerDataLoader",
    "WorkerStart",
    "accelerator_in_use",
    "hold_forks",
    "name_crashes",
    "shared_epoch",
    "worker_start_method",
]

_ACCELERATORS = ("cuda", "xpu", "npu", "hpu", "mlu", "musa")
_WATCH_S = 1.0
_QUIET_S = 60.0
_DEEPEST = 6
_START_ADVICE = "It had only just started."


def accelerator_in_use() -> bool:
    """Return whether this process has opened an accelerator, which a forked child cannot use.

    Examples
    --------
    >>> accelerator_in_use() == torch.cuda.is_initialized()
    True
    """
    modules = (getattr(torch, name, None) for name in _ACCELERATORS)
    return any(getattr(module, "is_initialized", bool)() for module in modules)


def worker_start_method() -> str:
    """Return how workers are started now: ``"fork"``, ``"forkserver"`` or ``"spawn"``.

    Fork on Linux, unless an accelerator is in use: its driver does not survive a fork. Other
    systems fork unsafely or not at all.

    Examples
    --------
    >>> worker_start_method() in multiprocessing.get_all_start_methods()
    True
    """
    methods = multiprocessing.get_all_start_methods()
    if sys.platform == "linux" and not accelerator_in_use():
        return "fork"
    return "forkserver" if "forkserver" in methods else "spawn"


class WorkerDataLoader(DataLoader[Any]):
    """A DataLoader whose workers start by the method that suits, and end with the main process.

    Without ``multiprocessing_context`` the method is :func:`worker_start_method` at the moment they
    start. However the main process dies, its workers are gone a second later: torch alone notices
    only the death of the parent, which is the fork server where there is one.

    Raises
    ------
    ConfigError
        On iteration, if something that must be pickled for the workers cannot be (named), or if the
        system has no shared memory or temporary folder for them.

    Examples
    --------
    >>> list(WorkerDataLoader([1, 2, 3], batch_size=None))
    [1, 2, 3]
    """

    def _get_iterator(self) -> Any:
        if self.num_workers == 0:
            return super()._get_iterator()
        _require_shared_places()
        given, user_init = self.multiprocessing_context, self.worker_init_fn
        method = worker_start_method() if given is None else given.get_start_method()
        # Set only for the start: frameworks build loaders anew from what the user has set.
        if given is None:
            self.multiprocessing_context = method
        self.worker_init_fn = WorkerStart(user_init)
        try:
            with _quiet_start(), name_process_limit(), name_crashes(self, _START_ADVICE):
                return super()._get_iterator()
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            if method == "fork":
                raise
            self._name_unpicklable(error, method, user_init)
            raise
        except OSError as error:
            if error.errno == errno.ENOSPC:  # semaphores lie in /dev/shm too
                raise _no_shared_memory(error) from error
            raise
        finally:
            self.multiprocessing_context = given
            self.worker_init_fn = user_init

    def _name_unpicklable(self, error: Exception, method: str, user_init: Any) -> None:
        """Raise an error that names the object over which pickling failed, if one is found."""
        parts = (
            ("dataset", self.dataset),
            ("collate_fn", self.collate_fn),
            ("worker_init_fn", user_init),
        )
        for name, part in parts:
            if _pickling_fails(part, error):
                place, culprit = _culprit(name, part, error)
                why = (
                    f"multiprocessing_context={method!r}"
                    if self.multiprocessing_context is not None and not accelerator_in_use()
                    else f"by {method}, since an accelerator is in use or the system has no fork"
                )
                raise ConfigError(
                    f"{place} cannot be sent to the DataLoader workers: {culprit!r}: {error}. "
                    f"They are started {why}, which pickles it. Replace lambdas and local "
                    "functions by functions of a module, move classes of a notebook into a module, "
                    "and open files and connections in the worker, on first use; or take "
                    "num_workers=0"
                ) from error


def shared_epoch() -> torch.Tensor:
    """Return an epoch counter, 0-d int64, that worker processes see.

    It lies in shared memory, so that ``set_epoch`` reaches workers that live through several
    epochs. Where there is none, no worker starts that would have to see it.

    Examples
    --------
    >>> shared_epoch()
    tensor(0)
    """
    epoch = torch.zeros((), dtype=torch.int64)
    try:
        return epoch.share_memory_()
    except RuntimeError:
        return epoch


def _require_shared_places() -> None:
    try:
        torch.zeros(1).share_memory_()
    except RuntimeError as error:
        raise _no_shared_memory(error) from error
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:  # raised in a worker, it would be printed, and ours wait
        raise ConfigError(
            "DataLoader workers keep their sockets in a temporary folder, and none can be written "
            f"to: {error}. Free some space, set TMPDIR to another folder, or take num_workers=0"
        ) from error


def _no_shared_memory(cause: Exception) -> ConfigError:
    return ConfigError(
        "DataLoader workers hand their batches over in shared memory, and there is none: "
        f"{cause}. Mount a writable /dev/shm (docker run --shm-size=…; in Kubernetes an "
        "emptyDir of medium Memory), or take num_workers=0"
    )


def _pickling_fails(part: Any, error: Exception) -> bool:
    try:
        ForkingPickler.dumps(part)
    except Exception as own:
        return type(own) is type(error) and str(own) == str(error)
    return False


def _culprit(place: str, part: Any, error: Exception) -> tuple[str, Any]:
    """Follow attributes and items down to the object that does not pickle."""
    for _ in range(_DEEPEST):
        inside: list[tuple[str, Any]] = []
        if isinstance(part, dict):
            inside = [(f"{place}[{key!r}]", value) for key, value in part.items()]
        elif isinstance(part, (list, tuple)):
            inside = [(f"{place}[{at}]", value) for at, value in enumerate(part)]
        elif not callable(part) or not hasattr(part, "__qualname__"):
            inside = [(f"{place}.{name}", value) for name, value in _attributes(part).items()]
        for name, value in inside:
            if _pickling_fails(value, error):
                place, part = name, value
                break
        else:
            break
    return place, part


def _attributes(part: Any) -> dict[str, Any]:
    return dict(getattr(part, "__dict__", {}))


# --- inside a worker ------------------------------------------------------------------------------


@dataclass(frozen=True)
class WorkerStart:
    """A ``worker_init_fn`` that ends the worker with the main process, then calls the user's.

    Parameters
    ----------
    user_init : callable, optional
        Called with the number of the worker.

    Examples
    --------
    >>> loader = torch.utils.data.DataLoader([1, 2], worker_init_fn=WorkerStart())
    """

    user_init: Callable[[int], Any] | None = None

    def __call__(self, worker_id: int) -> None:
        """Run in the worker, before its first sample."""
        threading.Thread(target=_end_with_main, name="subtok-watch-main", daemon=True).start()
        if self.user_init is not None:
            self.user_init(worker_id)


def _end_with_main() -> None:
    """Wait until the main process is gone, then end this one, whatever it is doing."""
    main = multiprocessing.parent_process()
    if main is None or main.pid is None:
        return
    # The main process holds the other end of a pipe. A fork that it made besides, and that lives
    # on, would hold it too: so the process itself is looked at as well.
    is_parent = os.getppid() == main.pid
    while not multiprocessing.connection.wait([main.sentinel], timeout=_WATCH_S):
        if is_parent and os.getppid() != main.pid:
            break
        if not _exists(main.pid):
            break
    os._exit(1)


def _exists(pid: int) -> bool:
    if os.name != "posix":
        return True  # signal 0 would end the process there
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


# --- quiet while processes fork -------------------------------------------------------------------


class _ForkGate:
    """Lets workers fork only while no thread of ours is inside a model.

    A fork copies locks as they are, and not the threads that would release them.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holders = 0

    @contextmanager
    def hold(self) -> Generator[None]:
        with self._changed:
            self._holders += 1
        try:
            yield
        finally:
            with self._changed:
                self._holders -= 1
                self._changed.notify_all()

    @contextmanager
    def quiet(self) -> Generator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._holders == 0, timeout=_QUIET_S)
            yield


_GATE = _ForkGate()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_GATE.__init__)


@contextmanager
def hold_forks() -> Generator[None]:
    """Let no DataLoader worker of ours be forked within this context, by any thread.

    Examples
    --------
    >>> with hold_forks():
    ...     pass
    """
    with _GATE.hold():
        yield


@contextmanager
def _quiet_start() -> Generator[None]:
    with _GATE.quiet(), warnings.catch_warnings():
        # The error that follows says more.
        warnings.filterwarnings("ignore", "Got pickle error", UserWarning)
        # Python cannot know that no lock that a worker needs is held.
        warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
        yield


# --- death of a worker ----------------------------------------------------------------------------


@contextmanager
def name_crashes(iterator: Any, advice: str) -> Generator[None]:
    """Turn torch's complaint about a lost worker into :class:`WorkerCrashError`, with its cause.

    Parameters
    ----------
    iterator : iterator of a DataLoader
        Whose workers are looked at; anything else has none.
    advice : str
        What to do next, as whole sentences.
    """
    try:
        yield
    except RuntimeError as error:
        # Torch has no class for it. Errors that a worker passes on have other words in front.
        if not str(error).startswith("DataLoader"):
            raise
        raise WorkerCrashError(
            f"a DataLoader worker died or did not answer: {error}. {_cause(iterator)}{advice}"
        ) from error


def _cause(iterator: Any) -> str:
    codes = [process.exitcode for process in getattr(iterator, "_workers", ())]
    if -9 in codes:
        return (
            "It was killed from outside; if memory ran out (the kernel's log says so), use fewer "
            "num_workers. "
        )
    if any(code is not None and code > 0 for code in codes):
        return (
            "It ended with an error, which it has printed above. If it could not start: workers "
            "that are not forked import the script and unpickle the dataset, so the script needs "
            "`if __name__ == '__main__':` around what it runs, classes of a notebook must move "
            "into a module, and lambdas must become functions of a module. "
        )
    return ""
