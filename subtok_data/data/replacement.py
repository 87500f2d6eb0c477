"""Replacement of bad samples: which sample is taken instead, and how that is recorded.

A sample that its dataset cannot decode is replaced there (of a stream: by the next good sample),
and one that fails in the main process by another sample of the dataset that it came from.
Everywhere else the next good sample of the batch is taken: for a text that cannot be encoded, for
rows that came from no dataset of ours, and when their dataset no longer exists.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakValueDictionary

import numpy as np

from subtok_data.arguments import check_choice
from subtok_data.errors import SampleError

__all__ = [
    "MAX_REPLACEMENTS",
    "Replacement",
    "ReplacementSource",
    "advise_replacement",
    "candidates",
    "check_on_error",
    "find_source",
    "next_good",
    "register_source",
]

MAX_REPLACEMENTS = 16
"""How many other samples are tried for one that cannot be used."""


@dataclass(frozen=True, slots=True)
class Replacement:
    """One sample that could not be used, and what stands in its place.

    Attributes
    ----------
    index : int
        Dataset index that was asked for, -1 if unknown.
    used : int
        Dataset index that was taken instead, -1 if unknown.
    reason : str
        Why.
    """

    index: int
    used: int
    reason: str

    @classmethod
    def of(cls, error: SampleError, used: int) -> Replacement:
        """Record the replacement of the sample that an error names.

        Examples
        --------
        >>> Replacement.of(SampleError("file ends early", index=7), used=3)
        Replacement(index=7, used=3, reason='sample 7 failed: file ends early')
        """
        return cls(-1 if error.index is None else error.index, used, str(error))


def check_on_error(on_error: str) -> str:
    """Refuse an unknown policy for bad samples."""
    check_choice("on_error", on_error, ("raise", "replace"))
    return on_error


def advise_replacement(error: SampleError) -> SampleError:
    """Add to the message of an error that another sample can be taken instead.

    Examples
    --------
    >>> print(advise_replacement(SampleError("file ends early", index=7)))
    sample 7 failed: file ends early; on_error="replace" takes another sample instead
    """
    error.args = (f'{error}; on_error="replace" takes another sample instead',)
    return error


def candidates(seed: int, index: int, num_samples: int) -> list[int]:
    """Draw the indices that are tried for a bad sample, in order, the same ones every time.

    Parameters
    ----------
    seed : int
        Of the dataset.
    index : int
        Of the bad sample; never among its candidates.
    num_samples : int
        Length of the dataset.

    Returns
    -------
    list of int
        At most :data:`MAX_REPLACEMENTS`.

    Examples
    --------
    >>> candidates(0, 2, num_samples=3) == candidates(0, 2, num_samples=3)
    True
    >>> set(candidates(0, 2, num_samples=3))
    {0, 1}
    """
    drawn = np.random.default_rng([seed, index]).integers(num_samples, size=MAX_REPLACEMENTS)
    return [other for other in drawn.tolist() if other != index]


def next_good(good: Sequence[bool], place: int) -> int | None:
    """Find the next good sample of a batch, cyclically; None if there is none.

    Parameters
    ----------
    good : sequence of bool
        Which samples can be used.
    place : int
        Of the bad sample.

    Examples
    --------
    >>> next_good([True, False, False], 1), next_good([False], 0)
    (0, None)
    """
    ring = [*range(place + 1, len(good)), *range(place)]
    return next((other for other in ring if good[other]), None)


class ReplacementSource(Protocol):
    """A dataset that offers other samples for one that failed after collation."""

    def get(self, index: int) -> Any:
        """Return a sample, or what stands in for it."""
        ...

    def replacements(self, index: int, reason: str) -> Iterator[Any]:
        """Yield good samples that may stand in, the same ones every time."""
        ...


_SOURCES: WeakValueDictionary[str, ReplacementSource] = WeakValueDictionary()
"""Datasets alive in this process, by the key that their samples carry."""


def register_source(source: ReplacementSource, key: str | None = None) -> str:
    """Make a dataset known by a key, under which its samples find it in the main process.

    Parameters
    ----------
    source : ReplacementSource
        Held weakly.
    key : str, optional
        The one it had where it was pickled. If that is taken here, the dataset is a copy beside
        its original and gets a key of its own.

    Returns
    -------
    str
    """
    if key is None or key in _SOURCES:
        key = uuid.uuid4().hex
    _SOURCES[key] = source
    return key


def find_source(key: str | None) -> ReplacementSource | None:
    """Return the dataset of a key; None if there is none in this process (any more)."""
    return None if key is None else _SOURCES.get(key)
