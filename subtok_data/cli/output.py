"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["print_json", "print_table", "say"]


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns; the first is aligned left, the others right.

    Examples
    --------
    >>> print_table(["image", "tokens"], [["cat", "12"], ["astronaut", "7"]])
    image      tokens
    ---------  ------
    cat            12
    astronaut       7
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, ["-" * width for width in widths], *rows):
        cells = [
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def print_json(value: Any) -> None:
    """Print a value for a program to read, on standard output."""
    print(json.dumps(value, indent=2))


def say(message: str) -> None:
    """Tell a person something, on standard error, where it mixes with no output."""
    print(message, file=sys.stderr)
