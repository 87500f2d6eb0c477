"""One row of a dataset as decoded images and columns."""

from __future__ import annotations

from dataclasses import dataclass

from subtok_data.errors import ConfigError

__all__ = ["Replacement", "check_on_error"]


@dataclass(frozen=True, slots=True)
class Replacement:
    """One sample that could not be used, and what stands in its place.

    Attributes
    ----------
    index : int
        Dataset index that was asked for, -1 if unknown.
    used : int
        Dataset index that was taken instead, -1 if unknown.
    reason : str
        Why.
    """

    index: int
    used: int
    reason: str


def check_on_error(on_error: str) -> str:
    """Refuse an unknown policy for bad samples."""
    if on_error not in ("raise", "replace"):
        raise ConfigError(f"on_error must be 'raise' or 'replace', got {on_error!r}")
    return on_error
