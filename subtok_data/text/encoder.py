"""Encode the text columns of a row as token ids, with one placeholder per image.

This runs in DataLoader workers, where the number of visual tokens is not known yet.
:meth:`~subtok_data.text.EncodedText.expand` fills them in when the images are segmented.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtok_data.arguments import similar_names
from subtok_data.errors import SampleError
from subtok_data.text.chat import Spans, flatten_messages, render_chat
from subtok_data.text.config import TextConfig
from subtok_data.text.rows import EncodedText

__all__ = ["TextEncoder"]


class TextEncoder:
    """Encode text columns: row of a dataset → :class:`~subtok_data.text.EncodedText`.

    Parameters
    ----------
    config : TextConfig
        What the text is.

    Attributes
    ----------
    placeholder_id : int
        Id of the visual placeholder.
    """

    def __init__(self, config: TextConfig) -> None:
        self.config = config
        tokenizer = config.tokenizer
        self.placeholder_id = config.placeholder_id
        self._before = self._ids_of(config.start)
        self._after = self._ids_of(config.end)
        # Text that spells one of these would become a visual token without an image.
        self._reserved = tuple(t for t in config.special_tokens if t != config.image_mark)
        self._bos = self._leading_token()
        eos = tokenizer.eos_token_id
        self._eos: list[int] = [] if eos is None else [int(eos)]
        pad = tokenizer.pad_token_id
        # Without a pad token any id will do: attention mask and labels hide it.
        self.pad_id = int(pad) if pad is not None else (self._eos[0] if self._eos else 0)

    def _ids_of(self, token: str | None) -> tuple[int, ...]:
        if token is None:
            return ()
        return (int(self.config.tokenizer.convert_tokens_to_ids(token)),)

    def _leading_token(self) -> list[int]:
        """Return the token that the tokenizer puts before every text, where it does."""
        tokenizer = self.config.tokenizer
        bos = tokenizer.bos_token_id
        ids = tokenizer("a", verbose=False)["input_ids"]
        return [int(bos)] if bos is not None and ids and ids[0] == bos else []

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the dataset that the text is made of."""
        config = self.config
        names = (config.caption, config.prompt, config.answer, config.messages)
        return tuple(name for name in names if name is not None)

    def encode(self, row: Mapping[str, Any], num_images: int = 1) -> EncodedText:
        """Encode one row as token ids, with one placeholder per image.

        Parameters
        ----------
        row : mapping
            Columns of the dataset.
        num_images : int
            Images of the sample.

        Raises
        ------
        SampleError
            When a column is missing or of a wrong kind, the image marks do not match the images,
            the text spells a special token of the sequence, or ``max_length`` is too short for the
            images.
        """
        if self.config.messages is not None:
            return self._encode_chat(self._column(row, self.config.messages), num_images)
        return self._encode_plain(row, num_images)

    def _column(self, row: Mapping[str, Any], name: str) -> Any:
        if name not in row:
            raise SampleError(
                f"no column {name!r} for the text: beside the image the row has {sorted(row)}"
                f"{similar_names(name, row)}"
            )
        return row[name]

    def _text(self, row: Mapping[str, Any], name: str) -> str:
        value = self._column(row, name)
        if not isinstance(value, str):
            raise SampleError(
                f"column {name!r} holds {type(value).__name__}, expected str; make one row per text"
            )
        return value

    def _encode_plain(self, row: Mapping[str, Any], num_images: int) -> EncodedText:
        config = self.config
        prompt = "" if config.prompt is None else self._text(row, config.prompt)
        answer = ""
        target = config.answer if config.caption is None else config.caption
        if target is not None and not config.generation:
            answer = self._text(row, target)
        marks = self._missing_marks([prompt, answer], num_images)
        parts: list[Piece] = [
            (np.array(self._bos, np.int64), False),
            *self._pieces(marks + prompt, [], supervised=False),
            *self._pieces(answer, [], supervised=True),
        ]
        if not config.generation:
            parts.append((np.array(self._eos, np.int64), True))
        return self._joined(parts, num_images)

    def _encode_chat(self, messages: Any, num_images: int) -> EncodedText:
        config = self.config
        flat = flatten_messages(messages, config.image_mark)
        marks = self._missing_marks([message["content"] for message in flat], num_images)
        first = next((m for m in flat if m["role"] == "user"), flat[0])
        first["content"] = marks + first["content"]
        text, spans = render_chat(
            config.tokenizer, flat, labels=config.labels, generation=config.generation
        )
        if text.count(config.image_mark) != num_images:
            raise SampleError(
                f"the chat template left {text.count(config.image_mark)} of {num_images} image "
                f"marks {config.image_mark!r} in the text"
            )
        return self._joined(self._pieces(text, spans, supervised=False), num_images)

    def _missing_marks(self, texts: Sequence[str], num_images: int) -> str:
        """Image marks to put first: all of them when the text has none."""
        for text in texts:
            for token in self._reserved:
                if token in text:
                    raise SampleError(
                        f"the text spells the special token {token!r}; clean the text, or choose "
                        f"other tokens in TextConfig"
                    )
        found = sum(text.count(self.config.image_mark) for text in texts)
        if found not in (0, num_images):
            raise SampleError(
                f"the text has {found} image marks {self.config.image_mark!r} for {num_images} "
                f"images; there must be one each, or none"
            )
        return "" if found else self.config.image_mark * num_images

    def _pieces(self, text: str, spans: Spans, *, supervised: bool) -> list[Piece]:
        config = self.config
        marked = text.split(config.image_mark)
        return _split_at_marks(
            config.tokenizer,
            marked,
            spans,
            supervised=supervised,
            mark_length=len(config.image_mark),
            placeholder_id=self.placeholder_id,
        )

    def _joined(self, parts: Sequence[Piece], num_images: int) -> EncodedText:
        ids = np.concatenate([part for part, _ in parts])
        supervised = np.concatenate([np.broadcast_to(flag, part.shape) for part, flag in parts])
        images = np.flatnonzero(ids == self.placeholder_id)
        if len(images) != num_images:
            raise SampleError(
                f"the tokenizer made a placeholder ({self.config.placeholder!r}) out of the text; "
                f"choose another placeholder in TextConfig"
            )
        return EncodedText(
            ids,
            supervised,
            images,
            self._before,
            self._after,
            self.config.max_length,
            self._visual_room(len(ids) - num_images, num_images),
        )

    def _visual_room(self, text: int, num_images: int) -> int | None:
        """Visual tokens per image that leave room for ``text`` tokens, up to half of the row."""
        limit = self.config.max_length
        if not self.config.shrink_tokens or limit is None or num_images == 0:
            return None
        room = limit - min(text, limit // 2) - num_images * len(self._before + self._after)
        if room < num_images:
            raise SampleError(
                f"max_length={limit} has no room for {num_images} images, even with one visual "
                f"token each; raise max_length"
            )
        return room // num_images


Piece = tuple[NDArray[np.int64], NDArray[np.bool_] | bool]
"""Token ids, and which of them are supervised (one flag for all, or one each)."""


def _split_at_marks(
    tokenizer: Any,
    parts: Sequence[str],
    spans: Spans,
    *,
    supervised: bool,
    mark_length: int,
    placeholder_id: int,
) -> list[Piece]:
    """Tokenise the parts of a text, with one placeholder between each two.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        Any transformers tokenizer.
    parts : sequence of str
        The text, split at its image marks.
    spans : list of (int, int)
        Characters of the whole text, marks included, to supervise.
    supervised : bool
        Whether to supervise all of it, when there are no spans.
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
            pieces += _tokenized(tokenizer, part, shifted, supervised=supervised)
        offset += len(part) + mark_length
    return pieces


def _tokenized(tokenizer: Any, text: str, spans: Spans, *, supervised: bool) -> list[Piece]:
    if spans and not tokenizer.is_fast:
        return _tokenized_by_parts(tokenizer, text, spans)
    # verbose=False: a text beyond the tokenizer's own limit is truncated later without a warning.
    output = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=bool(spans), verbose=False
    )
    ids = np.array(output["input_ids"], np.int64)
    if not spans:
        return [(ids, supervised)]
    starts = np.array([start for start, _ in output["offset_mapping"]], np.int64)
    inside = np.zeros(len(ids), np.bool_)
    for start, stop in spans:
        inside |= (starts >= start) & (starts < stop)
    return [(ids, inside)]


def _tokenized_by_parts(tokenizer: Any, text: str, spans: Spans) -> list[Piece]:
    """Split the text at the ends of spans: slow tokenizers know no character offsets."""
    ends = {min(max(end, 0), len(text)) for span in spans for end in span} | {0, len(text)}
    pieces: list[Piece] = []
    for first, last in itertools.pairwise(sorted(ends)):
        inside = any(start <= first and last <= stop for start, stop in spans)
        pieces += _tokenized(tokenizer, text[first:last], [], supervised=inside)
    return pieces
