"""Token ids of samples: placeholders filled in, then padded to one length.

An :class:`EncodedText` has one placeholder per image, a :class:`TextRow` one per visual token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subtok_data.batch import IGNORE_INDEX, KEYS, round_up

__all__ = ["EncodedText", "TextRow", "pad_rows"]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedText:
    """Tokens of one sample with one placeholder per image.

    Attributes
    ----------
    input_ids : (L,) int64 array
        Token ids.
    supervised : (L,) bool array
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
    supervised: NDArray[np.bool_]
    images: NDArray[np.int64]
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    max_length: int | None = None
    visual_room: int | None = None

    def check_fits(self, counts: Sequence[int]) -> None:
        """Check that the visual tokens fit, together with some supervised text.

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
        >>> supervised, images = np.array([False, True]), np.array([0])
        >>> text = EncodedText(np.array([9, 5]), supervised, images, max_length=4)
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
        if self.supervised.any() and not (self.supervised & self._kept(needed)).any():
            raise ValueError(
                f"{taken}, which leaves no supervised text at max_length="
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
        """Fill in the visual tokens and truncate the text to ``max_length``.

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
        supervised = np.repeat(self.supervised, repeats)
        types = np.zeros(len(ids), np.int64)
        starts = (np.cumsum(repeats) - repeats)[self.images] + len(self.before)
        for start, count in zip(starts, counts, strict=True):
            stop = start + count
            types[start:stop] = 1
            ids[start - len(self.before) : start] = self.before
            ids[stop : stop + len(self.after)] = self.after
        return TextRow(ids, np.where(supervised, ids, IGNORE_INDEX), types, int((~keep).sum()))


@dataclass(frozen=True, slots=True)
class TextRow:
    """One row before padding.

    Attributes
    ----------
    input_ids, labels, mm_token_type_ids : (L,) int64 arrays
        Token ids; labels with -100 for what is not supervised; 1 at visual tokens.
    truncated : int
        Text tokens beyond ``max_length``, left out.
    """

    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    mm_token_type_ids: NDArray[np.int64]
    truncated: int = 0


def pad_rows(
    rows: Sequence[TextRow],
    pad_id: int,
    *,
    padding_side: Literal["right", "left"] = "right",
    pad_to_multiple_of: int = 1,
) -> dict[str, Tensor]:
    """Pad rows to one length.

    Parameters
    ----------
    rows : sequence of TextRow
        B rows.
    pad_id : int
        Token id on padding.
    padding_side : {"right", "left"}
        Where padding goes.
    pad_to_multiple_of : int
        The length is rounded up to this.

    Returns
    -------
    dict of Tensor
        ``input_ids``, ``attention_mask``, ``labels``, ``mm_token_type_ids``: (B, L) int64. The
        label of a row's first token is -100 in every layout: no model predicts it.

    Examples
    --------
    >>> ids = np.array([5, 6]); none = np.zeros(2, np.int64)
    >>> batch = pad_rows([TextRow(ids, ids, none)], 0, pad_to_multiple_of=4)
    >>> batch["input_ids"].tolist(), batch["labels"].tolist()
    ([[5, 6, 0, 0]], [[-100, 6, -100, -100]])
    """
    length = round_up(max((len(row.input_ids) for row in rows), default=0), pad_to_multiple_of)
    names = ("attention_mask", "labels", "mm_token_type_ids")
    mask, labels, types = (KEYS[name].full(B=len(rows), L=length) for name in names)
    ids = np.full_like(labels, pad_id)
    for number, row in enumerate(rows):
        size = len(row.input_ids)
        place = slice(0, size) if padding_side == "right" else slice(length - size, length)
        ids[number, place] = row.input_ids
        mask[number, place] = 1
        labels[number, place] = row.labels
        labels[number, place.start : place.start + 1] = IGNORE_INDEX
        types[number, place] = row.mm_token_type_ids
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask),
        "labels": torch.from_numpy(labels),
        "mm_token_type_ids": torch.from_numpy(types),
    }
