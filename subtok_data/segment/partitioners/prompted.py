"""Partition with the regions of prompts as tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtok_data.arguments import check_share
from subtok_data.errors import ConfigError
from subtok_data.segment.geometry import TokenGeometry, measure
from subtok_data.segment.masks import FillRules, RLEMasks, fill_parts
from subtok_data.segment.merging import merge_hierarchy
from subtok_data.segment.partition import Evidence, Partition, Partitioner, as_partitioner
from subtok_data.segment.prompts import Prompts, prompt_regions

__all__ = ["FOUND", "GAP", "PROMPT", "PromptedPartitioner", "default_rules"]

FOUND, GAP, PROMPT = 0, 1, 2
"""Values of the token field ``source``: token of the segmenter, gap between these, prompt."""

_TRIES = 4


def default_rules(base: Partitioner) -> FillRules:
    """Choose rules for prompted regions: parts of 64 pixels, filled along a cost map if any.

    Examples
    --------
    >>> from subtok_data.segment import GridPartitioner
    >>> default_rules(GridPartitioner(patch=8)).fill
    'nearest'
    """
    has_cost_map = as_partitioner(base).has_cost_map
    return FillRules(min_area=64, fill="boundary" if has_cost_map else "nearest")


@dataclass(frozen=True)
class PromptedPartitioner(Partitioner):
    """Partitions an image by another partitioner, with prompted regions as tokens of their own.

    Reads what ``base`` reads, and the arrays of
    :meth:`~subtok_data.segment.Prompts.to_evidence`; without them the tokens are those of ``base``.
    The region of each prompt is found from those tokens
    (:func:`~subtok_data.segment.prompt_regions`). Regions are painted over the tokens, smaller ones
    on top, of equals the one of the lower id; then 4-connected parts are tokens. The largest
    visible part of a region is a token however small. Its other parts, and what is left of tokens
    that were painted over, are given to their neighbours if they are smaller than
    ``rules.min_area``. Tokens that no region touches stay as they are.

    When a budget merges tokens, those of prompts are the last
    (``Partition.protected``).

    Parameters
    ----------
    base : Partitioner
        Gives the tokens under the regions; its options for exact counts and merging are handed on.
    rules : FillRules, optional
        Which parts become tokens, and who gets the pixels of the others; ``gap_area`` matters with
        ``automatic=False`` only. ``default_rules`` if not given.
    automatic : bool
        Keep the tokens of ``base`` outside the regions. False: pixels outside are gaps, whose
        connected parts are tokens.
    min_iou : float
        Least IoU of a box with the best union of tokens; below it, the box itself is the region.
    num_tokens : int, optional
        Tokens wanted after merging: outside the regions the partition is made finer where these
        took too many.
    strength : float, optional
        The tokens of ``base`` merge across borders of this strength or less before boxes and points
        choose among them.

    Raises
    ------
    ConfigError
        ``min_iou`` outside [0, 1], or ``rules.fill="boundary"`` for a base without a cost map.

    Examples
    --------
    >>> from subtok_data.segment import GridPartitioner
    >>> prompts = Prompts.of((2, 6), boxes=[[1, 0, 6, 2]])
    >>> partitioner = PromptedPartitioner(GridPartitioner(patch=2), FillRules(min_area=1))
    >>> partition = partitioner(prompts.to_evidence(), (2, 6))
    >>> partition.token_map, partition.token_fields["prompt"]
    (array([[0, 1, 1, 1, 1, 1],
           [0, 1, 1, 1, 1, 1]], dtype=int16), array([-1,  0]))
    """

    base: Partitioner
    rules: FillRules | None = None
    automatic: bool = True
    min_iou: float = 0.5
    num_tokens: int | None = None
    strength: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", as_partitioner(self.base))
        check_share("min_iou", self.min_iou)
        if self.rules is not None and self.rules.has_cost_map and not self.has_cost_map:
            raise ConfigError(
                f'fill="boundary": {self.base.name} has no cost map to flood along, so '
                'use fill="nearest"'
            )

    @property
    def has_cost_map(self) -> bool:
        """Whether the base has a cost map."""
        return self.base.has_cost_map

    def with_base(self, base: Partitioner) -> PromptedPartitioner:
        """Return the partitioner of the same rules over the tokens of another base.

        Parameters
        ----------
        base : Partitioner
            Takes the place of ``base``; without a cost map, gaps are filled by the nearest token.

        Returns
        -------
        PromptedPartitioner
        """
        rules = self.rules
        base = as_partitioner(base)
        if rules is not None and not base.has_cost_map:
            rules = replace(rules, fill="nearest")
        return replace(self, base=base, rules=rules)

    def for_num_tokens(self, num_tokens: int) -> PromptedPartitioner:
        """Return a partitioner with a finer base."""
        return replace(self, base=self.base.for_num_tokens(num_tokens), num_tokens=num_tokens)

    def for_strength(self, strength: float) -> PromptedPartitioner:
        """Return a partitioner with a finer base, which merges it where there are prompts."""
        return replace(self, base=self.base.for_strength(strength), strength=strength)

    def __call__(self, evidence: Evidence, size: tuple[int, int]) -> Partition:
        """Partition an image, as :meth:`partition` does with the prompts in the evidence."""
        return self.partition(evidence, size, Prompts.from_evidence(evidence))

    def partition(
        self, evidence: Evidence, size: tuple[int, int], prompts: Prompts | None
    ) -> Partition:
        """Partition an image with prompts that have been parsed.

        Parameters
        ----------
        evidence : mapping of str to array
            What ``base`` reads.
        size : (H, W)
            Size of the image in pixels.
        prompts : Prompts or None
            Prompts of the image.

        Returns
        -------
        Partition
            Token fields ``source`` (0 and 1 as in the base, 2 for a prompt), ``prompt`` (id, −1 for
            none), ``score`` where masks or the base have scores, and the fields of the base (−1, or
            0 for fractions, in prompted tokens and in gaps).

        Raises
        ------
        PromptError
            Prompts for an image of another size.
        """
        if prompts is not None:
            prompts.check_size(size)
        found = self.base(evidence, size)
        if prompts is None or len(prompts) == 0:
            nothing = np.full(found.num_tokens, -1, np.int64)
            fields = {"source": np.zeros_like(nothing), **found.token_fields, "prompt": nothing}
            return replace(found, token_fields=fields)
        prompts.check_size(size)
        if self.strength is not None:
            # A point in one of a thousand seeds would be a token of a few pixels.
            most = found.num_tokens
            hierarchy = merge_hierarchy(found, num_tokens=most, strength=self.strength)
            found = hierarchy.cut(most, self.strength)
        geometry = measure(found.token_map, found.num_tokens)
        regions = prompt_regions(prompts, found, self.min_iou, geometry)
        partition = self._paint(found, geometry, prompts, regions)
        return self._paint_finer(found, partition, prompts, regions, evidence)

    def _paint_finer(
        self,
        found: Partition,
        partition: Partition,
        prompts: Prompts,
        regions: RLEMasks,
        evidence: Evidence,
    ) -> Partition:
        """Make the base finer until enough tokens are left outside the regions for the budget."""
        if not self.automatic or self.num_tokens is None:
            return partition
        for _ in range(_TRIES):
            prompted = np.count_nonzero(partition.token_fields["source"] == PROMPT)
            others = partition.num_tokens - prompted
            if partition.num_tokens >= self.num_tokens or others == 0:
                break
            share = (self.num_tokens - prompted) / others
            base = self.base.for_num_tokens(int(1.5 * share * found.num_tokens) + 1)
            finer = base(evidence, regions.size)
            if finer.num_tokens <= found.num_tokens:
                break
            found = finer
            geometry = measure(found.token_map, found.num_tokens)
            partition = self._paint(found, geometry, prompts, regions)
        return partition

    def _paint(
        self, found: Partition, geometry: TokenGeometry, prompts: Prompts, regions: RLEMasks
    ) -> Partition:
        """Paint the regions over the tokens found, and make tokens of the connected parts."""
        from subtok_data.segment.kernels import paint_masks

        count = len(prompts)
        spared = np.zeros(count, np.int64)
        rules = self.rules or default_rules(self.base)
        if self.automatic:
            canvas = found.token_map.T.astype(np.int32, order="C") + np.int32(count)
            # A token that keeps all its pixels stays, however small it is.
            spared = np.append(spared, geometry.areas)
            rules = replace(rules, gap_area=None)
        else:
            canvas = np.full(found.token_map.T.shape, -1, np.int32)
        # The lowest first: the largest, of equals the one of the higher id.
        order = np.lexsort((-prompts.ids, -regions.areas)).astype(np.int64)
        paint_masks(regions.counts, regions.offsets, order, canvas.reshape(-1))
        cost_map = found.cost_map if rules.has_cost_map else None
        token_map, labels = fill_parts(canvas.T, rules, cost_map, spared)
        others = found.protected
        if others is None:
            others = np.zeros(found.num_tokens, np.bool_)
        return replace(
            found,
            token_map=token_map,
            num_tokens=len(labels),
            token_fields=_fields(found, prompts, regions, labels),
            protected=_join(np.ones(count, np.bool_), others, False)[labels],
        )


def _fields(
    found: Partition, prompts: Prompts, regions: RLEMasks, labels: NDArray[np.int32]
) -> Mapping[str, NDArray[Any]]:
    """Join the fields of prompts (labels 0..P-1), tokens found (from P on) and gaps (−1)."""
    count = len(prompts)
    sources = found.token_fields.get("source", np.full(found.num_tokens, FOUND, np.int64))
    fields: dict[str, NDArray[Any]] = {
        "source": _join(np.full(count, PROMPT), sources, GAP)[labels],
        "prompt": _join(prompts.ids, np.full(found.num_tokens, -1), -1)[labels],
    }
    if "score" in found.token_fields or prompts.masks is not None:
        nothing = np.zeros(found.num_tokens, np.float32)
        scores = found.token_fields.get("score", nothing)
        fields["score"] = _join(regions.scores, scores, 0)[labels]
    for name, values in found.token_fields.items():
        if name not in fields:
            none = -1 if values.dtype.kind == "i" else values.dtype.type()
            prompted = np.full((count, *values.shape[1:]), none, values.dtype)
            fields[name] = _join(prompted, values, none)[labels]
    return fields


def _join(prompted: NDArray[Any], found: NDArray[Any], gap: Any) -> NDArray[Any]:
    """Join values of prompts, of tokens found, and last that of gaps, at the index −1."""
    last = np.full((1, *found.shape[1:]), gap, found.dtype)
    return np.concatenate([prompted.astype(found.dtype), found, last])
