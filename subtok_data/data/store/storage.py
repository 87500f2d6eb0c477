"""Where stored tokens lie: the few operations that a store needs, and a local folder.

Names are relative, with ``/``. Files appear whole or not at all, so that readers and other writers
never see half of one; a store on another system implements :class:`Storage`.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO, Any, Protocol

__all__ = ["LocalStorage", "Storage", "open_new", "writer_name"]

_UNFINISHED = ".part"
_AT_WORK_S = 3600
_TRIES = 20
_numbers = count()


class Storage(Protocol):
    """What a store asks of the system that holds its files."""

    def __str__(self) -> str:
        """Name the place, for messages."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is none."""
        ...

    def modified_ns(self, name: str) -> int | None:
        """When a file was written, in nanoseconds; None where the system cannot tell for sure."""
        ...

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Read a range of a file; fewer bytes than asked for where it ends.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        """
        ...

    def create(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """Open a new file for writing and reading, which gets its name when the context ends well.

        It replaces a file of that name; after an error nothing of it is left.
        """
        ...

    def names(self, folder: str) -> list[str]:
        """Sorted names of the files and folders in a folder; none if there is no folder."""
        ...

    def delete(self, name: str) -> None:
        """Delete a file, if there is one."""
        ...

    def local(self, name: str) -> Path:
        """Path of a local copy, for memory maps."""
        ...

    @property
    def scratch(self) -> Path | None:
        """Local folder for the rows of unfinished shards, which outlives a run; None for none."""
        ...

    def clean(self, folder: str) -> None:
        """Delete what interrupted writers have left in a folder, and nothing of those at work."""
        ...


def writer_name() -> str:
    """Name of this process among all writers of a store: its host and number.

    Examples
    --------
    >>> writer_name().endswith(str(os.getpid()))
    True
    """
    host = "".join(c if c.isalnum() else "_" for c in socket.gethostname())
    return f"{host}-{os.getpid()}"


class LocalStorage:
    """A folder of the local system, or of a network file system.

    Parameters
    ----------
    folder : str or Path
        Made when the first file is written.
    max_open : int, default 64
        Most files that stay open for reading.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     storage = LocalStorage(folder)
    ...     with storage.create("data/file") as file:
    ...         _ = file.write(b"content")
    ...     storage.read("data/file", 3), storage.names("data")
    (b'tent', ['file'])
    """

    def __init__(self, folder: str | Path, *, max_open: int = 64) -> None:
        self.folder = Path(folder)
        self.max_open = max_open
        self._open: OrderedDict[str, _File] = OrderedDict()
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return str(self.folder)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "max_open": self.max_open}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"], max_open=state["max_open"])

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is none. What another process has replaced is seen."""
        try:
            found = (self.folder / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        with self._lock:
            file = self._open.get(name)
            if file is not None and not os.path.samestat(found, os.fstat(file.number)):
                del self._open[name]
        return found.st_size

    def modified_ns(self, name: str) -> int | None:
        """When a file was written, in nanoseconds; None if there is none."""
        try:
            return (self.folder / name).stat().st_mtime_ns
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Read a range of a file."""
        # Taken out of the table at any time, a file is closed when the last reader lets go of it.
        file = self._opened(name)
        if length is None:
            length = os.fstat(file.number).st_size - start
        parts: list[bytes] = []
        while length > 0:  # one call gives 2 GB at most
            part = file.read(length, start)
            if not part:
                break
            parts.append(part)
            start += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _opened(self, name: str) -> _File:
        with self._lock:
            file = self._open.get(name)
            if file is None:
                file = self._open[name] = _File(self.folder / name)
                while len(self._open) > self.max_open:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(name)
            return file

    @contextmanager
    def create(self, name: str) -> Generator[IO[bytes]]:
        """Write a file aside, and rename it."""
        target = self.folder / name
        aside = target.with_name(f".{target.name}.{writer_name()}-{next(_numbers)}{_UNFINISHED}")
        try:
            with open_new(aside, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            aside.replace(target)
        except BaseException:
            with suppress(OSError):
                aside.unlink()
            raise
        with self._lock:
            self._open.pop(name, None)

    def names(self, folder: str) -> list[str]:
        """Sorted names of the files and folders in a folder."""
        try:
            return sorted(name for name in os.listdir(self.folder / folder) if name[0] != ".")
        except (FileNotFoundError, NotADirectoryError):
            return []

    def delete(self, name: str) -> None:
        """Delete a file, and its folders that are empty then."""
        with self._lock:
            self._open.pop(name, None)
        with suppress(FileNotFoundError):
            (self.folder / name).unlink()
        for parent in Path(name).parents[:-1]:
            with suppress(OSError):
                (self.folder / parent).rmdir()

    def local(self, name: str) -> Path:
        """Path of the file itself."""
        return self.folder / name

    @property
    def scratch(self) -> Path:
        """A folder beside the shards."""
        return self.folder / "progress"

    def clean(self, folder: str) -> None:
        """Delete unfinished files of processes that are gone; of other hosts after an hour."""
        try:
            entries = os.listdir(self.folder / folder)
        except (FileNotFoundError, NotADirectoryError):
            return
        host, _ = writer_name().rsplit("-", 1)
        for name in entries:
            if not name.startswith(".") or not name.endswith(_UNFINISHED):
                continue
            owner, _, process = name.removesuffix(_UNFINISHED).split(".")[-1].partition("-")
            path = self.folder / folder / name
            with suppress(OSError):
                at_work = _lives(process.split("-")[0]) if owner == host else _is_young(path)
                if not at_work:
                    path.unlink()


class _File:
    """A file that is open for reading, and closed with its last user."""

    def __init__(self, path: Path) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._lock = None if hasattr(os, "pread") else threading.Lock()

    def read(self, length: int, start: int) -> bytes:
        if self._lock is None:
            return os.pread(self.number, length, start)
        with self._lock:
            os.lseek(self.number, start, os.SEEK_SET)
            return os.read(self.number, length)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


def open_new(path: Path, mode: str) -> IO[Any]:
    """Open a file in a folder that is made where it is missing.

    Another process may delete the folder, empty as it is, at the same moment.
    """
    for _ in range(_TRIES):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            return path.open(mode)
    return path.open(mode)


def _is_young(path: Path) -> bool:
    return time.time() - path.stat().st_mtime < _AT_WORK_S


def _lives(process: str) -> bool:
    if not process.isdigit() or os.name != "posix":
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
