"""Seeds of the flood: the connected components of the pixels below a threshold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subtok_data.segment.kernels import borrow

__all__ = ["Seeds", "run_scratch", "threshold_seeds"]


@dataclass(frozen=True, eq=False)
class Seeds:
    """Seed regions as row runs, labelled in raster order of their first pixels.

    Parameters
    ----------
    runs : (R, 2) int32
        First column and column after the last, in raster order.
    first_run : (H + 1,) int32
        Where the runs of each row begin.
    labels : (R,) int32
        Seed of each run, 0..count-1; −1 for a run that is no seed.
    count : int
        Number of seeds.
    imposed : bool
        Whether the flood must treat the seeds as lower than every other pixel. Seeds below a
        threshold are lower anyway.
    """

    runs: NDArray[np.int32]
    first_run: NDArray[np.int32]
    labels: NDArray[np.int32]
    count: int
    imposed: bool

    def paint(self, shape: tuple[int, int]) -> NDArray[np.int32]:
        """Return the seed of each pixel, (H, W) int32; −1 elsewhere."""
        from subtok_data.segment.kernels import paint_runs

        image = np.full(shape, -1, np.int32)
        paint_runs(self.runs, self.first_run, self.labels, image)
        return image


def run_scratch(quantised: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Borrow memory for the row runs of a map: a checkerboard has one for every two pixels."""
    height, width = quantised.shape
    return borrow("runs", height * ((width + 1) // 2) * 2, np.int32).reshape(-1, 2)


def threshold_seeds(quantised: NDArray[np.uint8], threshold: float) -> Seeds:
    """Find the 4-connected components of the pixels with a probability below a threshold.

    Parameters
    ----------
    quantised : (H, W) uint8
        Boundary map, 255 for a probability of 1.
    threshold : float
        Above 0 and below 1; pixels with ``value / 255 < threshold`` are seeds.

    Returns
    -------
    Seeds
        In raster order; ``count`` is 0 when no pixel is below the threshold.

    Examples
    --------
    >>> threshold_seeds(np.array([[0, 255, 9]], np.uint8), 0.1).count
    2
    """
    from subtok_data.segment.kernels import label_runs

    limit = int(np.count_nonzero(np.arange(256) / 255 < threshold))
    return Seeds(*label_runs(quantised, limit, run_scratch(quantised)), imposed=False)
