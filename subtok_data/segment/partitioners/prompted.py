"""The partition in which the regions that were asked for are tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtok_data.errors import ConfigError
from subtok_data.segment.geometry import measure
from subtok_data.segment.masks import FillRules, RLEMasks, fill_parts
from subtok_data.segment.partition import Evidence, Partition, Partitioner
from subtok_data.segment.prompts import Prompts, prompt_regions

__all__ = ["FOUND", "GAP", "PROMPT", "PromptedPartitioner", "default_rules"]

FOUND, GAP, PROMPT = 0, 1, 2
"""Values of the token field ``source``: found by a segmenter, gap between its finds, prompt."""

_TRIES = 4


def default_rules(base: Partitioner) -> FillRules:
    """Rules for parts of regions: 64 pixels at least, filling along a cost map where there is one.

    Examples
    --------
    >>> from subtok_data.segment import GridPartitioner
    >>> default_rules(GridPartitioner(patch=8)).fill
    'nearest'
    """
    has_cost_map = getattr(base, "has_cost_map", False)
    return FillRules(min_area=64, fill="boundary" if has_cost_map else "nearest")


@dataclass(frozen=True)
class PromptedPartitioner:
    """Cuts a picture by another partitioner, and makes tokens of the regions that were asked for.

    Reads what ``base`` reads, and the arrays of
    :meth:`~subtok_data.segment.Prompts.to_evidence`; without them the tokens are those of
    ``base``. The region of each prompt is found with the help of those tokens
    (:func:`~subtok_data.segment.prompt_regions`). Regions are painted over the
    tokens, smaller ones on top, of equals the one of the lower id; then 4-connected parts are
    tokens. The largest part of a region that is not hidden is a token however small. Its other
    parts, and what is left of tokens that were painted over, are given to their neighbours if they
    are smaller than ``rules.min_area``. Tokens that no region touches stay as they are.

    When a budget merges tokens, those of prompts are the last
    (:attr:`~subtok_data.segment.Partition.protected`).

    Parameters
    ----------
    base : Partitioner
        Cuts the picture; its options for exact counts and merging are handed on.
    rules : FillRules, optional
        Which parts become tokens, and who gets the pixels of the others; ``gap_area`` matters with
        ``automatic=False`` only. :func:`default_rules` if not given.
    automatic : bool
        Keep the tokens of ``base`` where no region is. False: what no region covers is a gap, whose
        connected parts are tokens.
    min_iou : float
        Least IoU of a box with the best union of tokens; below it, the box itself is the region.
    num_tokens : int, optional
        Tokens that a budget is going to ask for; see :meth:`for_num_tokens`.

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

    def __post_init__(self) -> None:
        if not 0 <= self.min_iou <= 1:
            raise ConfigError(f"min_iou={self.min_iou}: expected a number from 0 to 1")
        if self.rules is not None and self.rules.has_cost_map and not self.has_cost_map:
            raise ConfigError(
                f'fill="boundary": {type(self.base).__name__} has no cost map to flood along, so '
                'use fill="nearest"'
            )

    @property
    def has_cost_map(self) -> bool:
        """Whether tokens merge along a boundary map."""
        return bool(getattr(self.base, "has_cost_map", False))

    def with_base(self, base: Partitioner) -> PromptedPartitioner:
        """Paint over the tokens of another partitioner by the same rules.

        Parameters
        ----------
        base : Partitioner
            Takes the place of the one before; without a cost map, the rest joins the nearest token.

        Returns
        -------
        PromptedPartitioner
        """
        rules = self.rules
        if rules is not None and not getattr(base, "has_cost_map", False):
            rules = replace(rules, fill="nearest")
        return replace(self, base=base, rules=rules)

    def for_num_tokens(self, num_tokens: int) -> PromptedPartitioner:
        """Partitioner that cuts finely enough for an exact number of tokens.

        Parameters
        ----------
        num_tokens : int
            Tokens wanted after merging.

        Returns
        -------
        PromptedPartitioner
            It cuts what is outside the regions finer where they took too many tokens.
        """
        return replace(self, base=_refine(self.base, num_tokens), num_tokens=num_tokens)

    def __call__(self, evidence: Evidence, size: tuple[int, int]) -> Partition:
        """Cut a picture.

        Parameters
        ----------
        evidence : mapping of str to array
            See the class.
        size : (H, W)
            Size of the picture.

        Returns
        -------
        Partition
            Token fields ``source`` (0 and 1 as in the base, 2 for a prompt), ``prompt`` (id, −1 for
            none), ``score`` where masks or the base have scores, and the fields of the base (−1, or
            0 for fractions, in tokens of prompts and in gaps).

        Raises
        ------
        PromptError
            Prompts for a picture of another size.
        """
        prompts = Prompts.from_evidence(evidence)
        found = self.base(evidence, size)
        if prompts is None or len(prompts) == 0:
            nothing = np.full(found.num_tokens, -1, np.int64)
            fields = {"source": np.zeros_like(nothing), **found.token_fields, "prompt": nothing}
            return replace(found, token_fields=fields)
        prompts.check_size(size)
        regions = prompt_regions(prompts, found, self.min_iou)
        partition = self._paint(found, prompts, regions)
        return self._paint_finer(found, partition, prompts, regions, evidence)

    def _paint_finer(
        self,
        found: Partition,
        partition: Partition,
        prompts: Prompts,
        regions: RLEMasks,
        evidence: Evidence,
    ) -> Partition:
        """Cut what is outside the regions finer until there are enough tokens for the budget."""
        for _ in range(_TRIES if self.automatic and self.num_tokens is not None else 0):
            wanted = self.num_tokens or 0
            asked_for = np.count_nonzero(partition.token_fields["source"] == PROMPT)
            others = partition.num_tokens - asked_for
            if partition.num_tokens >= wanted or others == 0:
                break
            share = (wanted - asked_for) / others
            base = _refine(self.base, int(1.5 * share * found.num_tokens) + 1)
            finer = base(evidence, regions.size)
            if finer.num_tokens <= found.num_tokens:
                break
            found = finer
            partition = self._paint(found, prompts, regions)
        return partition

    def _paint(self, found: Partition, prompts: Prompts, regions: RLEMasks) -> Partition:
        from subtok_data.segment.kernels import paint_masks

        count = len(prompts)
        spared = np.zeros(count, np.int64)
        rules = self.rules or default_rules(self.base)
        if self.automatic:
            canvas = found.token_map.T.astype(np.int32, order="C") + np.int32(count)
            # A token that keeps all its pixels stays, however small it is.
            areas = measure(found.token_map, found.num_tokens).areas
            spared = np.append(spared, areas)
            rules = replace(rules, gap_area=None)
        else:
            canvas = np.full(found.token_map.T.shape, -1, np.int32)
        # The lowest first: the largest, of equals the one of the higher id.
        order = np.lexsort((-prompts.ids, -regions.areas)).astype(np.int64)
        paint_masks(regions.counts, regions.offsets, order, canvas.reshape(-1))
        levels = found.cost_map if rules.has_cost_map else None
        token_map, labels = fill_parts(canvas.T, rules, levels, spared)
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


def _refine(base: Partitioner, num_tokens: int) -> Partitioner:
    refine = getattr(base, "for_num_tokens", None)
    return base if refine is None else refine(num_tokens)


def _fields(
    found: Partition, prompts: Prompts, regions: RLEMasks, labels: NDArray[np.int32]
) -> Mapping[str, NDArray[Any]]:
    """Fields of tokens that come from prompts (0..P-1), tokens found (from P on), or gaps (−1)."""
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
            asked = np.full((count, *values.shape[1:]), none, values.dtype)
            fields[name] = _join(asked, values, none)[labels]
    return fields


def _join(asked: NDArray[Any], found: NDArray[Any], gap: Any) -> NDArray[Any]:
    """Values of prompts, of tokens found, and last the one of gaps, which the index −1 picks."""
    last = np.full((1, *found.shape[1:]), gap, found.dtype)
    return np.concatenate([asked.astype(found.dtype), found, last])
