"""A picture cut into tokens, and what cuts it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = ["Evidence", "FieldRule", "Partition", "Partitioner", "TokenMap", "token_dtype"]
Evidence = Mapping[str, NDArray[Any]]
FieldRule = Literal["largest", "max", "min", "mean"]
TokenMap = NDArray[np.int16 | np.int32]
_RULES = ("largest", "max", "min", "mean")


def token_dtype(num_tokens: int) -> type[np.int16] | type[np.int32]:
    """Smallest dtype of a token map: int16, or int32 above 32,767 tokens.

    Examples
    --------
    >>> token_dtype(32_767).__name__, token_dtype(32_768).__name__
    ('int16', 'int32')
    """
    return np.int16 if num_tokens <= np.iinfo(np.int16).max else np.int32


@dataclass(frozen=True, eq=False)
class Partition:
    """Every pixel of a picture in one token.

    Parameters
    ----------
    token_map : (H, W) int16 or int32
        Token of each pixel, 0..num_tokens-1, every one of them present. −1 marks pixels without a
        token; only a budget with ``overflow="drop"`` makes such pixels.
    num_tokens : int
        Number of tokens, at least 1.
    cost_map : (H, W) uint8, optional
        Boundary strength. Neighbours merge in the order of what this map shows along their common
        border; without it, by colour or by area (:func:`~subtok_data.segment.apply_budget`).
    token_fields : mapping of str to (N, ...) array
        Values per token: class, source, prompt, score.
    field_rules : mapping of str to {"largest", "max", "min", "mean"}
        What a merged token gets: the value of its largest part (default; a protected part goes
        before all others), or the highest, lowest or area-weighted mean value of its parts.
    protected : (N,) bool, optional
        Tokens that were asked for. They are neither too small nor too many while others can merge
        instead: a budget merges the others with one another first, then those that are left with a
        protected neighbour, and two protected ones only where the limit cannot be kept otherwise.

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
            if rule not in _RULES:
                raise ValueError(f"field_rules[{name!r}]={rule!r}: expected one of {_RULES}")


@runtime_checkable
class Partitioner(Protocol):
    """Cuts a picture from named evidence; picklable, and free of torch.

    A partitioner may also have ``for_num_tokens(n) -> Partitioner``, which gives one that cuts
    finely enough for ``n`` tokens to remain after merging.
    """

    def __call__(self, evidence: Evidence, size: tuple[int, int], /) -> Partition:
        """Cut a picture.

        Parameters
        ----------
        evidence : mapping of str to array
            What a model, or the caller, found in this picture.
        size : (H, W)
            Size of the picture in pixels.

        Returns
        -------
        Partition
            Its token map is (H, W), and not used elsewhere: the caller may overwrite it.
        """
        ...
