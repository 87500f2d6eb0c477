"""What is said where the system starts no further thread or process."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from subtok_data.errors import ConfigError

__all__ = ["name_process_limit"]


@contextmanager
def name_process_limit() -> Generator[None]:
    """Turn the refusal of another thread or process into an error that says how to go on.

    Raises
    ------
    ConfigError
        If the user may have no more of them.

    Examples
    --------
    >>> with name_process_limit():
    ...     raise BlockingIOError(11, "Resource temporarily unavailable")
    Traceback (most recent call last):
    ...
    subtok_data.errors.ConfigError: the system starts no further thread or process ...
    """
    try:
        yield
    except (BlockingIOError, RuntimeError) as error:
        # Python has no class of its own for a thread that does not start.
        if not isinstance(error, BlockingIOError) and "start new thread" not in str(error):
            raise
        raise ConfigError(
            f"the system starts no further thread or process ({error}): raise the limit "
            "(ulimit -u, docker run --pids-limit=…), or take fewer num_workers and "
            "segment_workers, or executor='inline' with num_workers=0"
        ) from error
