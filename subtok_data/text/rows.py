"""Rows of a text batch: placeholders filled in, then padded to one length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["IGNORE", "TextRow", "pad_rows"]
IGNORE = -100
"""Label of what is not learned."""


@dataclass(frozen=True, slots=True)
class TextRow:
    """One row before padding.

    Attributes
    ----------
    input_ids, labels, mm_token_type_ids : (L,) int64 arrays
        Token ids; labels with -100 for what is not learned; 1 at visual tokens.
    truncated : int
        Text tokens that ``max_length`` cut off.
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
    longest = max((len(row.input_ids) for row in rows), default=0)
    length = -(-longest // pad_to_multiple_of) * pad_to_multiple_of
    shape = (len(rows), length)
    ids = np.full(shape, pad_id, np.int64)
    mask = np.zeros(shape, np.int64)
    labels = np.full(shape, IGNORE, np.int64)
    types = np.zeros(shape, np.int64)
    for number, row in enumerate(rows):
        size = len(row.input_ids)
        place = slice(0, size) if padding_side == "right" else slice(length - size, length)
        ids[number, place] = row.input_ids
        mask[number, place] = 1
        labels[number, place] = row.labels
        labels[number, place.start : place.start + 1] = IGNORE
        types[number, place] = row.mm_token_type_ids
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask),
        "labels": torch.from_numpy(labels),
        "mm_token_type_ids": torch.from_numpy(types),
    }
