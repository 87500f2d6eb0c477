"""Partition of an image into tokens, and what a partitioner is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from subtok_data.errors import ConfigError

__all__ = [
    "Evidence",
    "FieldRule",
    "Partition",
    "Partitioner",
    "TokenMap",
    "as_partitioner",
    "token_dtype",
]

Evidence = Mapping[str, NDArray[Any]]
FieldRule = Literal["largest", "max", "min", "mean"]
TokenMap = NDArray[np.int16 | np.int32]


def token_dtype(num_tokens: int) -> type[np.int16] | type[np.int32]:
    """Choose the smallest dtype of a token map: int16, or int32 above 32,767 tokens.

    Examples
    --------
    >>> token_dtype(32_767).__name__, token_dtype(32_768).__name__
    ('int16', 'int32')
    """
    return np.int16 if num_tokens <= np.iinfo(np.int16).max else np.int32


@dataclass(frozen=True, eq=False)
class Partition:
    """Assignment of every pixel of an image to one token.

    Parameters
    ----------
    token_map : (H, W) int16 or int32
        Token of each pixel, 0..num_tokens-1, every one of them present. −1 marks pixels without a
        token; only a budget with ``overflow="drop"`` makes such pixels.
    num_tokens : int
        Number of tokens, at least 1.
    cost_map : (H, W) uint8, optional
        Boundary strength, by which neighbours merge; without it they merge by colour or by area
        (:func:`~subtok_data.segment.apply_budget`).
    token_fields : mapping of str to (N, ...) array
        Values per token: class, source, prompt, score.
    field_rules : mapping of str to {"largest", "max", "min", "mean"}
        What a merged token gets: the value of its largest part (default; a protected part goes
        before all others), or the highest, lowest or area-weighted mean value of its parts.
    protected : (N,) bool, optional
        Prompted tokens. They are neither too small nor too many while others can merge instead: a
        budget merges the others with one another first, then those that are left with a protected
        neighbour, and two protected ones only where the limit cannot be kept otherwise.

    Raises
    ------
    ValueError
        Shapes that do not fit together, or an unknown rule.

    Examples
    --------
    >>> Partition(np.array([[0, 1]], np.int16), 2).num_tokens
    2
    """

    token_map: TokenMap
    num_tokens: int
    cost_map: NDArray[np.uint8] | None = None
    token_fields: Mapping[str, NDArray[Any]] = field(default_factory=dict[str, NDArray[Any]])
    field_rules: Mapping[str, FieldRule] = field(default_factory=dict[str, FieldRule])
    protected: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        if self.token_map.ndim != 2 or self.token_map.dtype.name not in ("int16", "int32"):
            raise ValueError(
                f"token_map of shape {self.token_map.shape}, dtype {self.token_map.dtype}: "
                "expected (H, W) int16 or int32"
            )
        if self.num_tokens < 1:
            raise ValueError(f"num_tokens={self.num_tokens}: a partition has at least one token")
        if self.cost_map is not None and (
            self.cost_map.shape != self.token_map.shape or self.cost_map.dtype != np.uint8
        ):
            raise ValueError(
                f"cost_map of shape {self.cost_map.shape}, dtype {self.cost_map.dtype}: "
                f"expected {self.token_map.shape} uint8, as the token map"
            )
        for name, values in self.token_fields.items():
            if len(values) != self.num_tokens:
                raise ValueError(
                    f"token_fields[{name!r}] has {len(values)} rows: expected one per token, "
                    f"{self.num_tokens}"
                )
        if self.protected is not None and (
            self.protected.shape != (self.num_tokens,) or self.protected.dtype != np.bool_
        ):
            raise ValueError(
                f"protected of shape {self.protected.shape}, dtype {self.protected.dtype}: "
                f"expected ({self.num_tokens},) bool, one per token"
            )
        for name, rule in self.field_rules.items():
            if rule not in get_args(FieldRule):
                raise ValueError(
                    f"field_rules[{name!r}]={rule!r}: expected one of {get_args(FieldRule)}"
                )


class Partitioner(ABC):
    """Base class of what turns evidence into a partition; picklable, and free of torch.

    A subclass defines :meth:`__call__`, and overrides the rest where it can do better. A plain
    function, or an object with some of these members, serves too (:func:`as_partitioner`).

    Examples
    --------
    >>> class OneToken(Partitioner):
    ...     def __call__(self, evidence, size):
    ...         return Partition(np.zeros(size, np.int16), 1)
    >>> OneToken()({}, (2, 3)).num_tokens, OneToken().has_cost_map
    (1, False)
    """

    @property
    def name(self) -> str:
        """Name in messages."""
        return type(self).__name__

    @property
    def has_cost_map(self) -> bool:
        """Whether its partitions have a cost map; False by default."""
        return False

    def for_num_tokens(self, num_tokens: int) -> Partitioner:  # noqa: ARG002
        """Return a partitioner fine enough for a number of tokens to remain after merging.

        Parameters
        ----------
        num_tokens : int
            Tokens wanted after merging, at least 1.

        Returns
        -------
        Partitioner
            By default this one: it is as fine as it can be.

        Raises
        ------
        ConfigError
            The partitioner was given another control of granularity.
        """
        return self

    def for_strength(self, strength: float) -> Partitioner:
        """Return a partitioner fine enough for tokens to be merged by strength.

        Parameters
        ----------
        strength : float
            Borders of this strength or less are merged across, from 0 to 1.

        Returns
        -------
        Partitioner
            By default this one: it is as fine as it can be.

        Raises
        ------
        ConfigError
            The partitioner has no cost map, or was given another control of granularity.
        """
        if not self.has_cost_map:
            raise ConfigError(
                f"strength={strength}: {self.name} gives no boundary map to measure borders on; "
                "give num_tokens or max_tokens, or use a segmenter with a boundary map"
            )
        return self

    @abstractmethod
    def __call__(self, evidence: Evidence, size: tuple[int, int]) -> Partition:
        """Partition an image.

        Parameters
        ----------
        evidence : mapping of str to array
            What a model, or the caller, found in this image. The class says what it reads.
        size : (H, W)
            Size of the image in pixels.

        Returns
        -------
        Partition
            Its token map is (H, W), and not used elsewhere: the caller may overwrite it.

        Raises
        ------
        ValueError
            Evidence that is missing, malformed, or of another size than the image.
        """


@dataclass(frozen=True)
class _Adapter(Partitioner):
    """A partitioner that does not inherit from the base class, with its defaults."""

    function: Callable[[Evidence, tuple[int, int]], Partition]

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)

    @property
    def has_cost_map(self) -> bool:
        return bool(getattr(self.function, "has_cost_map", False))

    def for_num_tokens(self, num_tokens: int) -> Partitioner:
        refine = getattr(self.function, "for_num_tokens", None)
        return self if refine is None else as_partitioner(refine(num_tokens))

    def for_strength(self, strength: float) -> Partitioner:
        refine = getattr(self.function, "for_strength", None)
        return (
            super().for_strength(strength) if refine is None else as_partitioner(refine(strength))
        )

    def __call__(self, evidence: Evidence, size: tuple[int, int]) -> Partition:
        return self.function(evidence, size)


def as_partitioner(
    partitioner: Callable[[Evidence, tuple[int, int]], Partition],
) -> Partitioner:
    """Adapt a callable from evidence and size to a partition.

    Parameters
    ----------
    partitioner : callable
        A :class:`Partitioner`, a function, or an object that may have ``has_cost_map``,
        ``for_num_tokens`` and ``for_strength``.

    Returns
    -------
    Partitioner
        The argument itself where it is one already.

    Examples
    --------
    >>> as_partitioner(lambda evidence, size: Partition(np.zeros(size, np.int16), 1)).has_cost_map
    False
    """
    return partitioner if isinstance(partitioner, Partitioner) else _Adapter(partitioner)
