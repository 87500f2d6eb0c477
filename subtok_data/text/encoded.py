"""Tokens of one sample, before and after its visual tokens are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subtok_data.text.rows import IGNORE, TextRow

__all__ = ["EncodedText"]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedText:
    """Tokens of one sample with one placeholder per image.

    Attributes
    ----------
    input_ids : (L,) int64 array
        Token ids.
    learned : (L,) bool array
        Which tokens are labels.
    images : (n,) int64 array
        Where the placeholders are, ascending.
    before, after : tuple of int
        Tokens around the visual tokens of an image.
    max_length : int or None
        Limit of the row, visual tokens included.
    visual_room : int or None
        Visual tokens that each image may have at most, None for no limit. Only with
        ``shrink_tokens``: it leaves room for the text, up to half of ``max_length``.
    """

    input_ids: NDArray[np.int64]
    learned: NDArray[np.bool_]
    images: NDArray[np.int64]
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    max_length: int | None = None
    visual_room: int | None = None

    def check_fits(self, counts: Sequence[int]) -> None:
        """Check that the visual tokens fit, together with some text to learn.

        Parameters
        ----------
        counts : sequence of int
            Visual tokens of each image, in order.

        Raises
        ------
        ValueError
            When they do not; the message names the count and the limit.

        Examples
        --------
        >>> learned, images = np.array([False, True]), np.array([0])
        >>> text = EncodedText(np.array([9, 5]), learned, images, max_length=4)
        >>> text.check_fits([3])
        >>> text.check_fits([5])
        Traceback (most recent call last):
        ...
        ValueError: 5 visual tokens of 1 image(s) take 5 places, max_length is 4; ...
        """
        if len(counts) != len(self.images):
            raise ValueError(f"{len(counts)} counts for {len(self.images)} images of the text")
        if self.max_length is None:
            return
        needed = self._needed(counts)
        remedy = "raise max_length, lower max_tokens, or set shrink_tokens=True"
        taken = f"{sum(counts)} visual tokens of {len(counts)} image(s) take {needed} places"
        if needed > self.max_length:
            raise ValueError(f"{taken}, max_length is {self.max_length}; {remedy}")
        # A row without labels teaches nothing, and a batch of such rows has a loss of NaN.
        if self.learned.any() and not (self.learned & self._kept(needed)).any():
            raise ValueError(
                f"{taken}, which leaves nothing to learn of the text at max_length="
                f"{self.max_length}; {remedy}"
            )

    def _needed(self, counts: Sequence[int]) -> int:
        return sum(counts) + len(counts) * (len(self.before) + len(self.after))

    def _kept(self, needed: int) -> NDArray[np.bool_]:
        """Which tokens stay: all images, and text from the start as far as there is room."""
        text = np.ones(len(self.input_ids), np.bool_)
        text[self.images] = False
        if self.max_length is None:
            return np.ones_like(text)
        return ~text | (np.cumsum(text) <= self.max_length - needed)

    def expand(self, counts: Sequence[int]) -> TextRow:
        """Fill in the visual tokens and cut the text to ``max_length``.

        Parameters
        ----------
        counts : sequence of int
            Visual tokens of each image, in order, each at least 1.

        Raises
        ------
        ValueError
            As :meth:`check_fits`.

        Examples
        --------
        >>> text = EncodedText(np.array([9, 5]), np.array([False, True]), np.array([0]), (1,), (2,))
        >>> row = text.expand([3])
        >>> row.input_ids.tolist(), row.labels.tolist()
        ([1, 9, 9, 9, 2, 5], [-100, -100, -100, -100, -100, 5])
        """
        self.check_fits(counts)
        keep = self._kept(self._needed(counts))
        repeats = np.ones(len(keep), np.int64)
        repeats[self.images] = np.asarray(counts, np.int64) + len(self.before) + len(self.after)
        repeats *= keep
        ids = np.repeat(self.input_ids, repeats)
        learned = np.repeat(self.learned, repeats)
        types = np.zeros(len(ids), np.int64)
        starts = (np.cumsum(repeats) - repeats)[self.images] + len(self.before)
        for start, count in zip(starts, counts, strict=True):
            stop = start + count
            types[start:stop] = 1
            ids[start - len(self.before) : start] = self.before
            ids[stop : stop + len(self.after)] = self.after
        return TextRow(ids, np.where(learned, ids, IGNORE), types, int((~keep).sum()))
