"""The batches of an epoch, of all ranks, a window of rows at a time.

An epoch is never held as a whole: rows are shuffled in windows of shards, and each window is
grouped by itself, so that a hundred million rows take the memory of one million. What does not fill
a step of all ranks goes on with the next window.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtok_data.data.loader.batch_plan import BatchPlan

__all__ = ["EpochBatches", "RowOrder", "WindowBatches", "plan_epoch"]

_WINDOW_ROWS = 1 << 20
"""Rows shuffled together: enough to mix them, few enough to hold, and to group in milliseconds."""

_SORTED_BATCHES = 50
"""Batches of each rank sorted by length together: long enough to help, short enough to mix."""


class RowOrder:
    """Order of the rows of an epoch, in windows of shards.

    Up to a million rows are shuffled as a whole. Of more, shards of neighbouring rows are shuffled,
    and then the rows of each window of shards: so only the numbers of the shards are permuted at
    once, and a window reads whole shards.

    Parameters
    ----------
    rows : int
        Rows of the data set.
    shard_rows : int
        Rows of each shard but the last.
    seed : (int, int) or None
        Seed and epoch; None keeps the rows as they are.
    """

    def __init__(self, rows: int, shard_rows: int, seed: tuple[int, int] | None) -> None:
        self.rows = rows
        self.seed = seed
        self._shard_rows = shard_rows
        self._per_window = max(1, _WINDOW_ROWS // shard_rows)
        self._shards = np.arange(-(-rows // shard_rows))
        self.num_windows = -(-len(self._shards) // self._per_window)
        if seed is not None and self.num_windows > 1:
            np.random.default_rng(seed).shuffle(self._shards)
        sizes = np.minimum(rows - self._shards * shard_rows, shard_rows)
        ends = np.cumsum(sizes)[self._per_window - 1 :: self._per_window]
        self._ends: list[int] = [*ends.tolist(), rows][: self.num_windows]

    def end(self, window: int) -> int:
        """Rows up to the end of a window; 0 before the first, number -1."""
        return 0 if window < 0 else self._ends[window]

    def window(self, window: int) -> tuple[NDArray[np.int64], np.random.Generator]:
        """Return the rows of a window in their order, and the generator for further choices."""
        shards = self._shards[window * self._per_window : (window + 1) * self._per_window]
        rows = (shards[:, None] * self._shard_rows + np.arange(self._shard_rows)).reshape(-1)
        rows = rows[rows < self.rows]
        # A lone window is the order of the whole epoch: its seed is that of the epoch.
        own = () if self.num_windows == 1 else (window + 1,)
        random = np.random.default_rng((*(self.seed or ()), *own))
        if self.seed is not None:
            random.shuffle(rows)
        return rows, random

    def take(self, begin: int, end: int) -> NDArray[np.int64]:
        """Return the rows at places ``begin`` to ``end``; after the last, the order begins anew."""
        found = [np.empty(0, np.int64)]
        while begin < end:
            place = begin % self.rows
            window = next(n for n in range(self.num_windows) if self.end(n) > place)
            rows, _ = self.window(window)
            found.append(rows[place - self.end(window - 1) :][: end - begin])
            begin += len(found[-1])
        return np.concatenate(found)


@dataclass(frozen=True)
class WindowBatches:
    """Batches that a window of rows gives, of all ranks.

    Attributes
    ----------
    rows : (R,) int64
        Rows of the batches, one batch after the other.
    bounds : (batches + 1,) int64
        Where in ``rows`` each batch begins, and where the last one ends.
    steps : (S,) int64
        Order of the steps. Step i is one batch of each rank, of which rank 0 has batch i · ranks.
    """

    rows: NDArray[np.int64]
    bounds: NDArray[np.int64]
    steps: NDArray[np.int64]

    def of_rank(self, rank: int, world: int) -> Iterator[list[int]]:
        """Yield the batches of a rank."""
        numbers = self.steps * world + rank
        begins, ends = self.bounds[numbers], self.bounds[numbers + 1]
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            yield self.rows[begin:end].tolist()


class EpochBatches(ABC):
    """Form the batches of an epoch, equally many on every rank.

    Parameters
    ----------
    order : RowOrder
        The rows.
    plan : BatchPlan
        Their grouping.
    batch_size : int
        Rows of a batch, at most.
    drop_last : bool
        Leave out what does not fill a batch on every rank.
    world : int
        Number of ranks.
    """

    def __init__(
        self, order: RowOrder, plan: BatchPlan, batch_size: int, *, drop_last: bool, world: int
    ) -> None:
        self._order = order
        self._plan = plan
        self._lengths: NDArray[Any] = np.asarray(() if plan.lengths is None else plan.lengths)
        self._batch_size = batch_size
        self._drop_last = drop_last
        self._world = world
        self._step = batch_size * world

    @abstractmethod
    def __len__(self) -> int:
        """Batches of each rank."""

    def of_rank(self, rank: int, start: int = 0) -> Iterator[list[int]]:
        """Yield the batches of a rank, from its batch number ``start`` on."""
        for window, skipped in self._windows_from(start):
            yield from islice(window.of_rank(rank, self._world), skipped, None)

    def windows(self) -> Iterator[WindowBatches]:
        """Yield the batches of all ranks, window by window."""
        return (window for window, _ in self._windows_from(0))

    def _windows_from(self, start: int) -> Iterator[tuple[WindowBatches, int]]:
        """Windows from the one with step ``start`` on, and the steps of each that lie before it."""
        if start >= len(self):
            return
        first, skipped, carry = self._find(start)
        for number in range(first, self._order.num_windows):
            window, carry = self._window(number, carry)
            yield window, skipped
            skipped = max(0, skipped - len(window.steps))

    def _window(
        self, number: int, carry: NDArray[np.int64]
    ) -> tuple[WindowBatches, NDArray[np.int64]]:
        """Batches of a window and of what the one before left over; and what is left over now."""
        rows, random = self._order.window(number)
        is_last = number == self._order.num_windows - 1
        rows, bounds, carry = self._form(carry, rows, is_last=is_last)
        steps = np.arange((len(bounds) - 1) // self._world)
        if self._order.seed is not None and self._plan.is_grouped:
            # Ranks work on similar lengths at a time, so steps of ranks stay together; only their
            # order mixes.
            random.shuffle(steps)
        return WindowBatches(rows, bounds, steps), carry

    @abstractmethod
    def _find(self, step: int) -> tuple[int, int, NDArray[np.int64]]:
        """The window with a step, the steps of it before that one, and what it begins with."""

    @abstractmethod
    def _form(
        self, carry: NDArray[np.int64], rows: NDArray[np.int64], *, is_last: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Rows in the order of the batches, bounds of the batches, and rows that are left over."""

    def _sorted(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of each block by falling length, those of equal length in their order."""
        lengths = self._lengths[blocks]
        shorter = lengths.max(initial=0) - lengths
        # In few bits numpy sorts by counting, in a sixth of the time.
        keys = shorter.astype(np.min_scalar_type(int(shorter.max(initial=0))))
        return np.take_along_axis(blocks, np.argsort(keys, axis=-1, kind="stable"), axis=-1)


class _FixedSizeBatches(EpochBatches):
    """Batches of ``batch_size`` rows; only the last of a single rank may have fewer.

    Their number follows from that of the rows alone, and what a window begins with from the order.
    """

    def __len__(self) -> int:
        return -(-self._places // self._step)

    @property
    def _places(self) -> int:
        """Places in all batches of all ranks."""
        rows = self._order.rows
        if self._drop_last:
            return rows // self._step * self._step
        return rows if self._world == 1 else -(-rows // self._step) * self._step

    def _find(self, step: int) -> tuple[int, int, NDArray[np.int64]]:
        number = 0
        while number < self._order.num_windows - 1 and self._order.end(number) < self._step * (
            step + 1
        ):
            number += 1
        begin = self._order.end(number - 1)
        first = begin // self._step
        return number, step - first, self._order.take(first * self._step, begin)

    def _form(
        self, carry: NDArray[np.int64], rows: NDArray[np.int64], *, is_last: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        rows = np.concatenate([carry, rows])
        places = len(rows) // self._step * self._step
        if is_last:
            repeated = self._order.take(0, self._places - self._order.rows)
            rows = np.concatenate([rows, repeated])
            places = len(rows) if not self._drop_last else places
        rows, carry = rows[:places], rows[places:]
        if self._plan.by_length:
            block = _SORTED_BATCHES * self._step
            whole = places // block * block
            sorted_blocks = self._sorted(rows[:whole].reshape(-1, block)).reshape(-1)
            rows = np.concatenate([sorted_blocks, self._sorted(rows[whole:])])
        bounds = np.append(np.arange(0, places, self._batch_size), places)
        return rows, bounds, carry


class _FittedBatches(EpochBatches):
    """Batches of as many rows as fit into ``max_batch_length``, padding counted.

    Where a batch ends depends on all before it, so all windows are formed once to count them; what
    each begins with is kept.
    """

    def __len__(self) -> int:
        return sum(steps for steps, _ in self._marks)

    @cached_property
    def _marks(self) -> list[tuple[int, NDArray[np.int64]]]:
        """Steps of each window, and the rows that it begins with."""
        marks: list[tuple[int, NDArray[np.int64]]] = []
        carry = np.empty(0, np.int64)
        for number in range(self._order.num_windows):
            window, left = self._window(number, carry)
            marks.append((len(window.steps), carry))
            carry = left
        return marks

    def _find(self, step: int) -> tuple[int, int, NDArray[np.int64]]:
        number = 0
        while step >= self._marks[number][0]:
            step -= self._marks[number][0]
            number += 1
        return number, step, self._marks[number][1]

    def _form(
        self, carry: NDArray[np.int64], rows: NDArray[np.int64], *, is_last: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        batches, rest = self._split(carry, rows)
        if is_last and len(rest) and not self._drop_last:
            batches.append(rest)
        whole = len(batches) // self._world * self._world
        left = np.concatenate([np.empty(0, np.int64), *batches[whole:], rest])
        if not is_last or self._drop_last:
            batches = batches[:whole]
        elif whole < len(batches):
            missing = -len(batches) % self._world
            batches += [batches[place % len(batches)] for place in range(missing)]
        sizes = np.array([0, *map(len, batches)])
        return np.concatenate([np.empty(0, np.int64), *batches]), np.cumsum(sizes), left

    def _split(
        self, rest: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
        """Full batches, and the rows after them, to which more could be added."""
        batches: list[NDArray[np.int64]] = []
        block = _SORTED_BATCHES * self._step
        for at in range(0, len(rows), block):
            part = np.concatenate([rest, rows[at : at + block]])
            if self._plan.by_length:
                part = self._sorted(part)
            # A batch that ended with its block, though more would fit, goes on with the next one:
            # only the last batch of all may be short.
            ends = self._ends(self._lengths[part].tolist())
            begins = [0, *ends]
            batches += [part[begin:end] for begin, end in pairwise(begins)]
            rest = part[begins[-1] :]
        return batches, rest

    def _ends(self, lengths: list[int]) -> list[int]:
        """Where each full batch of consecutive rows ends; to those after the last, more fit."""
        limit = self._plan.max_batch_length or 0
        ends: list[int] = []
        begin, longest = 0, 0
        if self._plan.by_length:  # the first is the longest, so there is no need to look at all
            while begin < len(lengths):
                begin += min(self._batch_size, limit // max(1, lengths[begin]))
                ends.append(begin)
            return ends if begin == len(lengths) else ends[:-1]
        for place, length in enumerate(lengths):
            longest = max(longest, length)
            size = place - begin + 1
            if size > self._batch_size or size * longest > limit:
                ends.append(place)
                begin, longest = place, length
        size = len(lengths) - begin
        if size == self._batch_size or (size + 1) * longest > limit:
            ends.append(len(lengths))
        return ends


def plan_epoch(
    order: RowOrder, plan: BatchPlan, batch_size: int, *, drop_last: bool, world: int
) -> EpochBatches:
    """Choose how the batches of an epoch are formed; parameters as :class:`EpochBatches` has."""
    kind = _FixedSizeBatches if plan.max_batch_length is None else _FittedBatches
    return kind(order, plan, batch_size, drop_last=drop_last, world=world)
