"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Sequence
from typing import Any

__all__ = ["name_options", "print_json", "print_table", "say"]

_RENAMED = {"num_workers": "workers"}
"""Options of Python that the commands call otherwise."""
_OPTION = re.compile(r"(?<![\w.(\-\"'])([a-z]+(?:_[a-z]+)*)(=|(?![\w=(]))")


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


def name_options(message: str, options: Collection[str]) -> str:
    """Write the options of Python that a message speaks of as those of a command.

    Parameters
    ----------
    message : str
        Of an exception.
    options : collection of str
        Of the command, as Python names them.

    Examples
    --------
    >>> options = ["num_tokens", "max_tokens", "size"]
    >>> name_options("num_tokens=0: expected a whole number of at least 1, or None", options)
    '--num-tokens 0: expected a whole number of at least 1'
    >>> name_options("a size below 8; give num_tokens or max_tokens", options)
    'a size below 8; give --num-tokens or --max-tokens'
    """

    def written(found: re.Match[str]) -> str:
        name, value = _RENAMED.get(found[1], found[1]), found[2]
        # A name of one word is an option where a value follows it, and else a word.
        if name not in options or not (value or "_" in found[1]):
            return found[0]
        return f"--{name.replace('_', '-')}{' ' if value else ''}"

    return re.sub(r", or None( for [^;.]*)?", "", _OPTION.sub(written, message))
