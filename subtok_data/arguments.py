"""Checks of what users pass: every public class refuses a wrong value in the same words."""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast

import numpy as np

from subtok_data.errors import ConfigError

__all__ = [
    "check_callable",
    "check_choice",
    "check_count",
    "check_flag",
    "check_number",
    "check_share",
    "check_text",
    "check_type",
    "compare_options",
    "describe",
    "similar_names",
]

T = TypeVar("T")
_SHOWN = 60
"""Characters of a value in a message."""


def describe(value: object) -> str:
    """Say in a few words what a value is, for messages.

    Examples
    --------
    >>> describe("gpu"), describe(dict), describe([1, 2]), describe(None)
    ("the string 'gpu'", 'the class dict', 'a list of 2', 'None')
    >>> describe(np.zeros((2, 3)))
    'an array of shape (2, 3), float64'
    """
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, str):
        return f"the string {_shortened(repr(value))}"
    if isinstance(value, numbers.Number):
        return f"the number {value!r}"
    if isinstance(value, np.ndarray):
        array = cast("np.ndarray[Any, Any]", value)
        return f"an array of shape {array.shape}, {array.dtype}"
    name = type(value).__name__
    article = "an" if name[:1].lower() in "aeiou" else "a"
    if isinstance(value, dict):
        keys = list(cast("dict[Any, Any]", value))
        return f"{article} {name} with the keys {_shortened(repr(keys))}"
    if isinstance(value, list | tuple | set | frozenset):
        return f"{article} {name} of {len(cast('list[Any]', value))}"
    return f"{article} {name}"


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def check_type(
    name: str, value: object, kind: type[T] | tuple[type[T], ...], remedy: str, *, noun: str = ""
) -> T:
    """Return an option that is of the right class.

    Parameters
    ----------
    name : str
        Of the option.
    value : object
        What was given.
    kind : class or tuple of classes
        What it must be.
    remedy : str
        What to give instead, for the message.
    noun : str, optional
        What the option must be, where the name of the class does not say it.

    Raises
    ------
    ConfigError
        It is something else, also the class in place of an instance of it.

    Examples
    --------
    >>> check_type("text", "gpt2", dict, "give text={}")
    Traceback (most recent call last):
    ...
    subtok_data.errors.ConfigError: text is the string 'gpt2', expected a dict: give text={}
    """
    if isinstance(value, kind):
        return value
    kinds = kind if isinstance(kind, tuple) else (kind,)
    wanted = noun or f"a {' or '.join(one.__name__ for one in kinds)}"
    if isinstance(value, type) and issubclass(value, kinds):
        remedy = f"give an instance of it, {name}={value.__name__}(…)"
    raise ConfigError(f"{name} is {describe(value)}, expected {wanted}: {remedy}")


def check_callable(name: str, value: object, remedy: str) -> None:
    """Raise ConfigError unless an option can be called, or is None; see :func:`check_type`."""
    if value is not None and not callable(value):
        raise ConfigError(f"{name} is {describe(value)}, expected a callable: {remedy}")


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise ConfigError unless an option is one of some strings.

    Examples
    --------
    >>> check_choice("order", "size", ("area", "raster"))
    Traceback (most recent call last):
    ...
    subtok_data.errors.ConfigError: order='size': expected one of ('area', 'raster')
    """
    known = tuple(choices)
    # The type first: an array would be compared with each.
    if not isinstance(value, str) or value not in known:
        raise ConfigError(f"{name}={value!r}: expected one of {known}")


def check_text(name: str, value: object, meaning: str, *, optional: bool = False) -> None:
    """Raise ConfigError unless an option is a string that is not empty, or None.

    Examples
    --------
    >>> check_text("image_column", ["image"], "the key of the image in dict rows")
    Traceback (most recent call last):
    ...
    subtok_data.errors.ConfigError: image_column is a list of 1, expected a string, the key ...
    """
    if value is None and optional:
        return
    if not isinstance(value, str) or not value:
        or_none = ", or None" if optional else ""
        raise ConfigError(f"{name} is {describe(value)}, expected a string, {meaning}{or_none}")


def check_flag(name: str, value: object) -> None:
    """Raise ConfigError unless an option is True or False: the string "no" counts as true.

    Examples
    --------
    >>> check_flag("square", "no")
    Traceback (most recent call last):
    ...
    subtok_data.errors.ConfigError: square='no': expected True or False
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ConfigError(f"{name}={value!r}: expected True or False")


def check_count(
    name: str, count: object, *, least: int = 1, optional: bool = True, unit: str = ""
) -> None:
    """Raise ConfigError unless an option is a whole number of at least ``least``, or None.

    Parameters
    ----------
    name : str
        Of the option.
    count : object
        What was given.
    least : int, optional
        Smallest value.
    optional : bool, optional
        Whether it may be None.
    unit : str, optional
        Of the number, for the message.

    Examples
    --------
    >>> check_count("num_tokens", 2.5)
    Traceback (most recent call last):
    ...
    subtok_data.errors.ConfigError: num_tokens=2.5: expected a whole number of at least 1, or None
    """
    if count is None and optional:
        return
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < least:
        raise ConfigError(
            f"{name}={count!r}: expected a whole number of at least {least}"
            f"{f', in {unit}' if unit else ''}{', or None' if optional else ''}"
        )


def check_number(
    name: str, value: object, *, above: float, below: float = float("inf"), unit: str = ""
) -> None:
    """Raise ConfigError unless an option is a finite number between two bounds.

    Examples
    --------
    >>> check_number("timeout_s", "3", above=0, unit="seconds")
    Traceback (most recent call last):
    ...
    subtok_data.errors.ConfigError: timeout_s='3': expected a number above 0, in seconds
    """
    if not _is_number(value) or not above < cast("float", value) < below:
        upper = f" and below {below}" if below < float("inf") else ""
        raise ConfigError(
            f"{name}={value!r}: expected a number above {above}{upper}"
            f"{f', in {unit}' if unit else ''}"
        )


def check_share(name: str, value: object) -> None:
    """Raise ConfigError unless an option is a number from 0 to 1.

    Examples
    --------
    >>> check_share("min_iou", 1.5)
    Traceback (most recent call last):
    ...
    subtok_data.errors.ConfigError: min_iou=1.5: expected a number from 0 to 1
    """
    if not _is_number(value) or not 0 <= cast("float", value) <= 1:
        raise ConfigError(f"{name}={value!r}: expected a number from 0 to 1")


def _is_number(value: object) -> bool:
    real = (int, float, np.integer, np.floating)
    return isinstance(value, real) and not isinstance(value, bool)


def similar_names(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the known name most like one, or nothing.

    Examples
    --------
    >>> similar_names("num_worker", ["batch_size", "num_workers"])
    "; did you mean 'num_workers'?"
    >>> similar_names("colour", ["batch_size"])
    ''
    """
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def compare_options(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[str, str] | None:
    """List the options that two configurations do not share, as each has them, if there are any.

    Examples
    --------
    >>> compare_options({"size": 64, "budget": {"order": "area"}}, {"size": 32, "order": "area"})
    ('size 64', 'size 32')
    """
    old, new = _flat(found), _flat(wanted)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if not names:
        return None
    have, want = (
        ", ".join(f"{name} {options.get(name)!r}" for name in names) for options in (old, new)
    )
    return have, want


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        inner = cast("Mapping[str, Any]", value)
        flat.update(_flat(inner) if isinstance(value, dict) else {name: value})
    return flat
