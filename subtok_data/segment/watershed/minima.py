"""Seeds for merging: regional minima of the smoothed map, all of them or the deepest."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from subtok_data.segment.merging import region_adjacency
from subtok_data.segment.watershed.flood import Backend, flood_from
from subtok_data.segment.watershed.seeds import Seeds, run_scratch

__all__ = ["minima_seeds"]

# Least depth, in levels of 255, that a minimum needs at first. Minima shallower than this are
# texture; they are used only where the deeper ones are too few. On 60 photos of BSDS500 at 32
# and 100 tokens, 1 to 16 differ by less than 0.006 in segmentation accuracy and boundary recall.
_FIRST_DEPTH = 8


def minima_seeds(
    quantised: NDArray[np.uint8], num_tokens: int | None = None, backend: Backend = "numba"
) -> Seeds:
    """Choose regional minima, from deep to shallow, until there are enough.

    The map is smoothed (5 x 5 binomial, in integers). Without a number, all its regional minima
    are taken: merging by strength removes what is texture. With one, each of them gets a depth:
    how far water in it rises before it flows over into a lower one (the *dynamics* of Grimaud,
    1992). Minima of depth 8 and more are taken; if those are too few, of depth 7, 6 and so on to 1;
    at last the minima of the map itself.

    Parameters
    ----------
    quantised : (H, W) uint8
        Boundary map, 255 for a probability of 1.
    num_tokens : int, optional
        Seeds wanted.
    backend : {"numba", "skimage"}
        What floods the smoothed map.

    Returns
    -------
    Seeds
        ``num_tokens`` or more, or all minima of a map that has fewer. At least one.

    Examples
    --------
    >>> quantised = np.array([[0, 90, 200, 60, 0, 90, 0]], np.uint8)
    >>> minima_seeds(quantised, 1).count, minima_seeds(quantised, 3).count
    (2, 3)
    """
    from subtok_data.segment.kernels import regional_minima, smooth

    smoothed = smooth(quantised)
    minima = Seeds(*regional_minima(smoothed, run_scratch(quantised)), imposed=True)
    if num_tokens is None:
        return minima
    depths = _depths(smoothed, minima, backend)
    for depth in range(_FIRST_DEPTH, 0, -1):
        chosen = depths >= depth
        if np.count_nonzero(chosen) >= num_tokens:
            return _select(minima, chosen)
    unsmoothed = Seeds(*regional_minima(quantised, run_scratch(quantised)), imposed=True)
    return max(minima, unsmoothed, key=lambda seeds: seeds.count)


def _depths(quantised: NDArray[np.uint8], minima: Seeds, backend: Backend) -> NDArray[np.int64]:
    from subtok_data.segment.kernels import depths

    # A basin of the flood holds every pixel that its minimum reaches first, so the lowest point on
    # the common border of two basins is the lowest pass between their minima.
    basins, _ = flood_from(quantised, minima, backend)
    borders = region_adjacency(basins, quantised)
    order = np.argsort(borders.lowest, kind="stable")
    rows = np.repeat(np.arange(len(quantised)), np.diff(minima.first_run))
    inside = minima.labels >= 0
    floors = np.empty(minima.count, np.int64)
    floors[minima.labels[inside]] = quantised[rows[inside], minima.runs[inside, 0]]
    return depths(floors, borders.pairs[order], borders.lowest[order].astype(np.int64))


def _select(seeds: Seeds, chosen: NDArray[np.bool_]) -> Seeds:
    # The last entry is for the runs of no seed, label -1.
    renamed = np.append(np.where(chosen, np.cumsum(chosen) - 1, -1), -1).astype(np.int32)
    return Seeds(
        seeds.runs,
        seeds.first_run,
        renamed[seeds.labels],
        int(np.count_nonzero(chosen)),
        seeds.imposed,
    )
