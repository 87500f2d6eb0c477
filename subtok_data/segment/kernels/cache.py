"""Machine code on disk: checked when it is read, and compiled by one process at a time.

numba's own cache keeps an index per function. It raises when a file is damaged, two versions of a
package under one path overwrite each other's entries, and processes that compile at the same time
may swap them. Here each signature of each version has a file of its own, with its checksum.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import stat
import tempfile
import threading
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import numba
from numba.core.compiler_lock import global_compiler_lock
from numba.core.serialize import dumps

__all__ = ["CodeFiles", "compile_in_turn", "compile_seconds", "private_temporary_folder"]

_DIGEST_BYTES = 32
_WAIT_S = 300.0
_POLL_S = 0.1
_SAID_S = 600.0
_log = logging.getLogger(__name__)


class CodeFiles:
    """Files of one kernel, in place of numba's ``IndexDataCacheFile``.

    Parameters
    ----------
    folder : Path
        Where they lie.
    name : str
        First part of their names.
    stamp : object
        What the code depends on beside its signature; part of the names too, by its ``repr``.
    """

    def __init__(self, folder: Path, name: str, stamp: object) -> None:
        self._folder = folder
        self._name = name
        self._stamp = stamp

    def _file(self, key: object) -> Path:
        whole = repr((key, self._stamp, numba.__version__))
        return self._folder / f"{self._name}.{hashlib.sha256(whole.encode()).hexdigest()[:24]}.nbc"

    def load(self, key: object) -> Any:
        """Return what was saved under a key; None if that is nothing, or damaged.

        Before it is None, the process waits for its turn to compile: see :func:`compile_in_turn`.
        """
        found = self._read(key)
        if found is None and _TURN.take(self._folder):
            found = self._read(key)
            if found is None:
                _TURN.announce(self._folder)
        return found

    def _read(self, key: object) -> Any:
        file = self._file(key)
        try:
            data = file.read_bytes()
        except OSError:
            return None
        payload = data[_DIGEST_BYTES:]
        if hashlib.sha256(payload).digest() != data[:_DIGEST_BYTES]:
            _log.warning("%s is damaged: compiled anew", file)
            return None
        return pickle.loads(payload)

    def save(self, key: object, data: object) -> None:
        """Write a file, whole or not at all; code that cannot be written is only not cached."""
        payload = dumps(data)
        file = self._file(key)
        unfinished = file.with_suffix(f".{uuid.uuid4().hex[:16]}.tmp")
        try:
            unfinished.write_bytes(hashlib.sha256(payload).digest() + payload)
            os.replace(unfinished, file)
        except OSError as error:
            _log.warning("%s is not cached: %s", self._name, error)
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)

    def flush(self) -> None:
        """Remove the files of this kernel, of all versions."""
        for file in self._folder.glob(f"{self._name}.*.nbc"):
            file.unlink(missing_ok=True)


def private_temporary_folder() -> Path | None:
    """Return a folder for code that only this user can write; None if there is none.

    For systems where neither the package nor the home can be written. Code that others could have
    put there is never run.
    """
    if not hasattr(os, "getuid"):
        return None
    folder = Path(tempfile.gettempdir()) / f"subtok-data-kernels-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    is_mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return folder if is_mine and not found.st_mode & 0o077 else None


class _Turn:
    """The turn of this process to compile: a locked file, unlocked by the system if it dies.

    Only touched by the thread that holds numba's own lock.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.seconds = 0.0
        self._descriptor: int | None = None

    def take(self, folder: Path) -> bool:
        """Wait for the turn in a folder; False if this process has it already.

        Nobody waits for ever: where locks do not work, or take longer than some minutes, everybody
        compiles.
        """
        if not self.depth or self._descriptor is not None:
            return False
        try:
            import fcntl

            self._descriptor = os.open(folder / "compiling.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except (ImportError, OSError):
            return False
        deadline = time.monotonic() + _WAIT_S
        while time.monotonic() < deadline:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_POLL_S)
            except OSError:
                break  # a file system without locks
        return True

    def announce(self, folder: Path) -> None:
        """Say that this process compiles, unless it or another one said so minutes ago."""
        if self._descriptor is None:
            return
        now = time.time()
        try:
            file = os.fstat(self._descriptor)
            if file.st_size and now - file.st_mtime < _SAID_S:
                return
            os.pwrite(self._descriptor, b"1", 0)  # which also sets the time
        except OSError:  # a file system that is full: rather twice than never
            pass
        # A warning, since it explains a silence of many seconds and nobody has set up logging.
        _log.warning(
            "compiling the kernels that segment images: some ten seconds, once per machine; "
            "their code is kept in %s",
            folder,
        )

    def give_back(self) -> None:
        """Let the next process compile."""
        if self._descriptor is None:
            return
        import fcntl

        with suppress(OSError):  # a child forked meanwhile has the file open too
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        os.close(self._descriptor)
        self._descriptor = None


_TURN = _Turn()


@contextmanager
def compile_in_turn() -> Generator[None]:
    """Compile a kernel that is not on disk while other processes wait, and then find it there.

    Kernels that it calls are compiled in the same turn.
    """
    asked = time.perf_counter()
    is_outermost = False
    try:
        with cast("Any", global_compiler_lock):
            began = time.perf_counter()
            is_outermost = not _TURN.depth
            _TURN.depth += 1
            try:
                yield
            finally:
                _TURN.depth -= 1
                if not _TURN.depth:
                    _TURN.give_back()
                    _TURN.seconds += time.perf_counter() - began
    finally:
        if is_outermost:
            _OWN.seconds += time.perf_counter() - asked


class _Own(threading.local):
    seconds = 0.0


_OWN = _Own()


def compile_seconds(*, of_thread: bool = False) -> float:
    """Tell how long this process compiled kernels so far, or read their code from the disk.

    Parameters
    ----------
    of_thread : bool, optional
        How long the calling thread did, or waited for another one that did.

    Examples
    --------
    >>> compile_seconds() >= 0
    True
    """
    return _OWN.seconds if of_thread else _TURN.seconds
