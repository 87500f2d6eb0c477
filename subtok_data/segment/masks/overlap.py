"""Overlap of regions with tokens, and the best token for each region."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subtok_data.segment.masks.rle import RLEMasks
from subtok_data.segment.partition import TokenMap

__all__ = ["Overlaps", "match_regions", "measure_overlaps"]


@dataclass(frozen=True, eq=False)
class Overlaps:
    """Pixels that regions have in common with tokens.

    Parameters
    ----------
    first : (P + 1,) int64
        Where the entries of each region begin.
    tokens : (K,) int32
        Tokens that each region meets, ascending within a region.
    pixels : (K,) int64
        Pixels in common, at least 1.
    """

    first: NDArray[np.int64]
    tokens: NDArray[np.int32]
    pixels: NDArray[np.int64]

    def of(self, region: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return the tokens that a region meets, and the pixels in common."""
        entries = slice(self.first[region], self.first[region + 1])
        return self.tokens[entries], self.pixels[entries]


def measure_overlaps(token_map: TokenMap, num_tokens: int, regions: RLEMasks) -> Overlaps:
    """Count the pixels that each region shares with each token.

    Parameters
    ----------
    token_map : (H, W) int16 or int32
        Token of each pixel, 0..num_tokens-1; −1 for none.
    num_tokens : int
        N.
    regions : RLEMasks
        P regions of the size of the map; they may overlap.

    Returns
    -------
    Overlaps
        Time grows with the pixels of the regions.

    Raises
    ------
    ValueError
        Regions of another size than the map.

    Examples
    --------
    >>> regions = RLEMasks.from_masks([np.array([[True, True, True, False]])])
    >>> measure_overlaps(np.array([[0, 0, 1, 2]], np.int16), 3, regions).pixels
    array([2, 1])
    """
    from subtok_data.segment.kernels import count_overlaps

    if tuple(regions.size) != token_map.shape:
        raise ValueError(
            f"regions of {regions.size[0]} × {regions.size[1]} pixels for a token map of "
            f"{token_map.shape[0]} × {token_map.shape[1]}: resize the regions to the map"
        )
    source = np.require(token_map, requirements=["C", "W"])
    return Overlaps(*count_overlaps(regions.counts, regions.offsets, source, num_tokens))


def match_regions(
    token_map: TokenMap,
    num_tokens: int,
    regions: RLEMasks,
    areas: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Find the token of the highest IoU with each region.

    Parameters
    ----------
    token_map : (H, W) int16 or int32
        Token of each pixel, 0..num_tokens-1; −1 for none.
    num_tokens : int
        N, at least 1.
    regions : RLEMasks
        P regions of the size of the map, none empty.
    areas : (N,) int64, optional
        Pixels of each token, where they are known.

    Returns
    -------
    (P,) int64
        Of equals the token of the lower number. A region of pixels without a token, which
        ``overflow="drop"`` leaves, gets the token nearest to the middle one of its pixels.

    Raises
    ------
    ValueError
        An empty region, or regions of another size than the map.

    Examples
    --------
    >>> regions = RLEMasks.from_masks([np.array([[False, True, True, True]])])
    >>> match_regions(np.array([[0, 0, 1, 1]], np.int16), 2, regions)
    array([1])
    """
    from subtok_data.segment.geometry import measure

    sizes = regions.areas
    if (sizes == 0).any():
        raise ValueError(
            f"region {int(np.argmin(sizes))} has no pixel: a region without pixels fits no token"
        )
    overlaps = measure_overlaps(token_map, num_tokens, regions)
    if areas is None:
        areas = measure(token_map, num_tokens).areas
    owner = np.repeat(np.arange(len(regions)), np.diff(overlaps.first))
    unions = sizes[owner] + areas[overlaps.tokens] - overlaps.pixels
    # Stable, so that of equals the token that comes first stays first.
    order = np.lexsort((-(overlaps.pixels / unions), owner))
    matched = np.full(len(regions), -1, np.int64)
    met = np.diff(overlaps.first) > 0
    matched[met] = overlaps.tokens[order[overlaps.first[:-1][met]]]
    for region in np.flatnonzero(~met):
        matched[region] = _nearest_token(token_map, regions.mask(int(region)))
    return matched


def _nearest_token(token_map: TokenMap, region: NDArray[np.bool_]) -> int:
    """Find the token nearest to the middle one of a region's pixels, by city-block distance."""
    pixels = np.argwhere(region.T)
    x, y = pixels[(len(pixels) - 1) // 2]
    rows, columns = np.nonzero(token_map >= 0)
    nearest = np.argmin(np.abs(rows - y) + np.abs(columns - x))
    return int(token_map[rows[nearest], columns[nearest]])
