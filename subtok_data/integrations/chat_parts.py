"""Chat templates that know text only, made to take messages of text and image parts."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["template_with_parts"]

_PRELUDE = """\
{%- set subtok = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message.content is iterable and message.content is not string -%}
{%- set joined = namespace(text='') -%}
{%- for part in message.content -%}
{%- set joined.text = joined.text ~ (IMAGE if part.type == 'image' else part.text) -%}
{%- endfor -%}
{%- set subtok.messages = subtok.messages + [dict(message, content=joined.text)] -%}
{%- else -%}
{%- set subtok.messages = subtok.messages + [message] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = subtok.messages %}
"""
_PROBE = "subtok-probe"


def template_with_parts(template: str, tokenizer: Any, image_token: str) -> str:
    """Return a chat template that writes ``image_token`` where a message has an image.

    Templates of vision-language models do so already and are left alone. Those of language models
    would write the Python list of parts: before them goes a piece of template that joins the parts
    to one text. What they write for messages of plain text stays the same.

    Parameters
    ----------
    template : str
        In Jinja, as transformers renders it.
    tokenizer : PreTrainedTokenizerBase
        Renders it.
    image_token : str
        Mark of an image.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from transformers.utils.chat_template_utils import render_jinja_template
    >>> def render(messages, chat_template, tokenize):
    ...     return render_jinja_template([messages], chat_template=chat_template)[0][0]
    >>> tokenizer = SimpleNamespace(apply_chat_template=render)
    >>> template = "{% for message in messages %}[{{ message.content }}]{% endfor %}"
    >>> parts = [{"type": "image"}, {"type": "text", "text": "Who?"}]
    >>> render([{"role": "user", "content": parts}], template, False)[:20]
    "[[{'type': 'image'},"
    >>> template = template_with_parts(template, tokenizer, "<image>")
    >>> render([{"role": "user", "content": parts}], template, False)
    '[<image>Who?]'
    """
    if _understands_parts(template, tokenizer, image_token):
        return template
    # transformers has Jinja drop the line break behind a tag: the prelude writes nothing.
    return _PRELUDE.replace("IMAGE", json.dumps(image_token)) + template


def _understands_parts(template: str, tokenizer: Any, image_token: str) -> bool:
    content = [{"type": "image"}, {"type": "text", "text": _PROBE}]
    messages = [{"role": "user", "content": content}]
    try:
        text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    except Exception:  # templates of text raise whatever a list does to them
        return False
    return image_token in text and _PROBE in text and f"'{_PROBE}'" not in text
