"""Exceptions of the library.

Every exception takes one message, so that it survives pickling between processes and the re-raise
of ``torch.utils.data`` workers, which rebuild an exception from a single string.
"""

from __future__ import annotations

import re

__all__ = [
    "ConfigError",
    "ImageError",
    "PromptError",
    "SampleError",
    "StoreError",
    "SubtokError",
    "WeightsError",
    "WorkerCrashError",
]

_TRACEBACK = "Traceback (most recent call last):"
_WRAPPED = re.compile(r"Caught (?P<kind>\w+) (?P<where>in .*)\.\nOriginal (?=Traceback )")
"""How ``torch._utils.ExceptionWrapper`` begins the message of what a worker raised."""
_PLACE = re.compile(
    r"sample(?: (?P<index>\d+))?(?: \('(?P<path>[^']*)'\))? failed(?: in (?P<stage>\w+))?: "
)


class SubtokError(Exception):
    """Base class of all errors that the library raises on purpose.

    One that torch hands over from a DataLoader worker has the message that it was raised with, and
    the traceback of the worker as its cause.

    Parameters
    ----------
    *args : object
        The message.

    Examples
    --------
    >>> from torch._utils import ExceptionWrapper
    >>> try:
    ...     raise ConfigError("size=0: give at least 1")
    ... except ConfigError:
    ...     wrapped = ExceptionWrapper(where="in DataLoader worker process 1")
    >>> try:
    ...     wrapped.reraise()
    ... except ConfigError as error:
    ...     print(error)
    ...     print(str(error.__cause__).splitlines()[0])
    size=0: give at least 1
    in DataLoader worker process 1: size=0: give at least 1
    """

    def __init__(self, *args: object) -> None:
        if len(args) == 1 and isinstance(args[0], str):
            own, cause = _from_worker(args[0])
            args = (own,)
            if cause is not None:
                self.__cause__ = cause
        super().__init__(*args)


class WorkerTracebackError(Exception):
    """Where an error came up in a DataLoader worker: the cause of the error in this process."""


def _from_worker(message: str) -> tuple[str, WorkerTracebackError | None]:
    """Find the message of an error in the text that torch makes of it and of its traceback."""
    wrapped = _WRAPPED.match(message)
    if wrapped is None:
        return message, None
    trace = message[wrapped.end() :].rstrip()
    # Errors that caused it come first, each with a traceback of its own.
    last = trace[max(0, trace.rfind(f"\n{_TRACEBACK}")) :]
    own = re.search(rf"^(?:[\w.]+\.)?{wrapped['kind']}(?:: |$)", last, re.MULTILINE)
    if own is None:
        return message, None
    text = last[own.end() :]
    return text, WorkerTracebackError(f"{wrapped['where']}: {text}\n{trace}")


class ConfigError(SubtokError, ValueError):
    """Options that cannot work, alone or together."""


class ImageError(SubtokError, ValueError):
    """A value that cannot become an RGB image: corrupt, empty, too large, of an unknown kind."""


class PromptError(SubtokError, ValueError):
    """Prompts that do not fit their image: outside it, empty, not finite, of another size."""


class WeightsError(SubtokError, OSError):
    """Model weights that are missing, of another architecture, or in a format that is refused."""


class StoreError(SubtokError, ValueError):
    """Stored tokens that are not what was written: damaged, truncated, or of another store."""


class WorkerCrashError(SubtokError, RuntimeError):
    """Worker processes died, or did not answer in time, more often than allowed."""


class SampleError(SubtokError, RuntimeError):
    """One sample of a dataset could not be turned into tokens.

    Parameters
    ----------
    message : str
        What failed and why; the place is prepended to it.
    index : int, optional
        Index of the sample in its dataset; below 0 it counts as unknown.
    path : str, optional
        File of the image, where it is known.
    stage : str, optional
        ``"decode"``, ``"collate"``, ``"infer"``, ``"segment"`` or ``"finish"``.

    Examples
    --------
    >>> error = SampleError("file ends early", index=7, path="cat.jpg", stage="decode")
    >>> str(error)
    "sample 7 ('cat.jpg') failed in decode: file ends early"
    >>> import pickle
    >>> pickle.loads(pickle.dumps(error)).index
    7
    """

    def __init__(
        self,
        message: str,
        *,
        index: int | None = None,
        path: str | None = None,
        stage: str = "",
    ) -> None:
        index = None if index is None or index < 0 else index
        self.index = index
        self.path = path
        self.stage = stage
        if index is None and path is None and not stage:
            super().__init__(message)
            self._read_place(str(self))
            return
        where = "sample" if index is None else f"sample {index}"
        if path is not None:
            where += f" ({path!r})"
        super().__init__(f"{where} failed{f' in {stage}' if stage else ''}: {message}")

    @classmethod
    def of(
        cls, error: BaseException, *, index: int | None, path: str | None, stage: str
    ) -> SampleError:
        """Wrap an error with the name of its sample; a named error stays as it is."""
        if isinstance(error, cls) and error.index is not None:
            return error
        cause = str(error) if isinstance(error, SubtokError) else f"{type(error).__name__}: {error}"
        if isinstance(error, cls):
            cause = _PLACE.sub("", cause, count=1)  # the place without an index, given in full now
        named = cls(cause, index=index, path=path, stage=stage)
        named.__cause__ = error
        return named

    def _read_place(self, message: str) -> None:
        """Parse the place from the finished message, which is all that torch's workers pass on."""
        found = _PLACE.search(message)
        if found is not None:
            self.index = None if found["index"] is None else int(found["index"])
            self.path = found["path"]
            self.stage = found["stage"] or ""

    def __reduce__(self) -> tuple[object, ...]:
        # Rebuild from the finished message; the attributes travel as state.
        return (type(self), (self.args[0],), self.__dict__)
