"""Which tokens touch, along how long a border, and how strong it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subtok_data.segment.partition import TokenMap

__all__ = ["Adjacency", "adjacency"]


@dataclass(frozen=True, eq=False)
class Adjacency:
    """Pairs of touching tokens, sorted.

    A border is made of cracks, one between each two 4-neighbours of different tokens; a crack is as
    strong as the stronger of its two pixels.

    Parameters
    ----------
    pairs : (E, 2) int32
        Smaller token, larger token; in lexicographic order.
    lengths : (E,) int64
        Cracks along the common border, at least 1.
    sums : (E,) int64
        Sum of their values.
    lowest : (E,) uint8
        Lowest of their values.
    """

    pairs: NDArray[np.int32]
    lengths: NDArray[np.int64]
    sums: NDArray[np.int64]
    lowest: NDArray[np.uint8]

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean crack value, (E,) float64 from 0 to 255."""
        return self.sums / self.lengths


def adjacency(token_map: TokenMap, cost_map: NDArray[np.uint8] | None = None) -> Adjacency:
    """Find the pairs of tokens that share a border.

    Parameters
    ----------
    token_map : (H, W) int16 or int32
        Labels of 0 and above; −1 where there is no token.
    cost_map : (H, W) uint8, optional
        Boundary strength; without it all values are 0.

    Returns
    -------
    Adjacency
        E pairs; time grows with the pixels, not with the tokens.

    Raises
    ------
    ValueError
        Shapes that differ.

    Examples
    --------
    >>> levels = np.array([[9, 4], [3, 5]], np.uint8)
    >>> borders = adjacency(np.array([[0, 1], [0, 1]], np.int16), levels)
    >>> borders.pairs, borders.lengths, borders.mean, borders.lowest
    (array([[0, 1]], dtype=int32), array([2]), array([7.]), array([5], dtype=uint8))
    """
    from subtok_data.segment.kernels.pairs import gather_cracks

    if cost_map is None:
        cost_map = np.zeros(token_map.shape, np.uint8)
    if cost_map.shape != token_map.shape:
        raise ValueError(
            f"cost_map is {cost_map.shape}, token_map {token_map.shape}: must be equal"
        )
    count = int(token_map.max()) + 1
    keys, values = gather_cracks(
        np.require(token_map, requirements=["C", "W"]),
        np.require(cost_map, np.uint8, ["C", "W"]),
        count,
    )
    order = np.argsort(keys)
    pairs = np.stack(np.divmod(keys[order], max(count, 1)), axis=1).astype(np.int32)
    lengths, sums, lowest = values[order].T
    return Adjacency(
        pairs, np.ascontiguousarray(lengths), np.ascontiguousarray(sums), lowest.astype(np.uint8)
    )
