"""From evidence to ordered tokens: what runs once per picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtok_data.segment.budget import Budget, apply_budget
from subtok_data.segment.geometry import TokenGeometry, measure, token_shapes
from subtok_data.segment.order import Order, order_tokens
from subtok_data.segment.overlaps import match_regions
from subtok_data.segment.partition import (
    Evidence,
    Partition,
    Partitioner,
    TokenMap,
    token_dtype,
)
from subtok_data.segment.prompts import Prompts

__all__ = ["Segmented", "arrange", "segment_image"]


@dataclass(frozen=True, eq=False)
class Segmented:
    """The tokens of one picture, numbered in the order of their sequence.

    Parameters
    ----------
    token_map : (H, W) int16, int32 above 32,767 tokens
        Token of each pixel; −1 only where ``overflow="drop"`` left pixels without a token.
    num_tokens : int
        N, at least 1.
    geometry : TokenGeometry
        Of the N tokens.
    token_fields : mapping of str to (N, ...) array
        Values per token.
    shapes : (N, r, r) bool, optional
        Each token's region, cropped to its box.
    requested : int, optional
        The exact number of tokens asked for.
    prompt_tokens : (P,) int64, optional
        The token that fits each prompt best, where there are prompts
        (:func:`~subtok_data.segment.overlaps.match_regions`).
    """

    token_map: TokenMap
    num_tokens: int
    geometry: TokenGeometry
    token_fields: Mapping[str, NDArray[Any]]
    shapes: NDArray[np.bool_] | None = None
    requested: int | None = None
    prompt_tokens: NDArray[np.int64] | None = None

    @property
    def shortfall(self) -> int:
        """How many tokens fewer than requested the picture gave."""
        return 0 if self.requested is None else max(self.requested - self.num_tokens, 0)


def arrange(
    partition: Partition,
    order: Order = "area",
    *,
    shape_size: int | None = None,
    requested: int | None = None,
    overwrite: bool = False,
) -> Segmented:
    """Measure the tokens of a partition and number them in an order.

    Parameters
    ----------
    partition : Partition
        Any.
    order : {"area", "raster"}
        See :func:`~subtok_data.segment.order.order_tokens`.
    shape_size : int, optional
        r, to sample the shapes too.
    requested : int, optional
        Kept in the result.
    overwrite : bool
        Number the tokens in ``partition.token_map`` itself, which saves fresh memory.

    Returns
    -------
    Segmented
        Of the same tokens.

    Examples
    --------
    >>> arrange(Partition(np.array([[0, 1, 1]], np.int16), 2)).token_map
    array([[1, 0, 0]], dtype=int16)
    """
    from subtok_data.segment.kernels.tokens import relabel

    raw = measure(partition.token_map, partition.num_tokens)
    tokens = order_tokens(raw, order)
    labels = np.empty_like(tokens)
    labels[tokens] = np.arange(len(tokens))
    source = np.require(partition.token_map, requirements=["C", "W"])
    dtype = token_dtype(partition.num_tokens)
    token_map: TokenMap = source
    if not overwrite or source.dtype != dtype:
        token_map = np.empty(source.shape, dtype)
    relabel(source, labels, token_map)
    geometry = raw.take(tokens)
    return Segmented(
        token_map,
        partition.num_tokens,
        geometry,
        {name: values[tokens] for name, values in partition.token_fields.items()},
        None if shape_size is None else token_shapes(token_map, geometry.boxes, shape_size),
        requested,
    )


def segment_image(
    partitioner: Partitioner,
    evidence: Evidence,
    size: tuple[int, int],
    budget: Budget | None = None,
    order: Order = "area",
    shape_size: int | None = None,
) -> Segmented:
    """Cut one picture into tokens.

    Parameters
    ----------
    partitioner : Partitioner
        How to cut. For ``budget.num_tokens`` its ``for_num_tokens`` is used, where it has one.
    evidence : mapping of str to array
        What the partitioner reads. ``"image"``, (H, W, 3) uint8, also serves to merge tokens by
        colour where the partition has no cost map; prompts
        (:meth:`~subtok_data.segment.prompts.Prompts.to_evidence`) are matched with the tokens.
    size : (H, W)
        Size of the picture in pixels.
    budget : Budget, optional
        Limits on the tokens; none by default.
    order : {"area", "raster"}
        Order of the tokens.
    shape_size : int, optional
        Sample each token's shape to so many cells squared.

    Returns
    -------
    Segmented
        The tokens.

    Raises
    ------
    ValueError
        The partition does not have the size of the picture.

    Examples
    --------
    >>> from subtok_data.segment.grid import GridPartitioner
    >>> segment_image(GridPartitioner(patch=16), {}, (32, 48)).num_tokens
    6
    """
    budget = budget or Budget()
    refine = getattr(partitioner, "for_num_tokens", None)
    if budget.num_tokens is not None and refine is not None:
        partitioner = refine(budget.num_tokens)
    partition = partitioner(evidence, size)
    if partition.token_map.shape != tuple(size):
        raise ValueError(
            f"{type(partitioner).__name__} cut a picture of {partition.token_map.shape} pixels: "
            f"expected {tuple(size)}; the evidence must have the size of the picture"
        )
    partition = apply_budget(partition, budget, evidence.get("image"))
    segmented = arrange(
        partition, order, shape_size=shape_size, requested=budget.num_tokens, overwrite=True
    )
    prompts = Prompts.from_evidence(evidence)
    if prompts is None:
        return segmented
    matched = match_regions(
        segmented.token_map, segmented.num_tokens, prompts.regions(), segmented.geometry.areas
    )
    return replace(segmented, prompt_tokens=matched)
