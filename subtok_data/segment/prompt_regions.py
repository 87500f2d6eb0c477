"""Pixels that prompts ask for: their masks, or tokens that fit their boxes and points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from subtok_data.segment.geometry import measure
from subtok_data.segment.overlaps import measure_overlaps
from subtok_data.segment.packed import PackedMasks
from subtok_data.segment.partition import Partition, TokenMap
from subtok_data.segment.prompts import Prompts
from subtok_data.segment.spans import Spans, concatenated_ranges, find_spans, join_spans

__all__ = ["best_union", "prompt_regions"]

Longs = NDArray[np.int64]


def prompt_regions(prompts: Prompts, partition: Partition, min_iou: float = 0.5) -> PackedMasks:
    """Find the region of each prompt with the help of tokens.

    * A prompt with a mask: the mask.
    * With a box: the union of tokens that has the highest IoU with the box (:func:`best_union`); if
      that is below ``min_iou``, or nothing of it is left, the pixels of the box.
    * With points: tokens under points inside are in, tokens under points outside are not, also
      where a box was given. A token under points of both kinds is divided: each pixel belongs to
      the nearest point, inside if both are equally near.

    Parameters
    ----------
    prompts : Prompts
        P prompts in pixels of the picture.
    partition : Partition
        The picture cut into tokens.
    min_iou : float
        In [0, 1].

    Returns
    -------
    PackedMasks
        P regions, none empty; scores are those of the masks, 0 without.

    Examples
    --------
    >>> tokens = Partition(np.array([[0, 0, 1, 1, 2]], np.int16), 3)
    >>> prompts = Prompts.of((1, 5), boxes=[[0, 0, 3, 1]])
    >>> prompt_regions(prompts, tokens).mask(0)
    array([[ True,  True,  True,  True, False]])
    """
    pixels = prompts.regions()
    scores = np.zeros(len(prompts), np.float32)
    if prompts.masks is not None:
        scores[prompts.has_mask] = prompts.masks.scores[prompts.has_mask]
    found = _find_tokens(prompts, pixels, partition, min_iou)
    if found:
        spans = find_spans(pixels.counts, pixels.offsets)
        kept = ~np.isin(spans.owner, list(found))
        pieces = [Spans(spans.owner[kept], spans.starts[kept], spans.ends[kept])]
        pieces += _spans_of_tokens(prompts, found, partition.token_map)
        owner, starts, ends = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
        order = np.lexsort((starts, owner))
        spans = Spans(owner[order], starts[order], ends[order])
        counts, offsets = join_spans(spans, len(prompts), partition.token_map.size)
        return PackedMasks(pixels.size, counts, offsets, scores)
    return PackedMasks(pixels.size, pixels.counts, pixels.offsets, scores)


def best_union(inside: Longs, areas: Longs, box_area: int) -> tuple[Longs, float]:
    """Find the tokens whose union has the highest IoU with a box.

    With I and O the pixels of a union inside and outside the box, its IoU is I / (box + O). Let r
    be the highest that any union reaches. Then no union has I − r · O above r · box, those that
    reach r have exactly that, and so has the union of all tokens with I − r · O > 0, since no other
    tokens can add to the sum. These are the tokens of the largest shares inside the box: it is
    enough to try the unions that take tokens by descending share.

    Parameters
    ----------
    inside : (K,) int64
        Pixels of each token inside the box.
    areas : (K,) int64
        Pixels of each token, at least 1.
    box_area : int
        Pixels of the box.

    Returns
    -------
    places : (k,) int64
        Tokens of the union, by descending share; as few as possible.
    iou : float
        IoU of the union with the box.

    Examples
    --------
    >>> best_union(np.array([4, 2, 1]), np.array([4, 3, 9]), 8)
    (array([0, 1]), 0.6666666666666666)
    """
    order = np.argsort(-(inside / areas), kind="stable")
    within = np.cumsum(inside[order])
    ious = within / (box_area + np.cumsum(areas[order]) - within)
    best = int(np.argmax(ious))
    return order[: best + 1], float(ious[best])


class _Tokens(NamedTuple):
    """Tokens that make up a region: whole ones, and some that points divide."""

    whole: Longs
    divided: Longs


def _find_tokens(
    prompts: Prompts, pixels: PackedMasks, partition: Partition, min_iou: float
) -> dict[int, _Tokens]:
    """Tokens of the prompts without a mask; those that keep the pixels of their box left out."""
    found: dict[int, _Tokens] = {}
    boxed = np.flatnonzero(~prompts.has_mask & prompts.has_box)
    boxes = pixels.take(boxed)
    overlaps = measure_overlaps(partition.token_map, partition.num_tokens, boxes)
    areas = measure(partition.token_map, partition.num_tokens).areas
    box_areas = boxes.areas
    for place, prompt in enumerate(boxed):
        tokens, inside = overlaps.of(place)
        best, iou = best_union(inside, areas[tokens], int(box_areas[place]))
        if iou >= min_iou:
            region = _add_points(prompts, int(prompt), tokens[best], partition.token_map)
            if len(region.whole) + len(region.divided):
                found[int(prompt)] = region
    for prompt in np.flatnonzero(~prompts.has_mask & ~prompts.has_box):
        none = np.zeros(0, np.int64)
        found[int(prompt)] = _add_points(prompts, int(prompt), none, partition.token_map)
    return found


def _add_points(
    prompts: Prompts, prompt: int, tokens: NDArray[np.integer[Any]], token_map: TokenMap
) -> _Tokens:
    """Add the tokens under a prompt's points inside, and leave out those under points outside."""
    sides: list[Longs] = []
    for label in (1, 0):
        y, x = _point_pixels(prompts, prompt, label)
        sides.append(np.unique(token_map[y, x]).astype(np.int64))
    inner, outer = sides
    whole = np.setdiff1d(np.union1d(tokens, inner), outer)
    return _Tokens(whole.astype(np.int64), np.intersect1d(inner, outer))


