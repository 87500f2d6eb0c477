"""Encode category words as bags of sub-words and as a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from subtok_data.arguments import check_choice
from subtok_data.errors import ConfigError

__all__ = ["UNKNOWN", "CategoryWords", "Prompt", "check_categories"]

Prompt = Literal["paper", "code"]
UNKNOWN = "unknown"
"""Appended to the categories; never drawn, and ignored in the target."""

_QUESTION = "what is the segmentation map of the image? object:"


def check_categories(categories: Sequence[str]) -> tuple[str, ...]:
    """Refuse categories that cannot be told apart.

    Raises
    ------
    ConfigError
        If there is none, or one is empty, twice there, or ``"unknown"``.

    Examples
    --------
    >>> check_categories(["traffic  light", "cow"])
    ('traffic light', 'cow')
    """
    if isinstance(categories, str):
        raise ConfigError(f"categories={categories!r}: give a list of words, not one string")
    names = tuple(" ".join(str(name).split()) for name in categories)
    if not names:
        raise ConfigError("categories are empty: give at least one word")
    seen: set[str] = set()
    for place, name in enumerate(names):
        if not name:
            raise ConfigError(f"category {place} is empty: give a word")
        if name == UNKNOWN:
            raise ConfigError(f"category {place} is {UNKNOWN!r}, which is appended by itself")
        if name in seen:
            raise ConfigError(f"category {place}, {name!r}, is there twice: give each once")
        seen.add(name)
    if len(names) > np.iinfo(np.int16).max:
        raise ConfigError(f"{len(names)} categories: at most {np.iinfo(np.int16).max} fit")
    return names


class CategoryWords:
    """Sub-words of each category, for mean embeddings with ``torch.nn.EmbeddingBag``.

    Parameters
    ----------
    categories : sequence of str
        M category words; one category may have several words.
    tokenizer : transformers tokenizer
        Read are ``encode``, the begin (or class) and the end (or separator) token.
    prompt : {"paper", "code"}, optional
        ``"paper"`` lists the categories with commas, as IFSeg's paper prints the prompt. ``"code"``
        begins with a space and strings the sub-words of the categories together, without commas and
        with ``unknown`` at the end, as IFSeg's code does.

    Attributes
    ----------
    names : tuple of str
        The categories, then ``"unknown"``.
    ids : (U,) int64 ndarray
        Sub-words of all names, one after the other; words get a leading space, as inside a text.
    offsets : (M + 1,) int64 ndarray
        Where each name begins in ``ids``.
    prompt_ids : (P,) int64 ndarray
        Begin token, prompt, end token, the two where the tokenizer has them.

    Raises
    ------
    ConfigError
        If a category gives no sub-word, or the prompt is unknown.
    """

    def __init__(
        self, categories: Sequence[str], tokenizer: Any, *, prompt: Prompt = "paper"
    ) -> None:
        check_choice("prompt", prompt, get_args(Prompt))
        self.names = (*check_categories(categories), UNKNOWN)
        bags = [_encode(tokenizer, f" {name}") for name in self.names]
        for name, bag in zip(self.names, bags, strict=True):
            if not bag:
                raise ConfigError(f"the tokenizer gives no token for category {name!r}")
        self.lengths = np.array([len(bag) for bag in bags], np.int64)
        self.offsets = np.cumsum(self.lengths) - self.lengths
        self.ids = np.array([part for bag in bags for part in bag], np.int64)
        if prompt == "paper":
            text = _encode(tokenizer, f"{_QUESTION} {', '.join(self.names[:-1])}")
        else:
            # IFSeg encodes each word behind a space, the first one too.
            text = [*_encode(tokenizer, f" {_QUESTION}"), *self.ids.tolist()]
        begin = _special(tokenizer, "bos_token_id", "cls_token_id")
        end = _special(tokenizer, "eos_token_id", "sep_token_id")
        self.prompt_ids = np.array([*begin, *text, *end], np.int64)

    def bags(self, classes: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Concatenate the sub-words of many visual tokens.

        Parameters
        ----------
        classes : (S,) integer array
            Category of each token; M is ``unknown``.

        Returns
        -------
        ids : (U,) int64
            Sub-words of all tokens, one after the other.
        offsets : (S,) int64
            Where each token begins in ``ids``, from 0: what ``EmbeddingBag`` takes.
        """
        lengths = self.lengths[classes]
        offsets = np.cumsum(lengths) - lengths
        # Place in self.ids = begin of the bag + place in the bag.
        shift = np.repeat(self.offsets[classes] - offsets, lengths)
        return self.ids[np.arange(len(shift)) + shift], offsets

    def class_matrix(self, weight: Tensor) -> Tensor:
        """Average the sub-word embeddings of each name: the matrix that pixels are scored against.

        Parameters
        ----------
        weight : (V, D) Tensor
            Embedding of each sub-word of the tokenizer.

        Returns
        -------
        (M + 1, D) Tensor
            The last row is ``unknown``.
        """
        ids = torch.from_numpy(self.ids).to(weight.device)
        offsets = torch.from_numpy(self.offsets).to(weight.device)
        return F.embedding_bag(ids, weight, offsets, mode="mean")


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _special(tokenizer: Any, *names: str) -> list[int]:
    """The first of these special tokens that the tokenizer has."""
    found = (getattr(tokenizer, name, None) for name in names)
    return next(([number] for number in found if number is not None), [])
