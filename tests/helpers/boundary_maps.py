"""Boundary maps for the tests: drawn by hypothesis, random, and real; their flood by hand."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label

Levels = NDArray[np.uint8]


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, int], scale: float, contrast: float = 1.0
) -> Levels:
    """Blurred noise, stretched to 0..255: hills and valleys of about ``scale`` pixels."""
    field = ndimage.gaussian_filter(rng.random(shape), scale)
    field = (field - field.min()) / max(np.ptp(field), 1e-9)
    return np.rint(255 * np.clip(field * contrast, 0, 1)).astype(np.uint8)


def ridge_basins(rng: np.random.Generator, shape: tuple[int, int]) -> Levels:
    """Flat ground, thick ridges, and pits inside the ridges: the flood runs over, then down."""
    y, x = np.indices(shape)
    levels = np.zeros(shape, np.uint8)
    for _ in range(int(rng.integers(1, 4))):
        angle, offset = rng.random() * np.pi, rng.random() * max(shape)
        distance = np.abs(x * np.cos(angle) + y * np.sin(angle) - offset)
        levels = np.maximum(levels, np.where(distance < rng.integers(1, 6), 200, 0))
    pits = rng.random(shape) < 0.1
    return np.where(pits, rng.integers(0, 256, shape), levels).astype(np.uint8)


def random_map(rng: np.random.Generator, side: int = 40) -> Levels:
    """One of many kinds of map, of random size."""
    shape = (int(rng.integers(1, side + 1)), int(rng.integers(1, side + 1)))
    kind = int(rng.integers(7))
    if kind == 0:
        return rng.integers(0, 256, shape, np.uint8)
    if kind == 1:  # few levels: plateaus everywhere
        return rng.choice(rng.integers(0, 256, 3), shape).astype(np.uint8)
    if kind == 2:
        return smooth_noise(rng, shape, float(rng.uniform(0.5, 3)))
    if kind == 3:
        return ridge_basins(rng, shape)
    if kind == 4:  # blocks
        coarse = rng.integers(0, 256, (shape[0] // 4 + 1, shape[1] // 4 + 1))
        return np.kron(coarse, np.ones((4, 4)))[: shape[0], : shape[1]].astype(np.uint8)
    y, x = np.indices(shape)
    if kind == 5:  # ramp
        return ((3 * y + 5 * x) * int(rng.integers(1, 4)) % 256).astype(np.uint8)
    return np.where((x + y) % 2, int(rng.integers(256)), int(rng.integers(256))).astype(np.uint8)


def flood_by_hand(levels: Levels, seeds: np.ndarray, *, imposed: bool = False) -> np.ndarray:
    """The definition, with a plain priority queue; imposed seeds lie below every other pixel."""
    labels = seeds.copy()
    height, width = levels.shape
    starts = np.flatnonzero(seeds >= 0)
    queue = [
        (-1 if imposed else int(levels.flat[p]), -len(starts) + i, int(p))
        for i, p in enumerate(starts)
    ]
    heapify(queue)
    age = 0
    while queue:
        level, _, pixel = heappop(queue)
        y, x = divmod(pixel, width)
        for v, u in ((y - 1, x), (y, x - 1), (y, x + 1), (y + 1, x)):
            if 0 <= v < height and 0 <= u < width and labels[v, u] < 0:
                labels[v, u] = labels[y, x]
                age += 1
                heappush(queue, (max(level, int(levels[v, u])), age, v * width + u))
    return labels


def minima_by_hand(levels: Levels) -> tuple[np.ndarray, list[int]]:
    """Minima as markers (-1: none) and their depths, by climbing from each one to a lower one."""
    height, width = levels.shape
    plateaus = label(levels.astype(np.int32) + 1, connectivity=1) - 1

    def beside(pixel: int) -> list[int]:
        y, x = divmod(pixel, width)
        steps = ((y - 1, x), (y, x - 1), (y, x + 1), (y + 1, x))
        return [v * width + u for v, u in steps if 0 <= v < height and 0 <= u < width]

    flows_out = np.zeros(plateaus.max() + 1, bool)
    for pixel in range(levels.size):
        if any(levels.flat[q] < levels.flat[pixel] for q in beside(pixel)):
            flows_out[plateaus.flat[pixel]] = True
    names = np.where(flows_out, -1, np.cumsum(~flows_out) - 1)
    minima = names[plateaus]
    depths: list[int] = []
    for one in range(int(minima.max()) + 1):
        start = int(np.flatnonzero(minima == one)[0])
        floor = int(levels.flat[start])
        queue, seen = [(floor, start)], {start}
        depth = 256
        while queue:
            level, pixel = heappop(queue)
            value = int(levels.flat[pixel])
            if value < floor or (value == floor and 0 <= minima.flat[pixel] < one):
                depth = level - floor
                break
            for q in beside(pixel):
                if q not in seen:
                    seen.add(q)
                    heappush(queue, (max(level, int(levels.flat[q])), q))
        depths.append(depth)
    return minima, depths


@st.composite
def drawn_maps(draw: Any, side: int = 12) -> Levels:
    """Small maps of few or many levels, which shrink well."""
    shape = (draw(st.integers(1, side)), draw(st.integers(1, side)))
    levels = draw(st.sampled_from([[0, 255], [0, 25, 26, 200], list(range(0, 256, 16))]))
    picks = draw(arrays(np.uint8, shape, elements=st.integers(0, len(levels) - 1)))
    return np.asarray(levels, np.uint8)[picks]


def real_maps(folder: Path, count: int, side: int) -> list[Levels]:
    """Maps of the packaged boundary model on real photos, of ``side`` x ``side`` pixels."""
    from subtok_data.boundary import BoundaryModel
    from subtok_data.images import resize, to_rgb

    files = sorted((folder / "photos" / "open").glob("*.jpg"))
    chosen = files[:: max(len(files) // count, 1)][:count]
    return BoundaryModel.from_pretrained().predict(
        [resize(to_rgb(file), (side, side)) for file in chosen]
    )
