"""Masks as spans of pixels, an array form of run lengths for splitting, moving and joining."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Spans", "find_spans", "join_spans", "resize_spans", "unite_spans"]

Longs = NDArray[np.int64]


class Spans(NamedTuple):
    """Pixels of masks as stretches without a gap, column by column.

    Parameters
    ----------
    owner : (S,) int64
        Mask of each span, ascending.
    starts, ends : (S,) int64
        First pixel and pixel after the last, ``x * H + y``; ascending within a mask, disjoint.
    """

    owner: Longs
    starts: Longs
    ends: Longs


def find_spans(counts: NDArray[np.int32], offsets: Longs) -> Spans:
    """Convert the run lengths of masks to spans.

    Parameters
    ----------
    counts : (R,) int32
        Run lengths, the outside first; those of each mask sum to the same number of pixels.
    offsets : (M + 1,) int64
        Where the runs of each mask begin.

    Examples
    --------
    >>> find_spans(np.array([1, 2, 1, 0, 4], np.int32), np.array([0, 3, 5])).starts.tolist()
    [1, 0]
    """
    lengths = np.diff(offsets)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(counts)) - np.repeat(offsets[:-1], lengths)
    ends = np.cumsum(counts, dtype=np.int64)
    before = np.concatenate([np.zeros(1, np.int64), ends])[offsets[:-1]]
    ends -= np.repeat(before, lengths)
    inside = (place % 2 == 1) & (counts > 0)
    return Spans(owner[inside], (ends - counts)[inside], ends[inside])


def join_spans(spans: Spans, num_masks: int, pixels: int) -> tuple[NDArray[np.int32], Longs]:
    """Convert spans to run lengths, the inverse of :func:`find_spans`.

    Parameters
    ----------
    spans : Spans
        Of masks 0..num_masks-1, which may be empty; spans may touch.
    num_masks : int
        M.
    pixels : int
        H · W.

    Returns
    -------
    counts : (R,) int32
    offsets : (M + 1,) int64

    Examples
    --------
    >>> spans = Spans(np.array([1, 1]), np.array([0, 2]), np.array([2, 3]))
    >>> counts, offsets = join_spans(spans, 2, 4)
    >>> counts.tolist(), offsets.tolist()
    ([4, 0, 3, 1], [0, 1, 4])
    """
    owner, starts, ends = spans
    apart = np.ones(len(owner), np.bool_)
    apart[1:] = (owner[1:] != owner[:-1]) | (starts[1:] != ends[:-1])
    last = np.append(apart[1:], True)[: len(owner)]
    owner, starts, ends = owner[apart], starts[apart], ends[last]
    position = np.zeros(len(owner), np.int64)  # where the outside before each span begins
    position[1:] = np.where(owner[1:] == owner[:-1], ends[:-1], 0)
    number = np.bincount(owner, minlength=num_masks)
    after = np.cumsum(number)
    reached = np.zeros(num_masks, np.int64)
    reached[number > 0] = ends[after[number > 0] - 1]
    tail = (reached < pixels) | (number == 0)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(2 * number + tail)])
    counts = np.empty(offsets[-1], np.int32)
    place = offsets[owner] + 2 * (np.arange(len(owner)) - (after - number)[owner])
    counts[place] = starts - position
    counts[place + 1] = ends - starts
    counts[offsets[1:][tail] - 1] = (pixels - reached)[tail]
    return counts, offsets


def unite_spans(starts: Longs, ends: Longs) -> Spans:
    """Unite spans that may overlap, of one mask.

    Parameters
    ----------
    starts, ends : (S,) int64
        First pixel and pixel after the last, in any order.

    Returns
    -------
    Spans
        Of mask 0, ascending and disjoint.

    Examples
    --------
    >>> spans = unite_spans(np.array([6, 0, 1]), np.array([8, 4, 2]))
    >>> spans.starts.tolist(), spans.ends.tolist()
    ([0, 6], [4, 8])
    """
    order = np.argsort(starts, kind="stable")
    starts, reached = starts[order], np.maximum.accumulate(ends[order])
    apart = np.ones(len(starts), np.bool_)
    apart[1:] = starts[1:] > reached[:-1]
    last = np.append(apart[1:], True)[: len(starts)]
    return Spans(np.zeros(int(apart.sum()), np.int64), starts[apart], reached[last])


def resize_spans(spans: Spans, old: tuple[int, int], new: tuple[int, int]) -> Spans:
    """Resize masks by nearest neighbour: each new pixel is the old one under its centre.

    A mask that no centre falls into keeps one pixel, that of the middle one of its pixels.

    Parameters
    ----------
    spans : Spans
        Of masks of size ``old``.
    old, new : (H, W)
        Sizes in pixels.

    Examples
    --------
    >>> spans = Spans(np.array([0]), np.array([1]), np.array([3]))
    >>> resize_spans(spans, (2, 2), (2, 4)).starts.tolist()
    [1, 3, 4, 6]
    """
    rows, columns = (_first_samples(*sides) for sides in zip(old, new, strict=True))
    # One piece for each old column that a span runs through ...
    height = old[0]
    left = spans.starts // height
    pieces = _Repeated((spans.ends - 1) // height - left + 1)
    column = pieces.take(left) + pieces.place
    top = np.maximum(pieces.take(spans.starts) - column * height, 0)
    bottom = np.minimum(pieces.take(spans.ends) - column * height, height)
    owner = pieces.take(spans.owner)
    top, bottom = rows[top], rows[bottom]
    # ... and one copy of it for each new column that shows the old one.
    copies = _Repeated(np.where(bottom > top, columns[column + 1] - columns[column], 0))
    column = copies.take(columns[column]) + copies.place
    owner, top, bottom = copies.take(owner), copies.take(top), copies.take(bottom)
    lost = np.setdiff1d(spans.owner, owner)
    x, y = np.divmod(_middle_pixels(spans, lost), height)
    owner = np.concatenate([owner, lost])
    column = np.concatenate([column, x * new[1] // old[1]])
    top = np.concatenate([top, y * new[0] // old[0]])
    bottom = np.concatenate([bottom, y * new[0] // old[0] + 1])
    order = np.lexsort((top, column, owner))
    first = (column * new[0])[order]
    return Spans(owner[order], first + top[order], first + bottom[order])


def _middle_pixels(spans: Spans, masks: Longs) -> Longs:
    """Find the middle one of the pixels of non-empty masks, column by column."""
    total = np.concatenate([np.zeros(1, np.int64), np.cumsum(spans.ends - spans.starts)])
    first = total[np.searchsorted(spans.owner, masks)]
    past = total[np.searchsorted(spans.owner, masks, side="right")]
    wanted = (first + past - 1) // 2
    span = np.searchsorted(total, wanted, side="right") - 1
    return spans.starts[span] + wanted - total[span]


class _Repeated:
    """Entries that are repeated, each a number of times of its own."""

    def __init__(self, times: Longs) -> None:
        self.times = times
        ends = np.cumsum(times)
        self.place = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - times, times)
        """Which of its repetitions an entry is, 0 for the first."""

    def take(self, values: NDArray[Any]) -> NDArray[Any]:
        return np.repeat(values, self.times)


def _first_samples(old: int, new: int) -> Longs:
    """Find the first new pixel that shows old pixel ``i`` or a later one, for i = 0..old."""
    shown = (2 * np.arange(new) + 1) * old // (2 * new)
    return np.searchsorted(shown, np.arange(old + 1))
