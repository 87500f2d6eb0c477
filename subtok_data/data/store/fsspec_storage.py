"""Stores on S3, Google Cloud Storage, the Hugging Face hub, or any file system of fsspec."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import IO, Any, TypeVar

from subtok_data.data.store.storage import LocalStorage, Storage, open_new, writer_name
from subtok_data.errors import ConfigError, StoreError

__all__ = ["FsspecStorage", "open_storage"]

_T = TypeVar("_T")

_ONE_PUT = frozenset({"s3", "s3a", "gs", "gcs", "hf", "abfs", "abfss", "az", "oss"})
"""Object stores: a file is there when its upload is complete, and not before."""

_PACKAGES = {"s3": "'subtok-data[s3]'", "s3a": "'subtok-data[s3]'", "gs": "gcsfs", "gcs": "gcsfs"}

_LASTING = frozenset({errno.EINVAL, errno.EPERM, errno.EROFS, errno.ENOSYS})
_LASTING_TYPES = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ImportError,
    NotImplementedError,
)
_LASTING_NAMES = ("Credential", "ParamValidation", "ProfileNotFound", "SSOToken", "RefreshError")
_RETRIED_STATUS = frozenset({408, 425, 429})

# What tells one version of a file from the next, under the names that file systems give it.
_STAMPS = ("ETag", "etag", "md5Hash", "blob_id", "generation", "LastModified", "mtime", "created")

_MOST_WAIT = 16.0
_AT_WORK_S = 3600
_numbers = count()


def open_storage(place: str | Path | Storage, *, cached: bool = True) -> Storage:
    """Open the place that a folder or a URI names.

    Parameters
    ----------
    place : str, Path or Storage
        A folder, or ``s3://``, ``gs://``, ``hf://datasets/USER/NAME`` … A :class:`Storage` is
        returned as it is.
    cached : bool, optional
        Whether shards are fetched to a local cache when rows of them are read.

    Raises
    ------
    ConfigError
        If it is the address of a web page, or of a file system that is unknown or not installed.

    Examples
    --------
    >>> str(open_storage("tokens")), str(open_storage("memory://tokens"))
    ('tokens', 'memory://tokens')
    """
    if not isinstance(place, str | Path):
        return place
    scheme, separator, path = str(place).partition("://")
    if isinstance(place, Path) or not separator:
        return LocalStorage(place)
    if scheme in ("file", "local"):
        return LocalStorage(path)
    if scheme in ("http", "https"):
        raise ConfigError(
            f"{str(place)!r} is the address of a web page, where files can be neither listed nor "
            f"written: give {_instead_of_address(path)}"
        )
    return FsspecStorage(str(place), cached=cached)


def _instead_of_address(path: str) -> str:
    host, _, rest = path.partition("/")
    names = rest.split("/")
    if host.endswith("huggingface.co") and names[0] == "datasets" and len(names) > 2:
        return f"'hf://datasets/{names[1]}/{names[2]}'"
    return "a folder, s3://BUCKET/PATH, gs://BUCKET/PATH or hf://datasets/USER/NAME"


class FsspecStorage:
    """A place on a file system of `fsspec <https://filesystem-spec.readthedocs.io>`_.

    What fails for the moment (a server error, a timeout, a broken connection) is tried again, with
    waits that double; what lasts, or fails too often, is a :class:`~subtok_data.errors.StoreError`
    that names the file, the operation and the cause. Uploads appear whole or not at all.

    Parameters
    ----------
    uri : str
        ``s3://BUCKET/PATH``, ``gs://BUCKET/PATH``, ``hf://datasets/USER/NAME``, ``memory://PATH``.
    cached : bool, optional
        Whether files of which ranges are read are fetched whole, to a local cache; if not, each
        range is a request.
    cache_dir : str or Path, optional
        Local folder of the cache, shared by all processes of the machine; by default
        ``$SUBTOK_CACHE``, else ``~/.cache/subtok_data``.
    cache_gb : float, optional
        Most gigabytes that fetched files take there: the ones unused for longest are deleted. By
        default ``$SUBTOK_CACHE_GB``, else 50.
    attempts : int, default 6
        How often an operation is tried.
    wait : float, default 0.5
        Seconds before the second attempt; twice as long before each further one, up to 16.
    options : mapping, optional
        Of the file system: keys, endpoint, region. What is not given comes from where its own tools
        take it: the environment, their configuration files.

    Raises
    ------
    ConfigError
        If the file system is unknown, or its package is not installed.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as cache:
    ...     storage = FsspecStorage("memory://example", cache_dir=cache)
    ...     with storage.create("data/file") as file:
    ...         _ = file.write(b"content")
    ...     storage.read("data/file", 3, 4), storage.size("data/file"), storage.names("data")
    (b'tent', 7, ['file'])
    """

    def __init__(
        self,
        uri: str,
        *,
        cached: bool = True,
        cache_dir: str | Path | None = None,
        cache_gb: float | None = None,
        attempts: int = 6,
        wait: float = 0.5,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.uri = uri.rstrip("/")
        self.cached = cached
        self.cache_dir = Path(cache_dir or os.environ.get("SUBTOK_CACHE") or _default_cache())
        self.cache_gb = (
            float(os.environ.get("SUBTOK_CACHE_GB", "50")) if cache_gb is None else cache_gb
        )
        self.attempts = attempts
        self.wait = wait
        self.options = dict(options or {})
        self._scheme = self.uri.partition("://")[0]
        self._process: _Process | None = None
        self._open()

    def __str__(self) -> str:
        return self.uri

    def __repr__(self) -> str:
        return f"FsspecStorage({self.uri!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": None}

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is none."""
        process = self._open()
        try:
            found = self._try("look up", name, self._info)
        except FileNotFoundError:
            self._refuse_missing_root()
            return None
        process.copies_of[name] = self._copy_name(name, found)
        return int(found["size"])

    def modified_ns(self, name: str) -> None:
        """None: times are those of the server. What such systems store they check themselves."""

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Read a range of a file."""
        if start == 0 and length is None:
            return self._try("read", name, lambda path: self._open().system.cat_file(path))
        if self.cached:
            while True:
                copy = self._fetched(name)
                try:
                    return self._open().copies.read(copy, start, length)
                except FileNotFoundError:  # another process made room
                    continue
        end = None if length is None else start + length
        if length == 0:
            return b""
        return self._try(
            "read", name, lambda path: self._open().system.cat_file(path, start=start, end=end)
        )

    @contextmanager
    def create(self, name: str) -> Generator[IO[bytes]]:
        """Write a file locally, and upload it when it is complete."""
        process = self._open()
        # Under a name by which `clean` sees whether its writer is gone.
        own = f".upload.{writer_name()}-{next(_numbers)}.part"
        source = process.copies.local("uploads") / own
        try:
            with open_new(source, "w+b") as file:
                yield file
            try:
                self._try("write", name, lambda path: self._upload(source, path))
            except FileNotFoundError as error:
                self._refuse_missing_root()
                raise self._failed("write", name, error, 1) from error
        finally:
            source.unlink(missing_ok=True)
        process.copies_of.pop(name, None)

    def names(self, folder: str) -> list[str]:
        """Sorted names of the files and folders in a folder."""

        def listed(path: str) -> list[str]:
            system = self._open().system
            system.invalidate_cache(path)
            return system.ls(path, detail=False)

        try:
            found = self._try("list", folder, listed)
        except (FileNotFoundError, NotADirectoryError):
            return []
        names = {path.rstrip("/").rsplit("/", 1)[-1] for path in found}
        return sorted(name for name in names if not name.startswith("."))

    def delete(self, name: str) -> None:
        """Delete a file, if there is one."""
        self._open().copies_of.pop(name, None)
        with suppress(FileNotFoundError):
            self._try("delete", name, lambda path: self._open().system.rm_file(path))

    def local(self, name: str) -> Path:
        """Path of a local copy, fetched if need be."""
        return self._open().copies.local(self._fetched(name))

    @property
    def scratch(self) -> Path:
        """A folder of the cache: an interrupted run goes on where it was, on the same machine."""
        return self.cache_dir / "progress" / _digest(self.uri)

    def clean(self, folder: str) -> None:
        """Delete what uploads have left that were cut off: of the system, after an hour."""
        self._open().copies.clean("uploads")
        if self._scheme in _ONE_PUT:
            return
        system = self._open().system
        oldest = datetime.now(UTC) - timedelta(seconds=_AT_WORK_S)
        with suppress(FileNotFoundError, NotADirectoryError):
            for path in self._try("list", folder, lambda path: system.ls(path, detail=False)):
                if path.rsplit("/", 1)[-1].startswith(_ASIDE):
                    with suppress(OSError, NotImplementedError):
                        if system.modified(path) < oldest:
                            system.rm_file(path)

    # --- the local copies -----------------------------------------------------------------------

    def _fetched(self, name: str) -> str:
        """Name of the local copy of a file, which is fetched if there is none."""
        process = self._open()
        with process.lock:
            copy = process.copies_of.get(name)
            if copy is not None and process.copies.size(copy) is not None:
                return copy
            found = self._try("look up", name, self._info)
            copy = process.copies_of[name] = self._copy_name(name, found)
            if process.copies.size(copy) != found["size"]:
                self._try("fetch", name, lambda path: self._fetch(path, copy, found["size"]))
                self._make_room(copy)
            with suppress(OSError):
                os.utime(process.copies.local(copy))  # the last to be deleted
            return copy

    def _fetch(self, path: str, copy: str, size: int) -> None:
        process = self._open()
        with process.copies.create(copy) as file:
            process.system.get_file(path, file.name)
            got = Path(file.name).stat().st_size
            if got != size:
                raise ConnectionError(f"{got} of {size} bytes arrived")

    def _make_room(self, kept: str) -> None:
        """Delete the copies that were not used for longest."""
        folder = self._open().copies.local("files")
        entries: list[tuple[float, int, str]] = []
        with suppress(OSError), os.scandir(folder) as found:
            for entry in found:
                with suppress(OSError):
                    state = entry.stat()
                    entries.append((state.st_mtime, state.st_size, entry.name))
        total = sum(size for _, size, _ in entries)
        for _, size, name in sorted(entries):
            if total <= self.cache_gb * 1e9:
                break
            if f"files/{name}" != kept:
                with suppress(OSError):
                    (folder / name).unlink()
                total -= size

    def _copy_name(self, name: str, found: Mapping[str, Any]) -> str:
        stamp = [str(found.get(key)) for key in ("size", *_STAMPS)]
        return f"files/{_digest(self.uri, name, *stamp)}"

    # --- the file system ------------------------------------------------------------------------

    def _open(self) -> _Process:
        """What this process has open: connections and threads do not outlive a fork."""
        if self._process is None or self._process.number != os.getpid():
            self._process = _Process(self._connect(), LocalStorage(self.cache_dir))
        return self._process

    def _connect(self) -> Any:
        import fsspec

        options: dict[str, Any] = {"use_listings_cache": False}
        if self._scheme in ("s3", "s3a"):
            # One policy of retries, ours, instead of three inside one another.
            options["config_kwargs"] = {"retries": {"total_max_attempts": 1}, "read_timeout": 60}
        try:
            system = fsspec.filesystem(self._scheme, **{**options, **self.options})
        except ImportError as error:
            package = _PACKAGES.get(self._scheme)
            remedy = f": pip install {package}" if package else ""
            raise ConfigError(f"{self.uri!r}: {error}{remedy}") from error
        except ValueError as error:
            raise ConfigError(
                f"{self.uri!r}: {error}. Give a folder, or s3://, gs://, hf://datasets/USER/NAME"
            ) from error
        if self._scheme in ("s3", "s3a"):
            system.retries = 1
        return system

    def _path(self, name: str) -> str:
        return self._open().system._strip_protocol(f"{self.uri}/{name}".rstrip("/"))

    def _info(self, path: str) -> Mapping[str, Any]:
        system = self._open().system
        system.invalidate_cache(path)
        found = system.info(path)
        if found.get("type") == "directory":
            raise FileNotFoundError(path)
        return found

    def _upload(self, source: Path, path: str) -> None:
        system = self._open().system
        if self._scheme in _ONE_PUT:
            system.put_file(str(source), path)
            return
        folder, _, name = path.rpartition("/")
        aside = f"{folder}/{_ASIDE}{name}.{writer_name()}"
        try:
            system.put_file(str(source), aside)
            system.mv(aside, path)
        except BaseException:
            with suppress(Exception):
                system.rm_file(aside)
            raise

    def _refuse_missing_root(self) -> None:
        """Tell a bucket that does not exist from a file in it."""
        process = self._open()
        if process.root_exists or self._scheme == "memory":
            return
        parts = self._path("").split("/")
        root = "/".join(parts[:3] if self._scheme == "hf" else parts[:1])
        try:
            exists = bool(process.system.exists(root))
        except Exception:  # it may be there and not be shown
            exists = True
        if not exists:
            kind = "repository" if self._scheme == "hf" else "bucket"
            raise StoreError(
                f"{self.uri!r}: there is no {kind} {root!r}: make it, or correct the name"
            )
        process.root_exists = True

    def _try(self, operation: str, name: str, call: Callable[[str], _T]) -> _T:
        """Do something with a file, again and again while it fails for the moment.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        StoreError
            It failed for good.
        """
        path = self._path(name)
        for attempt in range(1, self.attempts + 1):
            try:
                return call(path)
            except Exception as error:
                local = self._is_local(error)
                if isinstance(error, FileNotFoundError | NotADirectoryError) and not local:
                    raise
                if local or _lasts(error) or attempt == self.attempts:
                    raise self._failed(operation, name, error, attempt) from error
            seconds = min(self.wait * 2 ** (attempt - 1), _MOST_WAIT)
            time.sleep(seconds * random.uniform(0.5, 1.5))
        raise AssertionError("unreachable")

    def _failed(self, operation: str, name: str, error: Exception, attempts: int) -> StoreError:
        cause = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        times = f" after {attempts} attempts" if attempts > 1 else ""
        remedy = _LOCAL_REMEDY if self._is_local(error) else _remedy(error)
        return StoreError(
            f"{f'{self.uri}/{name}'.rstrip('/')!r}: cannot {operation} it{times}: {cause}. {remedy}"
        )

    def _is_local(self, error: Exception) -> bool:
        """Whether the local cache is at fault, not the file system that the store is on."""
        path = getattr(error, "filename", None)
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        return full or (isinstance(path, str) and path.startswith(str(self.cache_dir)))


@dataclass
class _Process:
    """What one process has open of a storage."""

    system: Any
    copies: LocalStorage
    number: int = field(default_factory=os.getpid)
    lock: Any = field(default_factory=threading.Lock)
    copies_of: dict[str, str] = field(default_factory=dict[str, str])
    root_exists: bool = False


_LOCAL_REMEDY = (
    "Make room in the local cache and let this process write there, or name another folder with "
    "SUBTOK_CACHE"
)
_ASIDE = ".unfinished-"


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "subtok_data"


def _digest(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:32]


def _lasts(error: Exception) -> bool:
    """Whether an operation would fail again in the same way."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is None:
        status = getattr(error, "status", getattr(error, "code", None))
    if isinstance(status, int) and 400 <= status < 600:
        return status < 500 and status not in _RETRIED_STATUS
    if isinstance(error, _LASTING_TYPES):
        return True
    if isinstance(error, OSError) and error.errno in _LASTING:
        return True
    return any(word in type(error).__name__ for word in _LASTING_NAMES)


def _remedy(error: Exception) -> str:
    words = type(error).__name__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, PermissionError) or "Credential" in words or status in (401, 403):
        return "Give this process credentials that may do that, or correct the name"
    if _lasts(error):
        return "Correct the address or its options"
    return "The server or the network is at fault: what is stored is kept, run again to go on"
