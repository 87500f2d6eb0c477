"""Partition along a boundary map: seeds, then the flood."""

from __future__ import annotations

from dataclasses import dataclass, replace

from subtok_data.segment.budget import check_controls
from subtok_data.segment.partition import Evidence, Partition, Partitioner
from subtok_data.segment.watershed.flood import Backend, check_backend, flood_from
from subtok_data.segment.watershed.quantization import quantize
from subtok_data.segment.watershed.seeds import threshold_seeds

__all__ = ["DEFAULT_THRESHOLD", "WatershedPartitioner"]

DEFAULT_THRESHOLD = 0.1


@dataclass(frozen=True)
class WatershedPartitioner(Partitioner):
    """Partitions an image along the ridges of its boundary map.

    Reads ``evidence["boundary_map"]``, (H, W) uint8 or floats in [0, 1].

    Parameters
    ----------
    threshold : float, optional
        Seeds are the 4-connected components of the pixels below it; above 0, below 1. The default
        is ``DEFAULT_THRESHOLD``, unless ``num_tokens`` is given.
    num_tokens : int, optional
        Seeds are so many minima of the map or more, see
        :func:`~subtok_data.segment.watershed.minima_seeds`; a budget merges the surplus.
    strength : float, optional
        Seeds are all minima of the smoothed map, whatever the value; a budget merges across the
        borders that are not stronger than it. From 0 to 1.
    backend : {"numba", "skimage"}
        Equal tokens; scikit-image is slower and serves as the reference.

    Raises
    ------
    ConfigError
        A value out of range, or two controls at once.

    Examples
    --------
    >>> import numpy as np
    >>> evidence = {"boundary_map": np.array([[0, 255, 0]], np.uint8)}
    >>> WatershedPartitioner()(evidence, (1, 3)).token_map
    array([[0, 0, 1]], dtype=int16)
    """

    threshold: float | None = None
    num_tokens: int | None = None
    strength: float | None = None
    backend: Backend = "numba"

    def __post_init__(self) -> None:
        check_controls(threshold=self.threshold, num_tokens=self.num_tokens, strength=self.strength)
        check_backend(self.backend)

    @property
    def has_cost_map(self) -> bool:
        """True: the boundary map."""
        return True

    @property
    def seed_threshold(self) -> float | None:
        """Threshold in use: the given one or the default; None with another control."""
        if self.num_tokens is not None or self.strength is not None:
            return None
        return DEFAULT_THRESHOLD if self.threshold is None else self.threshold

    def for_num_tokens(self, num_tokens: int) -> WatershedPartitioner:
        """Return a partitioner with seeds enough; ConfigError if it was given a threshold."""
        return replace(self, num_tokens=num_tokens)

    def for_strength(self, strength: float) -> WatershedPartitioner:
        """Return a partitioner with all seeds; ConfigError if it was given another control."""
        return replace(self, strength=strength)

    def __call__(self, evidence: Evidence, size: tuple[int, int]) -> Partition:
        """Partition an image; the boundary map is the cost map, tokens in raster order of seeds."""
        if "boundary_map" not in evidence:
            raise ValueError(f'no "boundary_map" in the evidence: it holds {sorted(evidence)}')
        quantised = quantize(evidence["boundary_map"])
        if quantised.shape != tuple(size):
            raise ValueError(
                f"boundary map of {quantised.shape} pixels for an image of {tuple(size)}: "
                "resize the map to the image"
            )
        threshold = self.seed_threshold
        if threshold is not None:
            seeds = threshold_seeds(quantised, threshold)
        else:
            from subtok_data.segment.watershed.minima import minima_seeds

            seeds = minima_seeds(quantised, self.num_tokens)
        token_map, num_tokens = flood_from(quantised, seeds, self.backend)
        return Partition(token_map, num_tokens, cost_map=quantised)
