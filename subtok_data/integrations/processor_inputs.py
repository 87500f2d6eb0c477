"""Images and texts of a processor's call: which image belongs to which text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from subtok_data.arguments import describe
from subtok_data.errors import ConfigError, SampleError

__all__ = ["fill_in", "read_texts", "share_out", "tokenize_texts"]


def read_texts(text: Any) -> list[str] | None:
    """Make a list of one text or several; None stays.

    Raises
    ------
    ConfigError
        Something else.

    Examples
    --------
    >>> read_texts("one"), read_texts(("one", "two"))
    (['one'], ['one', 'two'])
    """
    if text is None or isinstance(text, str):
        return None if text is None else [text]
    if not isinstance(text, list | tuple):
        raise ConfigError(f"text is {describe(text)}, expected a string or a list of strings")
    texts = list(cast("Sequence[Any]", text))
    for number, one in enumerate(texts):
        if not isinstance(one, str):
            raise ConfigError(f"text {number} is {describe(one)}, expected a string")
    return texts


def share_out(images: Any, texts: list[str] | None, mark: str) -> tuple[list[Any], list[int]]:
    """List all images in a row, and the text of each.

    Parameters
    ----------
    images : image, list of images, or list of lists of images, or None
        Nested lists have one entry per text.
    texts : list of str or None
        With marks where images stand.
    mark : str
        The mark.

    Returns
    -------
    images : list
    owners : list of int
        Number of the text of each image; empty without texts.

    Raises
    ------
    SampleError
        Marks and images differ.
    ConfigError
        Not one list of images per text.

    Examples
    --------
    >>> share_out([["first"], [], ["second", "third"]], ["#", "none", "##"], "#")
    (['first', 'second', 'third'], [0, 2, 2])
    """
    nested, flat = _flat(images)
    if texts is None:
        return flat, []
    marks = [text.count(mark) for text in texts]
    if nested is None:
        if sum(marks) != len(flat):
            raise SampleError(
                f"the {len(texts)} texts have {sum(marks)} marks {mark!r} for "
                f"{len(flat)} images: write one where each image stands"
            )
    elif len(nested) != len(texts):
        raise ConfigError(f"{len(nested)} lists of images for {len(texts)} texts: give one each")
    else:
        for number, (found, own) in enumerate(zip(marks, nested, strict=True)):
            if found != len(own):
                raise SampleError(
                    f"the text has {found} marks {mark!r} for {len(own)} images: "
                    f"write one where each image stands. The text is {texts[number]!r:.80}",
                    index=number,
                    stage="collate",
                )
    return flat, [number for number, found in enumerate(marks) for _ in range(found)]


def _flat(images: Any) -> tuple[list[list[Any]] | None, list[Any]]:
    """Lists of images, where images are nested, and all images in a row."""
    if images is None:
        return None, []
    if not isinstance(images, list | tuple):
        return None, [images]
    given = list(cast("Sequence[Any]", images))
    if not any(isinstance(one, list | tuple) for one in given):
        return None, given
    nested = [list(one) if isinstance(one, list | tuple) else [one] for one in given]
    return nested, [image for own in nested for image in own]


def fill_in(text: str, mark: str, inserted: Iterator[str]) -> tuple[str, list[dict[str, Any]]]:
    """Put texts in place of marks.

    Parameters
    ----------
    text : str
        With marks.
    mark : str
        The mark.
    inserted : iterator of str
        One text per mark.

    Returns
    -------
    text : str
    places : list of dict
        Where marks were and texts are, in the words of transformers' processors.

    Examples
    --------
    >>> fill_in("a # b", "#", iter(["12"]))[0]
    'a 12 b'
    """
    parts: list[str] = []
    places: list[dict[str, Any]] = []
    last = length = 0
    for found in re.finditer(re.escape(mark), text):
        begin, stop = found.span()
        words = next(inserted)
        length += begin - last
        places.append(
            {
                "type": "image",
                "span": (begin, stop),
                "new_span": (length, length + len(words)),
                "text": mark,
                "replacement": words,
            }
        )
        parts += [text[last:begin], words]
        length += len(words)
        last = stop
    return "".join([*parts, text[last:]]), places


def tokenize_texts(tokenizer: Any, texts: list[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Tokenize texts whose visual tokens are filled in.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        Of the language model.
    texts : list of str
        One per row.
    options : mapping
        Of the tokenizer.

    Raises
    ------
    ConfigError
        Rows of several lengths are to be one tensor, and padding is off.
    """
    try:
        return dict(tokenizer(texts, **options))
    except ValueError as error:
        if options.get("padding") or options.get("return_tensors") is None:
            raise
        rows = tokenizer(texts, **{**options, "return_tensors": None})["input_ids"]
        lengths = [len(ids) for ids in rows]
        if len(set(lengths)) == 1:
            raise
        raise ConfigError(
            f"texts and images make rows of {', '.join(map(str, lengths[:4]))}"
            f"{', …' if len(lengths) > 4 else ''} tokens, which make no tensor: give padding=True"
        ) from error
