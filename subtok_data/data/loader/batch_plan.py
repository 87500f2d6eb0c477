"""``BatchPlan``: which samples may meet in a batch, from their lengths."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtok_data.arguments import check_count, check_flag, describe
from subtok_data.errors import ConfigError

__all__ = ["BatchPlan"]

_HASHED_ROWS = 1 << 20
"""Lengths that are converted at once: those of a large data set stay in their file."""


@dataclass(frozen=True)
class BatchPlan:
    """Group samples by length, where their lengths are known.

    Token counts are known only after segmentation, so grouping by length needs a column from an
    earlier pass: ``StoredTokens(folder).lengths()``, or a column of your own.

    Parameters
    ----------
    lengths : (samples,) array or sequence of int, optional
        Length of each sample, 0 or more, in any unit. A memory-mapped array stays in its file and
        is read a window at a time.
    by_length : bool, optional
        Put samples of similar length in one batch, to save padding.
    max_batch_length : int, optional
        Give batches as many samples as fit: number of samples × longest, padding counted. Then
        ``batch_size`` is only an upper bound.
    shard_rows : int, optional
        Neighbouring rows that stay in one window when more than a million (2²⁰) rows are shuffled:
        shards of so many rows come in any order, and the rows of as many shards as make a million
        are mixed with each other. Smaller shards mix rows of a sorted data set better, larger ones
        are read with fewer jumps: the rows of a shard of the store, where tokens are stored.

    Raises
    ------
    ConfigError
        If a grouping is requested without lengths, or a length is no whole number of 0 or more, or
        above ``max_batch_length``.

    Examples
    --------
    >>> from subtok_data.data import SubobjectBatchSampler
    >>> plan = BatchPlan([9, 2, 8, 1, 2], by_length=True)
    >>> list(SubobjectBatchSampler(5, 2, plan=plan))
    [[0, 2], [1, 4], [3]]
    """

    lengths: Sequence[int] | NDArray[Any] | None = None
    by_length: bool = False
    max_batch_length: int | None = None
    shard_rows: int = 1024

    def __post_init__(self) -> None:
        check_flag("by_length", self.by_length)
        check_count("max_batch_length", self.max_batch_length)
        check_count("shard_rows", self.shard_rows, optional=False, unit="rows")
        if self.lengths is None:
            if self.is_grouped:
                raise ConfigError(
                    "batches by length need lengths: token counts are known only after "
                    "segmentation. Store tokens once (`subtok tokenize`) and give "
                    "lengths=StoredTokens(folder).lengths(), or give a length column of your own"
                )
            return
        lengths = np.asarray(self.lengths)
        if lengths.ndim != 1 or (lengths.size and lengths.dtype.kind not in "iu"):
            raise ConfigError(
                f"lengths is {describe(self.lengths)}: give one whole number per sample"
            )
        # Converted once: a list would be again for each window.
        object.__setattr__(self, "lengths", lengths if lengths.size else lengths.astype(np.int64))
        shortest, longest = int(lengths.min(initial=0)), int(lengths.max(initial=0))
        if shortest < 0:
            place = int(lengths.argmin())
            raise ConfigError(f"lengths[{place}] is {shortest}: give lengths of 0 or more")
        if self.max_batch_length is not None and longest > self.max_batch_length:
            raise ConfigError(
                f"max_batch_length={self.max_batch_length} is below the longest sample "
                f"({longest}): raise it, or tokenize with max_tokens"
            )

    @property
    def is_grouped(self) -> bool:
        """Whether lengths decide which samples meet."""
        return self.by_length or self.max_batch_length is not None

    @cached_property
    def fingerprint(self) -> str | None:
        """Hash of the lengths, equal for any integer type; None where they decide nothing."""
        if not self.is_grouped:
            return None
        lengths = np.asarray(self.lengths)
        kind = np.min_scalar_type(int(lengths.max(initial=0))).newbyteorder("<")
        hashed = hashlib.sha256(kind.str.encode())
        for at in range(0, lengths.size, _HASHED_ROWS):
            hashed.update(lengths[at : at + _HASHED_ROWS].astype(kind).data)
        return f"sha256 {hashed.hexdigest()[:12]}"
