"""Limits on the tokens of an image, and merging of a partition down to them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from subtok_data.arguments import check_choice, check_count, check_number, check_share
from subtok_data.errors import ConfigError
from subtok_data.segment.geometry import measure, order_tokens
from subtok_data.segment.merging import MergeCost, check_merge, merge_hierarchy
from subtok_data.segment.partition import Partition

__all__ = ["Budget", "Overflow", "apply_budget"]

Overflow = Literal["merge", "drop"]


@dataclass(frozen=True)
class Budget:
    """Limits on the tokens of one image.

    Parameters
    ----------
    num_tokens : int, optional
        Merge to exactly so many; a partition that is coarser already stays as it is.
    strength : float, optional
        Merge across all borders of this strength or less, from 0 to 1: the mean boundary
        probability that the border of a token of one hundredth of the image needs to last; smaller
        tokens need more. Needs partitions with a cost map. Not together with ``num_tokens``.
    max_tokens : int, optional
        Merge to at most so many.
    min_area : int
        Merge tokens of fewer pixels into a neighbour.
    merge : {"balanced", "boundary"}
        Cost by which neighbours merge, see
        ``merge_hierarchy``.
    overflow : {"merge", "drop"}
        Merge the tokens beyond ``max_tokens``, or drop them as in the paper (EPOC): the largest
        ``max_tokens`` stay, protected ones before others, and the pixels of the rest belong to no
        token.

    Raises
    ------
    ConfigError
        A value out of range, or two that contradict each other.

    Examples
    --------
    >>> Budget(max_tokens=256).capped(100).max_tokens
    100
    """

    num_tokens: int | None = None
    strength: float | None = None
    max_tokens: int | None = None
    min_area: int = 0
    merge: MergeCost = "balanced"
    overflow: Overflow = "merge"

    def __post_init__(self) -> None:
        check_controls(num_tokens=self.num_tokens, strength=self.strength)
        if self.strength is not None:  # of one type, so that equal options have equal hashes
            object.__setattr__(self, "strength", float(self.strength))
        check_count("max_tokens", self.max_tokens)
        check_count("min_area", self.min_area, least=0, optional=False)
        check_merge(self.merge)
        check_choice("overflow", self.overflow, get_args(Overflow))
        if self.overflow == "drop" and (self.max_tokens is None or self.num_tokens is not None):
            raise ConfigError(
                'overflow="drop" drops the tokens beyond max_tokens: give max_tokens, and leave '
                "out num_tokens"
            )
        if self.num_tokens and self.max_tokens and self.num_tokens > self.max_tokens:
            raise ConfigError(
                f"num_tokens={self.num_tokens} is above max_tokens={self.max_tokens}: "
                "leave out one of them"
            )

    @property
    def merges(self) -> bool:
        """Whether tokens may have to merge."""
        limited = self.num_tokens is not None or self.max_tokens is not None
        return (
            self.min_area > 1 or self.strength is not None or (limited and self.overflow == "merge")
        )

    def capped(self, max_tokens: int) -> Budget:
        """Return the budget for an image that has room for ``max_tokens`` only.

        Parameters
        ----------
        max_tokens : int
            At least 1. It lowers ``num_tokens`` where that is given, else ``max_tokens``.

        Returns
        -------
        Budget
            Of the same options; itself where it stays within ``max_tokens`` already.

        Examples
        --------
        >>> Budget(num_tokens=60).capped(40).num_tokens
        40
        """
        own = self.max_tokens if self.num_tokens is None else self.num_tokens
        if own is not None and own <= max_tokens:
            return self
        if self.num_tokens is None:
            return replace(self, max_tokens=max_tokens)
        return replace(self, num_tokens=max_tokens)


def check_controls(
    *,
    threshold: float | None = None,
    num_tokens: int | None = None,
    strength: float | None = None,
) -> None:
    """Raise ConfigError for a control of granularity out of range, or two at once."""
    controls = {"threshold": threshold, "num_tokens": num_tokens, "strength": strength}
    given = [f"{name}={value!r}" for name, value in controls.items() if value is not None]
    if len(given) > 1:
        raise ConfigError(
            f"{' and '.join(given[:2])}: both control how fine the tokens are; "
            "leave out one of them"
        )
    if threshold is not None:
        check_number("threshold", threshold, above=0, below=1)
    check_count("num_tokens", num_tokens)
    if strength is not None:
        check_share("strength", strength)


def apply_budget(
    partition: Partition, budget: Budget, image: NDArray[np.uint8] | None = None
) -> Partition:
    """Merge, or drop, tokens of a partition until it is within a budget.

    Parameters
    ----------
    partition : Partition
        Any; tokens merge by its cost map where it has one.
    budget : Budget
        The limits.
    image : (H, W, 3) uint8, optional
        For partitions without a cost map: their tokens merge by colour.

    Returns
    -------
    Partition
        Covers what ``partition`` covers, unless ``overflow="drop"``. It has fewer tokens than
        ``num_tokens`` only if ``partition`` had, or ``min_area`` left fewer.

    Raises
    ------
    ConfigError
        ``strength`` for a partition without a cost map.
    ValueError
        Pixels without a token separate the others, so that too few of them can merge.

    Examples
    --------
    >>> partition = Partition(np.array([[0, 1, 2]], np.int16), 3)
    >>> apply_budget(partition, Budget(max_tokens=2)).num_tokens
    2
    """
    num_tokens = partition.num_tokens
    max_tokens = budget.max_tokens if budget.num_tokens is None else budget.num_tokens
    if max_tokens is not None and budget.overflow == "merge":
        num_tokens = min(num_tokens, max_tokens)
    strength = budget.strength
    if num_tokens < partition.num_tokens or budget.min_area > 1 or strength is not None:
        hierarchy = merge_hierarchy(
            partition,
            merge=budget.merge,
            min_area=budget.min_area,
            num_tokens=num_tokens,
            strength=strength,
            image=image,
        )
        partition = hierarchy.cut(num_tokens, strength)
        if partition.num_tokens > num_tokens:
            raise ValueError(
                f"{partition.num_tokens} groups of tokens do not touch each other, so they cannot "
                f'be merged to {num_tokens}: allow more, or use overflow="drop"'
            )
    if max_tokens is not None and partition.num_tokens > max_tokens:
        return _drop(partition, max_tokens)
    return partition


def _drop(partition: Partition, max_tokens: int) -> Partition:
    from subtok_data.segment.kernels import relabel

    geometry = measure(partition.token_map, partition.num_tokens)
    order = order_tokens(geometry, "area")
    protected = partition.protected
    if protected is not None:
        order = order[np.argsort(~protected[order], kind="stable")]
    kept = np.sort(order[:max_tokens])
    labels = np.full(partition.num_tokens, -1, np.int64)
    labels[kept] = np.arange(max_tokens)
    token_map = np.empty_like(partition.token_map)
    relabel(np.require(partition.token_map, requirements=["C", "W"]), labels, token_map)
    fields: dict[str, NDArray[Any]] = {
        name: values[kept] for name, values in partition.token_fields.items()
    }
    return Partition(
        token_map,
        max_tokens,
        partition.cost_map,
        fields,
        partition.field_rules,
        None if protected is None else protected[kept],
    )
