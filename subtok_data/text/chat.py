"""Render chats as one text, and find the parts of it that are supervised."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from subtok_data.errors import ConfigError, SampleError

__all__ = ["Spans", "flatten_messages", "render_chat"]

Spans = list[tuple[int, int]]
"""Half-open character ranges of a text."""

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def flatten_messages(messages: Any, image_mark: str) -> list[dict[str, Any]]:
    """Check a chat and turn contents made of parts into text with image marks.

    Examples
    --------
    >>> parts = [{"type": "image"}, {"type": "text", "text": "Who?"}]
    >>> flatten_messages([{"role": "user", "content": parts}], "<image>")
    [{'role': 'user', 'content': '<image>Who?'}]
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise SampleError(f"a chat must be a list of messages, got {messages!r:.80}")
    flat: list[dict[str, Any]] = []
    for message in messages:
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise SampleError(f"a message needs 'role' and 'content', got {message!r:.80}")
        content: Any = message["content"]
        if not isinstance(content, str):
            content = "".join(_part(part, image_mark) for part in content)
        flat.append({**message, "content": content})
    return flat


def _part(part: Any, image_mark: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "image":
        return image_mark
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    raise SampleError(f"a content part must be of type 'text' or 'image', got {part!r:.80}")


def _apply(tokenizer: Any, messages: list[dict[str, Any]], *, open_turn: bool) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_turn)


def _marked_spans(tokenizer: Any, messages: list[dict[str, Any]]) -> tuple[str, Spans]:
    """Text and assistant spans by the template's own ``{% generation %}`` marks."""
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered: Any = render_jinja_template(
        conversations=[messages],
        chat_template=tokenizer.get_chat_template(),
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    texts, spans = rendered
    return texts[0], [(int(start), int(stop)) for start, stop in spans[0]]


def _turn_spans(tokenizer: Any, messages: list[dict[str, Any]]) -> tuple[str, Spans]:
    """Text and assistant spans from what each turn adds to the text of those before it."""
    text = _apply(tokenizer, messages, open_turn=False)
    spans: Spans = []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        # A turn starts where the model would be asked to write, and ends with its last mark; the
        # white space after that is never generated.
        after = _apply(tokenizer, messages[: turn + 1], open_turn=False).rstrip()
        written = _written(tokenizer, messages[: turn + 1])
        if written is None or not (after.endswith(written) and text.startswith(after)):
            raise ConfigError(
                f"the chat template rewrites earlier turns, so the assistant's part of turn {turn} "
                f"cannot be found: mark it in the template with {{% generation %}}"
            )
        spans.append((len(after) - len(written), len(after)))
    return text, spans


def _written(tokenizer: Any, messages: list[dict[str, Any]]) -> str | None:
    """What the model writes in the last turn; None where the template does not show it."""
    if len(messages) == 1:
        # Nothing comes before the turn, and templates open no turn of an empty chat: what the model
        # writes is the same behind a question.
        messages = [{"role": "user", "content": "?"}, *messages]
    before = _apply(tokenizer, messages[:-1], open_turn=True)
    after = _apply(tokenizer, messages, open_turn=False).rstrip()
    return after.removeprefix(before) if after.startswith(before) else None


def render_chat(
    tokenizer: Any, messages: list[dict[str, Any]], *, labels: str, generation: bool
) -> tuple[str, Spans]:
    """Render a chat as text, with the spans to supervise.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        With a chat template.
    messages : list of dict
        From :func:`flatten_messages`.
    labels : {"assistant", "after_prompt"}
        What to supervise.
    generation : bool
        Leave out the last assistant turn and open it instead; nothing is supervised.

    Returns
    -------
    text : str
    spans : list of (int, int)
        Supervised characters.
    """
    if not tokenizer.chat_template:
        raise ConfigError("the tokenizer has no chat template: set tokenizer.chat_template")
    if generation:
        while messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        if not messages:
            raise SampleError("the chat has no message before the assistant's to answer")
        return _apply(tokenizer, messages, open_turn=True), []
    marked = _GENERATION.search(tokenizer.get_chat_template()) is not None
    text, spans = (_marked_spans if marked else _turn_spans)(tokenizer, messages)
    if not spans:
        raise SampleError("the chat has no assistant turn to supervise")
    if labels == "after_prompt":
        spans = [(spans[0][0], len(text.rstrip()))]
    return text, spans
