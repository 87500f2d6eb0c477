"""Token maps of several methods with equal mean numbers of tokens.

Used by ``probe_tokens.py``. Exact counts and patches have the number on every image; the parameter
of the others is one for all images, searched for the mean.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import felzenszwalb

from subtok_data import watershed_tokens
from subtok_data.segment import GridPartitioner, SuperpixelPartitioner

__all__ = ["METHODS", "cut_all"]

Image = NDArray[np.uint8]
Cut = Callable[[Image, Image], NDArray[Any]]
"""From an image and its boundary map to a token map."""

METHODS = ("patch", "slic", "felzenszwalb", "threshold", "count", "strength")


def cut_all(
    images: Sequence[Image], boundary_maps: Sequence[Image], counts: Sequence[int]
) -> dict[tuple[str, int], list[NDArray[Any]]]:
    """Token maps of all images by method and mean number of tokens."""
    pairs = list(zip(images, boundary_maps, strict=True))
    found: dict[tuple[str, int], list[NDArray[Any]]] = {}
    for method in METHODS:
        for count, cut in zip(counts, _cuts(method, pairs, counts), strict=True):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a map too flat for the count: it has fewer
                found[method, count] = [_renumbered(cut(*pair)) for pair in pairs]
    return found


def _cuts(method: str, pairs: Sequence[tuple[Image, Image]], counts: Sequence[int]) -> list[Cut]:
    """One way of cutting per number of tokens."""
    if method == "patch":
        return [lambda image, _, n=n: _grid(image, n) for n in counts]
    if method == "count":
        return [lambda _, edges, n=n: watershed_tokens(edges, num_tokens=n) for n in counts]
    if method == "strength":
        values = np.geomspace(0.02, 1.0, 80).tolist()
        numbers = [
            [int(m.max()) + 1 for m in watershed_tokens(edges, strength=values)]
            for _, edges in pairs
        ]
        best = _nearest(values, np.mean(numbers, axis=0), counts)
        return [lambda _, edges, s=s: watershed_tokens(edges, strength=s) for s in best]
    if method == "threshold":
        values = np.linspace(0.02, 0.9, 23).tolist()
        numbers = [
            [int(watershed_tokens(edges, t).max()) + 1 for t in values] for _, edges in pairs
        ]
        best = _nearest(values, np.mean(numbers, axis=0), counts)
        return [lambda _, edges, t=t: watershed_tokens(edges, t) for t in best]
    make = _slic if method == "slic" else _felzenszwalb
    some = pairs[:: max(1, len(pairs) // 10)]
    return [_searched(make, some, n) for n in counts]


def _nearest(values: Sequence[float], means: Any, counts: Sequence[int]) -> list[float]:
    return [values[int(np.abs(np.log(means / n)).argmin())] for n in counts]


def _searched(
    make: Callable[[float], Cut], pairs: Sequence[tuple[Image, Image]], count: int
) -> Cut:
    """Search a parameter of about the number of tokens for the mean number on some images."""
    parameter = float(count)
    for _ in range(4):
        mean = np.mean([len(np.unique(make(parameter)(*pair))) for pair in pairs])
        parameter *= count / mean
    return make(parameter)


def _grid(image: Image, count: int) -> NDArray[Any]:
    return GridPartitioner(num_tokens=count)({}, image.shape[:2]).token_map


def _slic(parameter: float) -> Cut:
    method = replace(SuperpixelPartitioner("slic"), n_segments=max(1, round(parameter)))
    return lambda image, _: method({"image": image}, image.shape[:2]).token_map


def _felzenszwalb(parameter: float) -> Cut:
    scale = 30_000 / parameter  # the larger, the fewer
    return lambda image, _: felzenszwalb(image, scale=scale, sigma=0.8, min_size=50)


def _renumbered(labels: NDArray[Any]) -> NDArray[Any]:
    _, places = np.unique(labels, return_inverse=True)
    return places.reshape(labels.shape).astype(np.int32)
