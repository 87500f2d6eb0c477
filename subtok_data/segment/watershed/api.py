"""Tokens from a boundary map in one call: seeds, flood, and merging to a number."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import product
from typing import TypeVar, cast, overload

from numpy.typing import ArrayLike

from subtok_data.errors import ConfigError
from subtok_data.images import image_size
from subtok_data.segment.budget import Budget, apply_budget
from subtok_data.segment.geometry import Order, arrange, check_order
from subtok_data.segment.merging import MergeCost, merge_hierarchy
from subtok_data.segment.partition import Partition, TokenMap
from subtok_data.segment.watershed.flood import Backend
from subtok_data.segment.watershed.partitioner import WatershedPartitioner
from subtok_data.segment.watershed.quantization import quantize

__all__ = ["watershed_tokens"]

Value = TypeVar("Value", int, float)


@overload
def watershed_tokens(
    boundary_map: ArrayLike,
    threshold: float | None = None,
    *,
    num_tokens: int | None = None,
    strength: float | None = None,
    max_tokens: int | None = None,
    min_area: int = 0,
    merge: MergeCost = "balanced",
    order: Order = "area",
    backend: Backend = "numba",
) -> TokenMap: ...


@overload
def watershed_tokens(
    boundary_map: ArrayLike,
    threshold: None = None,
    *,
    num_tokens: Sequence[int],
    strength: None = None,
    max_tokens: int | None = None,
    min_area: int = 0,
    merge: MergeCost = "balanced",
    order: Order = "area",
    backend: Backend = "numba",
) -> list[TokenMap]: ...


@overload
def watershed_tokens(
    boundary_map: ArrayLike,
    threshold: None = None,
    *,
    num_tokens: None = None,
    strength: Sequence[float],
    max_tokens: int | None = None,
    min_area: int = 0,
    merge: MergeCost = "balanced",
    order: Order = "area",
    backend: Backend = "numba",
) -> list[TokenMap]: ...


def watershed_tokens(
    boundary_map: ArrayLike,
    threshold: float | None = None,
    *,
    num_tokens: int | Sequence[int] | None = None,
    strength: float | Sequence[float] | None = None,
    max_tokens: int | None = None,
    min_area: int = 0,
    merge: MergeCost = "balanced",
    order: Order = "area",
    backend: Backend = "numba",
) -> TokenMap | list[TokenMap]:
    """Segment an image into tokens along its boundary map.

    The map is flooded from seeds (EPOC, arXiv 2402.14327, section 3): each pixel joins the seed
    that reaches it at the lowest level. Every pixel ends up in exactly one token, and every token
    is 4-connected.

    Parameters
    ----------
    boundary_map : (H, W) uint8, or floats in [0, 1]
        Boundary probability; ``v / 255`` for uint8. Floats are quantised to the nearest of 256
        levels.
    threshold : float, optional
        Above 0, below 1. Seeds are the connected components of the pixels below it. A
        higher threshold joins seeds, and adds some where no pixel was below the lower one, so the
        count may go either way. 0.1 when no other control is given.
    num_tokens : int or sequence of int, optional
        Exactly so many tokens, whatever the image: more seeds than needed, then neighbours are
        merged. A sequence gives a list of maps from one flood: each token of a coarser map is a
        union of tokens of a finer one.
    strength : float or sequence of float, optional
        From 0 to 1. As many tokens as the image has strong borders: from the same kind of seeds,
        neighbours are merged while the border between them is this strong or less. What counts is
        the mean boundary probability along the border, less for smaller tokens and among more of
        them, see ``merge_hierarchy``. Tokens of a higher strength
        are unions of those of a lower one; a sequence gives a list of maps from one flood.
    max_tokens : int, optional
        At most so many; the cheapest neighbours are merged.
    min_area : int
        Tokens of fewer pixels are merged into a neighbour.
    merge : {"balanced", "boundary"}
        Cost of merging two neighbours: mean boundary value along their border, times
        log(1 + smaller area) if balanced.
    order : {"area", "raster"}
        Numbering of the tokens: largest first, or by center from top left to bottom right.
    backend : {"numba", "skimage"}
        The same result, fast or by the reference implementation.

    Returns
    -------
    (H, W) int16, int32 above 32,767 tokens; or a list of them
        Token of each pixel, 0..N-1.

    Raises
    ------
    ValueError
        An unusable map or option; the message gives the value and the range allowed.

    Warns
    -----
    UserWarning
        The map has too few minima for ``num_tokens``, or ``min_area`` left too few tokens.

    Examples
    --------
    >>> import numpy as np
    >>> ramp = np.array([[0, 40, 255, 40, 0, 80, 0]], np.uint8)
    >>> watershed_tokens(ramp, threshold=0.1)
    array([[0, 0, 0, 1, 1, 1, 2]], dtype=int16)
    >>> watershed_tokens(ramp, num_tokens=2)
    array([[1, 1, 1, 0, 0, 0, 0]], dtype=int16)
    """
    check_order(order)
    quantised = quantize(boundary_map)
    counts = _as_list("num_tokens", num_tokens)
    strengths = _as_list("strength", strength)
    budgets = [
        Budget(count, level, max_tokens, min_area, merge)
        for count, level in product(counts, strengths)
    ]
    # Whatever the strength, the seeds are the same.
    partitioner = WatershedPartitioner(threshold, max(counts), max(strengths), backend)
    partition = partitioner({"boundary_map": quantised}, image_size(quantised))
    if not isinstance(num_tokens, Sequence) and not isinstance(strength, Sequence):
        partition = apply_budget(partition, budgets[0])
        _warn_of_shortfall(budgets[0], partition)
        return arrange(partition, order, overwrite=True).token_map

    limits = [one.num_tokens or one.max_tokens or partition.num_tokens for one in budgets]
    hierarchy = merge_hierarchy(
        partition,
        merge=merge,
        min_area=min_area,
        num_tokens=min(limits),
        strength=max(strengths),
    )
    maps: list[TokenMap] = []
    for limit, budget in zip(limits, budgets, strict=True):
        cut = hierarchy.cut(limit, budget.strength)
        _warn_of_shortfall(budget, cut)
        maps.append(arrange(cut, order).token_map)
    return maps


def _as_list(name: str, values: Value | Sequence[Value] | None) -> list[Value]:
    """Return several settings, or the only one; without one, a list of None."""
    if not isinstance(values, Sequence):
        return [cast("Value", values)]
    if not values:
        raise ConfigError(f"{name}=[]: expected at least one value")
    return list(values)


def _warn_of_shortfall(budget: Budget, partition: Partition) -> None:
    if budget.num_tokens is not None and partition.num_tokens < budget.num_tokens:
        because = " of that area" if budget.min_area > 1 else ""
        warnings.warn(
            f"num_tokens={budget.num_tokens}, but this boundary map gives only "
            f"{partition.num_tokens} tokens{because}: it is too flat for more",
            UserWarning,
            stacklevel=3,
        )
