"""Subobject tokens for vision-language models, as a PyTorch data loader.

The public names are imported on first use, so that ``subtok_data.segment``, which runs in worker
processes, starts without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from subtok_data.segment.watershed import watershed_tokens

__version__ = "0.1.0.dev0"

_HOME = {
    "watershed_tokens": "subtok_data.segment.watershed",
}

__all__ = [
    "watershed_tokens",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
