"""Tokens from a boundary map in one call: seeds, flood, and merging to a number."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import overload

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


@overload
def watershed_tokens(
    boundary_map: ArrayLike,
    threshold: float | None = None,
    *,
    num_tokens: int | None = None,
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
        count may go either way. 0.1 when neither this nor ``num_tokens`` is given.
    num_tokens : int or sequence of int, optional
        Exactly so many tokens, whatever the image: more seeds than needed, then neighbours are
        merged. A sequence gives a list of maps from one flood: each token of a coarser map is a
        union of tokens of a finer one.
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
    evidence = {"boundary_map": quantised}
    size = image_size(quantised)
    if num_tokens is None or not isinstance(num_tokens, Sequence):
        budget = Budget(num_tokens, max_tokens, min_area, merge)
        partitioner = WatershedPartitioner(threshold, num_tokens, backend)
        partition = apply_budget(partitioner(evidence, size), budget)
        _warn_of_shortfall(num_tokens, partition, min_area)
        return arrange(partition, order, overwrite=True).token_map

    counts = list(num_tokens)
    if not counts:
        raise ConfigError("num_tokens=[]: expected at least one number of tokens")
    for count in counts:
        Budget(count, max_tokens, min_area, merge)
    partition = WatershedPartitioner(threshold, max(counts), backend)(evidence, size)
    hierarchy = merge_hierarchy(partition, merge=merge, min_area=min_area, num_tokens=min(counts))
    partitions = [hierarchy.cut(count) for count in counts]
    for count, one in zip(counts, partitions, strict=True):
        _warn_of_shortfall(count, one, min_area)
    return [arrange(one, order).token_map for one in partitions]


def _warn_of_shortfall(num_tokens: int | None, partition: Partition, min_area: int) -> None:
    if num_tokens is not None and partition.num_tokens < num_tokens:
        because = " of that area" if min_area > 1 else ""
        warnings.warn(
            f"num_tokens={num_tokens}, but this boundary map gives only "
            f"{partition.num_tokens} tokens{because}: it is too flat for more",
            UserWarning,
            stacklevel=3,
        )
