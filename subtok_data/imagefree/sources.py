"""Draw the regions of artificial label maps: random grids, or maps of real tokens."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from subtok_data.arguments import check_count
from subtok_data.errors import ConfigError
from subtok_data.imagefree.regions import DrawnRegions, resize_nearest
from subtok_data.segment import StoredPartitioner, measure

if TYPE_CHECKING:
    from subtok_data.data import StoredTokens

__all__ = ["GridSource", "RegionSource", "StoredSource"]

_KEPT_BYTES = 128 * 2**20
"""Decoded maps held per process: 256 of 512 x 512 pixels."""

_renumber = StoredPartitioner()


class RegionSource(Protocol):
    """Draw the regions of one artificial label map; picklable."""

    def draw(self, random: np.random.Generator, size: tuple[int, int]) -> DrawnRegions:
        """Draw regions that each have a pixel at ``size`` pixels, (H, W)."""
        ...

    def describe(self) -> dict[str, Any]:
        """Plain values that say which regions are drawn: part of a loader's saved state."""
        ...


@dataclass(frozen=True)
class GridSource:
    """Grids of h × w cells, h and w drawn independently (IFSeg, arXiv 2303.14396, section 3.2).

    Parameters
    ----------
    low, high : int
        Fewest and most cells along each axis, both included. ``low = high`` is the variant of
        IFSeg's code without random grids: every cell of the input is drawn on its own.

    Raises
    ------
    ConfigError
        If not 1 ≤ low ≤ high.

    Examples
    --------
    >>> GridSource(1, 32).draw(np.random.default_rng(0), (512, 512)).labels.shape
    (28, 21)
    """

    low: int = 1
    high: int = 32

    def __post_init__(self) -> None:
        check_count("fewest cells of grid", self.low, optional=False)
        check_count("most cells of grid", self.high, least=self.low, optional=False)

    def draw(self, random: np.random.Generator, size: tuple[int, int]) -> DrawnRegions:  # noqa: ARG002
        """Draw the grid of one label map."""
        height, width = random.integers(self.low, self.high + 1, size=2).tolist()
        return DrawnRegions.grid(height, width)

    def describe(self) -> dict[str, Any]:
        """The two limits."""
        return {"grid": [self.low, self.high]}


class StoredSource:
    """Shapes of real tokens, from a folder that ``subtok tokenize`` wrote. Reads no image.

    Parameters
    ----------
    tokens : StoredTokens, str or Path
        Stored tokens or their folder. Maps are resized to the nearest pixel of the target; a
        token too small to be hit by any pixel of it is left out.

    Raises
    ------
    ConfigError
        If the folder holds no token map.
    """

    def __init__(self, tokens: StoredTokens | str | Path) -> None:
        from subtok_data.data import StoredTokens

        self.tokens = tokens if isinstance(tokens, StoredTokens) else StoredTokens(tokens)
        self._maps = self.tokens.places()
        if not len(self._maps):
            raise ConfigError(f"no token map in {str(self.tokens.folder)!r}: every row failed")
        self._kept: OrderedDict[tuple[int, tuple[int, int]], DrawnRegions] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict()}  # workers keep their own

    def __len__(self) -> int:
        return len(self._maps)

    def draw(self, random: np.random.Generator, size: tuple[int, int]) -> DrawnRegions:
        """Draw one of the maps, uniformly.

        Raises
        ------
        ConfigError
            If the map leaves pixels without a token, as ``overflow="drop"`` does.
        """
        chosen = int(random.integers(len(self._maps)))
        key = (chosen, size)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        found = self._kept[key] = self._read(chosen, size)
        if len(self._kept) * found.labels.nbytes > _KEPT_BYTES:
            self._kept.popitem(last=False)
        return found

    def _read(self, chosen: int, size: tuple[int, int]) -> DrawnRegions:
        row, place = self._maps[chosen].tolist()
        token_map, _ = self.tokens.read(row)[place]
        if token_map.min() < 0:
            raise ConfigError(
                f"map {place} of row {row} in {str(self.tokens.folder)!r} has pixels without a "
                "token (overflow='drop'): shapes must cover the image; tokenize with "
                "overflow='merge'"
            )
        partition = _renumber({"token_map": resize_nearest(token_map, size)}, size)
        geometry = measure(partition.token_map, partition.num_tokens)
        return DrawnRegions(partition.token_map, partition.num_tokens, geometry)

    def describe(self) -> dict[str, Any]:
        """Configuration and number of the maps."""
        return {"tokens": self.tokens.config_hash, "maps": len(self)}
