"""DataLoader workers that die or hang, as an error of ours."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from subtok_data.errors import WorkerCrashError

__all__ = ["name_crashes"]


@contextmanager
def name_crashes(advice: str) -> Generator[None]:
    """Turn torch's complaint about a lost worker into :class:`WorkerCrashError`.

    Parameters
    ----------
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
            f"a DataLoader worker died or did not answer: {error}. {advice}"
        ) from error
