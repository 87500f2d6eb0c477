"""Regions and token maps drawn at random."""

from __future__ import annotations

import numpy as np


def random_size(rng: np.random.Generator, most: int = 20) -> tuple[int, int]:
    return int(rng.integers(1, most)), int(rng.integers(1, most))


def random_regions(rng: np.random.Generator, size: tuple[int, int], most: int = 6) -> np.ndarray:
    """Boxes, rings, salt and pepper: (P, H, W) bool."""
    masks = np.zeros((int(rng.integers(0, most + 1)), *size), bool)
    for mask in masks:
        kind = rng.integers(4)
        y, x = rng.integers(0, size[0]), rng.integers(0, size[1])
        if kind < 2:
            mask[y : y + rng.integers(1, size[0] + 1), x : x + rng.integers(1, size[1] + 1)] = True
        elif kind == 2:
            mask[...] = rng.random(size) < rng.random()
        else:
            v, u = np.indices(size)
            mask[...] = np.abs(np.hypot(v - y, u - x) - rng.random() * max(size)) < 1.5
    return masks


def random_tokens(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, int]:
    """Labels that need not be connected, all of them present."""
    labels = rng.integers(0, int(rng.integers(1, 9)), size)
    if rng.random() < 0.5:
        labels = np.repeat(np.repeat(labels, 3, 0), 3, 1)[: size[0], : size[1]]
    present, token_map = np.unique(labels, return_inverse=True)
    return token_map.reshape(size).astype(np.int16), len(present)
