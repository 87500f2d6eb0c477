"""Regions of prompts: their masks, or the tokens that fit their boxes and points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from subtok_data.segment.geometry import TokenGeometry, measure
from subtok_data.segment.masks import RLEMasks, measure_overlaps
from subtok_data.segment.partition import Partition
from subtok_data.segment.prompts.boxes import pixel_box
from subtok_data.segment.prompts.prompts import Prompts

__all__ = ["best_union", "prompt_regions"]

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]


def prompt_regions(
    prompts: Prompts,
    partition: Partition,
    min_iou: float = 0.5,
    geometry: TokenGeometry | None = None,
) -> RLEMasks:
    """Find the region of each prompt from the tokens of an image.

    * A prompt with a mask: the mask.
    * With a box: the union of tokens that has the highest IoU with the box (``best_union``), as
      far as it is inside the box. If that IoU is below ``min_iou``, or nothing of the union is
      left, the pixels of the box.
    * With points: tokens under points inside are in, tokens under points outside are not, also
      where a box was given. A token under points of both kinds is divided: each pixel belongs to
      the nearest point, inside if both are equally near.

    Parameters
    ----------
    prompts : Prompts
        P prompts in pixels of the image.
    partition : Partition
        The tokens of the image.
    min_iou : float
        In [0, 1].
    geometry : TokenGeometry, optional
        Of the tokens, where they have been measured.

    Returns
    -------
    RLEMasks
        P regions, none empty; scores are those of the masks, 0 without.

    Examples
    --------
    >>> tokens = Partition(np.array([[0, 0, 1, 1, 2]], np.int16), 3)
    >>> prompts = Prompts.of((1, 5), boxes=[[2, 0, 5, 1]], points=[[1.5, 0.5]], labels=[0])
    >>> prompt_regions(prompts, tokens).mask(0)
    array([[False, False,  True,  True,  True]])
    """
    pixels = prompts.regions()
    scores = np.zeros(len(prompts), np.float32)
    if prompts.masks is not None:
        scores[prompts.has_mask] = prompts.masks.scores[prompts.has_mask]
    if geometry is None:
        geometry = measure(partition.token_map, partition.num_tokens)
    found = _find_tokens(prompts, pixels, partition, geometry.areas, min_iou)
    runs = [pixels.runs(prompt) for prompt in range(len(prompts))]
    for prompt, union in zip(
        found, _join_tokens(prompts, found, partition, geometry.boxes), strict=True
    ):
        runs[prompt] = union
    return RLEMasks.from_runs(runs, pixels.size, scores)


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
    """Tokens that make up a region: clipped to the box, whole ones, and some that points divide."""

    clipped: Ints
    whole: Ints
    divided: Ints


def _find_tokens(
    prompts: Prompts, pixels: RLEMasks, partition: Partition, areas: Longs, min_iou: float
) -> dict[int, _Tokens]:
    """Find the tokens of prompts without a mask, unless these keep the pixels of their box."""
    found: dict[int, _Tokens] = {}
    under = partition.token_map[tuple(np.moveaxis(_point_pixels(prompts), -1, 0))]
    boxed = np.flatnonzero(~prompts.has_mask & prompts.has_box)
    boxes = pixels.take(boxed)
    overlaps = measure_overlaps(partition.token_map, partition.num_tokens, boxes)
    box_areas = boxes.areas
    for place, prompt in enumerate(boxed):
        tokens, inside = overlaps.of(place)
        best, iou = best_union(inside, areas[tokens], int(box_areas[place]))
        if iou >= min_iou:
            region = _add_points(tokens[best], under[prompt], prompts.labels[prompt])
            if any(len(tokens) for tokens in region):
                found[int(prompt)] = region
    for prompt in np.flatnonzero(~prompts.has_mask & ~prompts.has_box):
        none = np.zeros(0, np.int32)
        found[int(prompt)] = _add_points(none, under[prompt], prompts.labels[prompt])
    return found


def _point_pixels(prompts: Prompts) -> NDArray[np.int64]:
    """Return row and column of each point's pixel, (P, K, 2); anything where there is no point."""
    last = np.array([prompts.size[1] - 1, prompts.size[0] - 1])
    known = np.where(prompts.labels[..., None] >= 0, prompts.points, 0)
    return np.ascontiguousarray(known.astype(np.int64).clip(0, last)[..., ::-1])


def _add_points(tokens: Ints, under: NDArray[Any], labels: NDArray[np.int8]) -> _Tokens:
    """Add the tokens under points inside to those of a box, remove those under points outside."""
    if not (labels >= 0).any():
        return _Tokens(tokens, tokens[:0], tokens[:0])
    inner, outer = (np.unique(under[labels == label]).astype(np.int32) for label in (1, 0))
    clipped = np.setdiff1d(tokens, np.union1d(inner, outer))
    return _Tokens(clipped, np.setdiff1d(inner, outer), np.intersect1d(inner, outer))


def _join_tokens(
    prompts: Prompts, found: Mapping[int, _Tokens], partition: Partition, boxes: Ints
) -> Iterator[Ints]:
    """Encode each union of tokens as run lengths."""
    from subtok_data.segment.kernels import CLIPPED, DIVIDED, WHOLE, union_runs

    asking = np.array(list(found), np.int64)
    if len(asking) == 0:
        return
    tokens = [some for region in found.values() for some in region]
    lengths = np.array([len(some) for some in tokens])
    kinds = np.tile(np.array([CLIPPED, WHOLE, DIVIDED], np.uint8), len(asking))
    clips = np.zeros((len(asking), 4), np.int32)
    for place in np.flatnonzero(prompts.has_box[asking]):
        clips[place] = pixel_box(prompts.boxes[asking[place]], prompts.size)
    counts, offsets = union_runs(
        np.require(partition.token_map, requirements=["C", "W"]),
        partition.num_tokens,
        boxes,
        np.ascontiguousarray(np.append(0, np.cumsum(lengths))[::3]),
        np.concatenate(tokens),
        np.repeat(kinds, lengths),
        clips,
        _point_pixels(prompts)[asking],
        prompts.labels[asking],
    )
    yield from np.split(counts, offsets[1:-1])
