"""Tokens from a boundary map: seeds, flood, and merging to a number."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, overload

from numpy.typing import ArrayLike

from subtok_data.errors import ConfigError
from subtok_data.segment.budget import Budget, apply_budget, check_count
from subtok_data.segment.flooding import Backend, check_backend, flood_from
from subtok_data.segment.geometry import picture_size
from subtok_data.segment.hierarchy import MergeCost, merge_hierarchy
from subtok_data.segment.levels import quantize
from subtok_data.segment.order import Order, check_order
from subtok_data.segment.partition import Evidence, Partition, TokenMap
from subtok_data.segment.pipeline import arrange
from subtok_data.segment.seeds import check_threshold, threshold_seeds

__all__ = ["DEFAULT_THRESHOLD", "WatershedPartitioner", "watershed_tokens"]

DEFAULT_THRESHOLD = 0.1


@dataclass(frozen=True)
class WatershedPartitioner:
    """Cuts a picture along the ridges of its boundary map.

    Reads ``evidence["boundary_map"]``, (H, W) uint8 or floats in [0, 1].

    Parameters
    ----------
    threshold : float, optional
        Seeds are the 4-connected components of the pixels below it; above 0, below 1. The default
        is :data:`DEFAULT_THRESHOLD`, unless ``num_tokens`` is given.
    num_tokens : int, optional
        Seeds are so many minima of the map or more, see
        :func:`~subtok_data.segment.minima.minima_seeds`; a budget merges what is too much.
    backend : {"numba", "skimage"}
        The same result; scikit-image is slower and serves as the reference.

    Raises
    ------
    ConfigError
        A value out of range, or both controls at once.

    Examples
    --------
    >>> import numpy as np
    >>> evidence = {"boundary_map": np.array([[0, 255, 0]], np.uint8)}
    >>> WatershedPartitioner()(evidence, (1, 3)).token_map
    array([[0, 0, 1]], dtype=int16)
    """

    threshold: float | None = None
    num_tokens: int | None = None
    backend: Backend = "numba"
    has_cost_map: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.threshold is not None:
            check_threshold(self.threshold)
            if self.num_tokens is not None:
                raise ConfigError(
                    f"threshold={self.threshold} and num_tokens={self.num_tokens}: both control "
                    "how fine the tokens are; leave out one of them"
                )
        check_count("num_tokens", self.num_tokens)
        check_backend(self.backend)

    def for_num_tokens(self, num_tokens: int) -> WatershedPartitioner:
        """Partitioner with seeds enough for an exact number of tokens.

        Parameters
        ----------
        num_tokens : int
            Tokens wanted after merging.

        Returns
        -------
        WatershedPartitioner
            Without a threshold.
        """
        return replace(self, threshold=None, num_tokens=num_tokens)

    def __call__(self, evidence: Evidence, size: tuple[int, int]) -> Partition:
        """Cut a picture.

        Parameters
        ----------
        evidence : mapping of str to array
            Holds ``"boundary_map"``.
        size : (H, W)
            Size of the picture, which the map must have.

        Returns
        -------
        Partition
            With the boundary map as its cost map; tokens in raster order of their seeds.

        Raises
        ------
        ValueError
            No boundary map, or one that is unusable or of another size.
        """
        if "boundary_map" not in evidence:
            raise ValueError(f'no "boundary_map" in the evidence: it holds {sorted(evidence)}')
        levels = quantize(evidence["boundary_map"])
        if levels.shape != tuple(size):
            raise ValueError(
                f"boundary map of {levels.shape} pixels for a picture of {tuple(size)}: "
                "resize the map to the picture"
            )
        if self.num_tokens is None:
            threshold = DEFAULT_THRESHOLD if self.threshold is None else self.threshold
            seeds = threshold_seeds(levels, threshold)
        else:
            from subtok_data.segment.minima import minima_seeds

            seeds = minima_seeds(levels, self.num_tokens, self.backend)
        token_map, num_tokens = flood_from(levels, seeds, self.backend)
        return Partition(token_map, num_tokens, cost_map=levels)


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
    """Cut a picture into tokens along its boundaries.

    The map is flooded from seeds (EPOC, arXiv 2402.14327, section 3): each pixel joins the seed
    that reaches it at the lowest level. Every pixel ends up in exactly one token, and every token
    is 4-connected.

    Parameters
    ----------
    boundary_map : (H, W) uint8, or floats in [0, 1]
        Boundary probability; ``v / 255`` for uint8. Floats are rounded to the nearest of 256
        levels.
    threshold : float, optional
        Above 0, below 1. Seeds are the connected components of the pixels below it. A
        higher threshold joins seeds, and adds some where no pixel was below the lower one, so the
        count may go either way. 0.1 when neither this nor ``num_tokens`` is given.
    num_tokens : int or sequence of int, optional
        Exactly so many tokens, whatever the picture: more seeds than needed, then neighbours are
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
        The picture has too few minima for ``num_tokens``, or ``min_area`` left too few tokens.

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
    levels = quantize(boundary_map)
    evidence = {"boundary_map": levels}
    size = picture_size(levels)
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
    hierarchy = merge_hierarchy(partition, merge=merge, min_area=min_area, down_to=min(counts))
    cuts = [hierarchy.cut(count) for count in counts]
    for count, cut in zip(counts, cuts, strict=True):
        _warn_of_shortfall(count, cut, min_area)
    return [arrange(cut, order).token_map for cut in cuts]


def _warn_of_shortfall(asked: int | None, partition: Partition, min_area: int) -> None:
    if asked is not None and partition.num_tokens < asked:
        because = " of that area" if min_area > 1 else ""
        warnings.warn(
            f"num_tokens={asked} was asked for, but this boundary map gives only "
            f"{partition.num_tokens} tokens{because}: it is too flat for more",
            UserWarning,
            stacklevel=3,
        )
