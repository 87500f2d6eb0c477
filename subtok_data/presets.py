"""Tokenizers by name: the one table of ``SubobjectTokenizer.preset``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from subtok_data.arguments import check_choice

__all__ = ["PRESETS", "Preset", "find_preset"]


@dataclass(frozen=True)
class Preset:
    """Options of a tokenizer under a name.

    Attributes
    ----------
    meaning : str
        What it gives, in the words of ``docs/tokenizers.md``.
    options : mapping of str to Any
        Arguments of :class:`~subtok_data.SubobjectTokenizer`, ``threshold`` of its segmenter.
    """

    meaning: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))


def _paper(threshold: float) -> Preset:
    options = {"threshold": threshold, "min_area": 0, "size": 768, "square": True}
    options["full_decode"] = True
    return Preset(f"the paper's: threshold {threshold}, 768 × 768, crumbs and all", options)


def _exact(count: int) -> Preset:
    return Preset(f"exactly {count} tokens", {"num_tokens": count, "size": 512})


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        **{f"paper-{threshold}": _paper(threshold) for threshold in (0.1, 0.3, 0.5)},
        **{f"exact-{count}": _exact(count) for count in (36, 64, 144, 256)},
        "adaptive": Preset(
            "as many as the image has strong borders", {"strength": 0.4, "size": 512}
        ),
    }
)
"""All presets; what they give does not change from version to version."""


def find_preset(name: str) -> Preset:
    """Return a preset by name.

    Raises
    ------
    ConfigError
        No such name; the message lists all.

    Examples
    --------
    >>> dict(find_preset("exact-64").options)
    {'num_tokens': 64, 'size': 512}
    >>> find_preset("exact")
    Traceback (most recent call last):
    ...
    subtok_data.errors.ConfigError: preset='exact': ...
    """
    check_choice("preset", name, PRESETS)
    return PRESETS[name]