def _point_pixels(prompts: Prompts, prompt: int, label: int) -> tuple[Longs, Longs]:
    """Rows and columns of the pixels that a prompt's points with a label are in."""
    x, y = prompts.points[prompt][prompts.labels[prompt] == label].astype(np.int64).T
    return y.clip(0, prompts.size[0] - 1), x.clip(0, prompts.size[1] - 1)


def _spans_of_tokens(
    prompts: Prompts, found: Mapping[int, _Tokens], token_map: TokenMap
) -> list[Spans]:
    """Spans of each region, not sorted."""
    flat = token_map.T.ravel()
    starts = np.flatnonzero(np.append(True, flat[1:] != flat[:-1]))
    ends = np.append(starts[1:], flat.size)
    order = np.argsort(flat[starts], kind="stable")
    tokens, starts, ends = flat[starts][order], starts[order], ends[order]
    pieces: list[Spans] = []
    for prompt, region in found.items():
        own = _entries(tokens, region.whole)
        pieces.append(Spans(np.full(len(own), prompt), starts[own], ends[own]))
        if len(region.divided):
            own = _entries(tokens, region.divided)
            near = _nearer(prompts, prompt, starts[own], ends[own])
            pieces.append(Spans(np.full(len(near), prompt), near, near + 1))
    return pieces


def _entries(tokens: NDArray[np.integer[Any]], wanted: Longs) -> Longs:
    """Places of the wanted tokens in a sorted list."""
    first = np.searchsorted(tokens, wanted)
    return concatenated_ranges(first, np.searchsorted(tokens, wanted, side="right"))


def _nearer(prompts: Prompts, prompt: int, starts: Longs, ends: Longs) -> Longs:
    """Pixels of spans that are nearer to a point inside than to one outside."""
    pixels = concatenated_ranges(starts, ends)
    x, y = np.divmod(pixels, prompts.size[0])
    nearest: list[Longs] = []
    for label in (1, 0):
        distance = np.full(len(pixels), np.iinfo(np.int64).max)
        for v, u in zip(*_point_pixels(prompts, prompt, label), strict=True):
            np.minimum(distance, (y - v) ** 2 + (x - u) ** 2, out=distance)
        nearest.append(distance)
    return pixels[nearest[0] <= nearest[1]]
