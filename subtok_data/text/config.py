"""``TextConfig``: which columns are the text of a sample, and how it becomes a sequence."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from subtok_data.arguments import check_choice, check_count, check_text, describe
from subtok_data.errors import ConfigError
from subtok_data.transformers_io import read_pretrained

__all__ = ["TextConfig"]

_FILE = "text_config.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextConfig:
    """Text options of a :class:`~subtok_data.SubobjectCollator`.

    Exactly one form is chosen: ``caption``, ``prompt`` (with ``answer``), or ``messages``. Each
    names a column of the dataset. These columns become ``input_ids`` and ``labels``, and are not in
    the batch themselves, unless the collator's ``columns=`` names them.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        Any transformers tokenizer. Special tokens that it lacks are added to it here, in place: a
        model needs ``resize_token_embeddings(len(tokenizer))`` afterwards.
    caption : str, optional
        Column with one text, supervised: ``[bos] image caption [eos]``.
    prompt, answer : str, optional
        Columns of a question and of its answer, which alone is supervised: ``[bos] image prompt
        answer [eos]``. White space between the two is taken as it stands in the columns.
    messages : str, optional
        Column with a chat, a list of ``{"role": ..., "content": ...}``, which goes through the
        tokenizer's chat template. Content may be text or a list of text and image parts.
    labels : {"assistant", "after_prompt"}
        Chats: supervise the assistant's turns only, or all that follows the first prompt.
    max_length : int, optional
        Limit of a row, visual tokens included. Text is truncated at its end, visual tokens never.
    shrink_tokens : bool
        Lower ``max_tokens`` of an image (neighbours are merged) so that text and visual tokens fit
        in ``max_length``; text keeps at most half of it. Without it a sample whose visual tokens
        do not fit is an error.
    padding_side : {"right", "left"}
        ``"left"`` for generation.
    pad_to_multiple_of : int
        Row lengths are rounded up to this, so that compiled models meet few lengths.
    image_mark : str
        Where an image stands in the text; images are put first when the text has no mark.
    placeholder, start, end : str
        Tokens of the sequence: ``placeholder`` once per visual token, between ``start`` and ``end``
        (``None`` for neither).
    generation : bool
        Leave out what the model shall write (caption, answer, last assistant turn) and open its
        turn. See :meth:`for_generation`.

    Attributes
    ----------
    added_tokens : tuple of str
        Special tokens that the tokenizer lacked; when not empty, the model needs
        ``resize_token_embeddings(len(tokenizer))``.

    Raises
    ------
    ConfigError
        When not exactly one form is chosen, a value is out of its range, or special tokens are
        equal.

    Examples
    --------
    >>> from tokenizers import Tokenizer, models
    >>> from transformers import PreTrainedTokenizerFast
    >>> core = Tokenizer(models.WordLevel({"<pad>": 0, "ball": 1}, unk_token="<pad>"))
    >>> words = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>")
    >>> config = TextConfig(words, caption="text", max_length=64)
    >>> config.added_tokens
    ('<|visual_start|>', '<|visual_token|>', '<|visual_end|>')
    >>> config.placeholder_id, len(words)
    (3, 5)
    >>> config.for_generation().padding_side
    'left'
    >>> TextConfig(words)
    Traceback (most recent call last):
    ...
    subtok_data.errors.ConfigError: choose one of caption=, prompt=, messages= (got 0): ...
    """

    tokenizer: Any
    caption: str | None = None
    prompt: str | None = None
    answer: str | None = None
    messages: str | None = None
    labels: Literal["assistant", "after_prompt"] = "assistant"
    max_length: int | None = None
    shrink_tokens: bool = False
    padding_side: Literal["right", "left"] = "right"
    pad_to_multiple_of: int = 1
    image_mark: str = "<image>"
    placeholder: str = "<|visual_token|>"
    start: str | None = "<|visual_start|>"
    end: str | None = "<|visual_end|>"
    generation: bool = False
    added_tokens: tuple[str, ...] = field(default=(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        forms = [self.caption, self.prompt, self.messages]
        chosen = sum(form is not None for form in forms)
        if chosen != 1:
            raise ConfigError(
                f"choose one of caption=, prompt=, messages= (got {chosen}): each names the column "
                f"of the dataset that holds the text"
            )
        if (self.answer is not None) and self.prompt is None:
            raise ConfigError("answer= belongs to prompt=: name the column of the question")
        if self.prompt is not None and self.answer is None and not self.generation:
            raise ConfigError("prompt= needs answer=, the supervised column (or generation=True)")
        check_choice("labels", self.labels, ("assistant", "after_prompt"))
        check_choice("padding_side", self.padding_side, ("right", "left"))
        _check_tokenizer(self.tokenizer)
        for name in ("caption", "prompt", "answer", "messages"):
            check_text(name, getattr(self, name), "the name of a column", optional=True)
        check_count("max_length", self.max_length, unit="tokens")
        check_count("pad_to_multiple_of", self.pad_to_multiple_of, optional=False)
        if self.shrink_tokens and self.max_length is None:
            raise ConfigError("shrink_tokens=True needs max_length=, the limit to shrink to")
        if not self.image_mark or not self.placeholder:
            raise ConfigError("image_mark and placeholder must not be empty")
        if len(set(self.special_tokens)) != len(self.special_tokens):
            raise ConfigError(
                f"start, placeholder and end must differ, got {list(self.special_tokens)}"
            )
        self._add_special_tokens()

    def _add_special_tokens(self) -> None:
        # Now, and not where the first text is read: a model that is made after this has a place for
        # each of them.
        vocabulary = self.tokenizer.get_vocab()
        added = tuple(token for token in self.special_tokens if token not in vocabulary)
        object.__setattr__(self, "added_tokens", added)
        if not added:
            return
        self.tokenizer.add_special_tokens(
            {"extra_special_tokens": list(added)}, replace_extra_special_tokens=False
        )
        _log.info(
            "added %s to the tokenizer: the model needs model.resize_token_embeddings(%d)",
            ", ".join(added),
            len(self.tokenizer),
        )

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """The tokens of an image in the sequence: start, placeholder and end, where they are."""
        tokens = (self.start, self.placeholder, self.end)
        return tuple(token for token in tokens if token is not None)

    @property
    def placeholder_id(self) -> int:
        """Id of the visual placeholder, for ``use_subobject_tokens`` and merging."""
        return int(self.tokenizer.convert_tokens_to_ids(self.placeholder))

    @property
    def form(self) -> str:
        """Which of the three forms is chosen: "caption", "prompt" or "messages"."""
        if self.caption is not None:
            return "caption"
        return "prompt" if self.prompt is not None else "messages"

    def for_generation(self) -> TextConfig:
        """Return the same text without what the model shall write, padded on the left."""
        return replace(self, generation=True, padding_side="left")

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the options and the tokenizer, its added tokens included, to a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        names = [one.name for one in fields(self) if one.init and one.name != "tokenizer"]
        values = {name: getattr(self, name) for name in names}
        (folder / _FILE).write_text(json.dumps(values, indent=2) + "\n")
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> TextConfig:
        """Read what :meth:`save_pretrained` wrote.

        Raises
        ------
        ConfigError
            Nothing was written there.
        WeightsError
            The tokenizer needs Python code that comes with the folder.
        """
        from transformers import AutoTokenizer

        path = Path(folder) / _FILE
        if not path.is_file():
            raise ConfigError(f"{path} does not exist: give a folder written by save_pretrained")
        return cls(read_pretrained(AutoTokenizer, folder), **json.loads(path.read_text()))


def _check_tokenizer(tokenizer: Any) -> None:
    """Raise ConfigError for what is not a tokenizer of transformers."""
    if hasattr(tokenizer, "token_to_id"):
        raise ConfigError(
            f"tokenizer is a {type(tokenizer).__name__} of the package tokenizers, expected a "
            "transformers tokenizer: give "
            'PreTrainedTokenizerFast(tokenizer_object=…, pad_token="…", eos_token="…")'
        )
    wanted = ("get_vocab", "add_special_tokens", "convert_tokens_to_ids")
    if isinstance(tokenizer, type) or not all(hasattr(tokenizer, name) for name in wanted):
        raise ConfigError(
            f"tokenizer is {describe(tokenizer)}, expected a transformers tokenizer: give "
            'AutoTokenizer.from_pretrained("…")'
        )
