"""Tokens of a text that is interrupted by images, with a mark on those to learn."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtok_data.text.chat import Spans

__all__ = ["Piece", "text_pieces"]

Piece = tuple[NDArray[np.int64], NDArray[np.bool_] | bool]
"""Token ids, and which of them are learned (one flag for all, or one each)."""


def text_pieces(
    tokenizer: Any,
    parts: Sequence[str],
    spans: Spans,
    *,
    learned: bool,
    mark_length: int,
    placeholder_id: int,
) -> list[Piece]:
    """Tokens of the parts of a text, and one placeholder between each two.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        Any transformers tokenizer.
    parts : sequence of str
        The text, cut at its image marks.
    spans : list of (int, int)
        Characters of the whole text, marks included, to learn.
    learned : bool
        Whether to learn all of it, when there are no spans.
    mark_length : int
        Characters of a mark.
    placeholder_id : int
        Id of the placeholder.
    """
    pieces: list[Piece] = []
    offset = 0
    for number, part in enumerate(parts):
        if number:
            pieces.append((np.array([placeholder_id], np.int64), False))
        if part:
            shifted = [(start - offset, stop - offset) for start, stop in spans]
            pieces += _tokenized(tokenizer, part, shifted, learned=learned)
        offset += len(part) + mark_length
    return pieces


def _tokenized(tokenizer: Any, text: str, spans: Spans, *, learned: bool) -> list[Piece]:
    if spans and not tokenizer.is_fast:
        return _tokenized_by_parts(tokenizer, text, spans)
    # verbose=False: a text longer than the tokenizer's own limit is cut later, not worth a warning.
    output = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=bool(spans), verbose=False
    )
    ids = np.array(output["input_ids"], np.int64)
    if not spans:
        return [(ids, learned)]
    starts = np.array([start for start, _ in output["offset_mapping"]], np.int64)
    inside = np.zeros(len(ids), np.bool_)
    for start, stop in spans:
        inside |= (starts >= start) & (starts < stop)
    return [(ids, inside)]


def _tokenized_by_parts(tokenizer: Any, text: str, spans: Spans) -> list[Piece]:
    """Cut the text where learning starts and stops: slow tokenizers know no character offsets."""
    ends = {min(max(end, 0), len(text)) for span in spans for end in span} | {0, len(text)}
    pieces: list[Piece] = []
    for first, last in itertools.pairwise(sorted(ends)):
        inside = any(start <= first and last <= stop for start, stop in spans)
        pieces += _tokenized(tokenizer, text[first:last], [], learned=inside)
    return pieces
