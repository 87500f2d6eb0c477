"""Overlapping tiles for large images, blended so that no tile border can be seen.

The blend acts on the logits at the network's own resolution: the blended map then takes the same
path (one upsampling, one sigmoid) as an untiled one. Along each axis the weight of a tile rises and
falls as a squared sine over its overlap with the neighbour, and stays 1 towards the frame of the
image, so the weights sum to 1 everywhere and nothing is attenuated at the frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from subtok_data.device_streams import move_to
from subtok_data.errors import ConfigError

__all__ = ["TilePlan", "axis_starts", "axis_weights", "check_tiling", "plan_tiles"]


def check_tiling(tile: int | None, overlap: int, multiple: int, step: int) -> None:
    """Refuse a tile side or an overlap that cannot work.

    Parameters
    ----------
    tile, overlap : int or None, int
        Pixels.
    multiple : int
        Of which starts of tiles are multiples.
    step : int
        Of which canvases are multiples: then an image that is no larger than a tile has a canvas
        that is no larger.

    Raises
    ------
    ConfigError
        A tile that is no multiple of `step`, an overlap that is none of `multiple`, or one above
        half a tile.

    Examples
    --------
    >>> check_tiling(512, 128, 32, 32)
    """
    if tile is None:
        return
    if tile < multiple or tile % multiple:
        raise ConfigError(f"tile={tile} must be None or a positive multiple of {multiple} pixels")
    if tile % step:
        raise ConfigError(
            f"tile={tile} must be a multiple of canvas_step={step}, so that an image of one tile "
            "has a canvas of one tile"
        )
    if overlap % multiple or not multiple <= overlap <= tile // 2:
        raise ConfigError(
            f"overlap={overlap} must be a multiple of {multiple} from {multiple} to tile // 2 = "
            f"{tile // 2} pixels"
        )


def axis_starts(length: int, tile: int, overlap: int, multiple: int) -> list[int]:
    """First pixels of the tiles along an axis: evenly spread, from frame to frame.

    Parameters
    ----------
    length, tile, overlap : int
        Side of the canvas, side of a tile, least overlap of neighbours; multiples of `multiple`.

    Examples
    --------
    >>> axis_starts(1024, 512, 128, 32)
    [0, 256, 512]
    >>> axis_starts(480, 512, 128, 32)
    [0]
    """
    if length <= tile:
        return [0]
    steps = math.ceil((length - tile) / (tile - overlap))
    # Rounding down keeps every gap at or below ceil(span / steps) in units of `multiple`, which is
    # at most tile - overlap: the overlap is never less than given.
    units = (length - tile) // multiple
    return [units * step // steps * multiple for step in range(steps + 1)]


def axis_weights(starts: list[int], tile: int, length: int) -> torch.Tensor:
    """Weight of each tile along an axis; the weights at each place sum to 1.

    Parameters
    ----------
    starts : list of int
        First place of each tile, ascending, at the resolution of the logits.
    tile, length : int
        Side of a tile and of the axis, same resolution.

    Returns
    -------
    float32 tensor (len(starts), min(tile, length))

    Examples
    --------
    >>> axis_weights([0, 2], 4, 6).round(decimals=2)
    tensor([[1.0000, 1.0000, 0.8500, 0.1500],
            [0.1500, 0.8500, 1.0000, 1.0000]])
    """
    side = min(tile, length)
    weights = torch.ones(len(starts), side, dtype=torch.float64)
    for left, right in zip(range(len(starts) - 1), range(1, len(starts)), strict=True):
        shared = starts[left] + side - starts[right]
        phase = (torch.arange(shared, dtype=torch.float64) + 0.5) / shared * (math.pi / 2)
        rising = phase.sin().square()
        weights[right, :shared] *= rising
        weights[left, side - shared :] *= 1 - rising
    # Tiles spread evenly may overlap by more than half; then three meet and the sum is not 1.
    total = torch.zeros(length, dtype=torch.float64)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + side] += weight
    for start, weight in zip(starts, weights, strict=True):
        weight /= total[start : start + side]
    return weights.float()


@lru_cache(maxsize=64)
def _kept_weights(starts: tuple[int, ...], tile: int, length: int, pinned: bool) -> torch.Tensor:
    """Weights of an axis, kept on the host: in pinned memory they go up without a wait.

    Not on the device, where one stream would read what another one still writes.
    """
    with torch.inference_mode(False):
        weights = axis_weights(list(starts), tile, length)
        return weights.pin_memory() if pinned else weights


@dataclass(frozen=True)
class TilePlan:
    """Where the tiles of one canvas lie, in pixels.

    Attributes
    ----------
    canvas : (int, int)
        Height and width of the whole.
    tile : (int, int)
        Height and width of every tile.
    rows, columns : list of int
        First row and first column of the tiles.
    """

    canvas: tuple[int, int]
    tile: tuple[int, int]
    rows: list[int]
    columns: list[int]

    @property
    def corners(self) -> list[tuple[int, int]]:
        """First row and column of each tile, in raster order."""
        return [(top, left) for top in self.rows for left in self.columns]

    def cut(self, pixels: torch.Tensor) -> torch.Tensor:
        """Tiles (T, h, w, C) of a canvas (H, W, C)."""
        height, width = self.tile
        return torch.stack(
            [pixels[top : top + height, left : left + width] for top, left in self.corners]
        )

    def blend(self, tiles: torch.Tensor) -> torch.Tensor:
        """Blend the logits (T, 1, h, w) of the tiles into one map (1, 1, H, W).

        Raises
        ------
        ConfigError
            The logits' side does not divide the tile's: tiles would not meet on one grid.
        """
        stride = self.tile[0] // tiles.shape[-2]
        if (tiles.shape[-2] * stride, tiles.shape[-1] * stride) != self.tile or any(
            start % stride for start in [*self.rows, *self.columns]
        ):
            raise ConfigError(
                f"logits of {tuple(tiles.shape[-2:])} for tiles of {self.tile} pixels lie on no "
                "common grid: use tile=None with this network"
            )
        height, width = (side // stride for side in self.canvas)
        rows = tuple(row // stride for row in self.rows)
        columns = tuple(left // stride for left in self.columns)
        pinned = tiles.device.type == "cuda"
        down = move_to(_kept_weights(rows, tiles.shape[-2], height, pinned), tiles.device)
        across = move_to(_kept_weights(columns, tiles.shape[-1], width, pinned), tiles.device)
        weights = (down[:, None, :, None] * across[None, :, None, :]).flatten(0, 1)
        blended = torch.zeros(1, 1, height, width, device=tiles.device)
        for (top, left), logits, weight in zip(self.corners, tiles, weights, strict=True):
            y, x = top // stride, left // stride
            blended[0, 0, y : y + logits.shape[-2], x : x + logits.shape[-1]] += logits[0] * weight
        return blended


def plan_tiles(canvas: tuple[int, int], tile: int, overlap: int, multiple: int) -> TilePlan:
    """Lay tiles over a canvas; a side no longer than `tile` has one.

    Examples
    --------
    >>> plan = plan_tiles((256, 1024), 512, 128, 32)
    >>> plan.tile, len(plan.corners)
    ((256, 512), 3)
    """
    height, width = canvas
    return TilePlan(
        canvas=canvas,
        tile=(min(height, tile), min(width, tile)),
        rows=axis_starts(height, tile, overlap, multiple),
        columns=axis_starts(width, tile, overlap, multiple),
    )
