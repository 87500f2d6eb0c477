"""Ways of cutting an image, at matched token counts, under one face."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from subtok_data.images import image_size
from subtok_data.segment import (
    Budget,
    GridPartitioner,
    MergeCost,
    SuperpixelPartitioner,
    apply_budget,
    as_partitioner,
    watershed_tokens,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from subtok_data.segmenters import Segmenter

__all__ = [
    "CountCutter",
    "Cutter",
    "FelzenszwalbCutter",
    "PatchCutter",
    "SegmenterCutter",
    "SlicCutter",
    "ThresholdCutter",
]

#: Boundary maps of the image by the name of what made them.
Maps = dict[str, Any]


class Cutter(Protocol):
    """Cuts one image at several settings."""

    name: str

    def __call__(self, image: NDArray[np.uint8], maps: Maps) -> dict[str, NDArray[Any]]:
        """Token maps (H, W) by setting."""
        ...


@dataclass(frozen=True)
class PatchCutter:
    """A grid of exactly so many nearly square patches."""

    counts: Sequence[int]
    name: str = "patch"

    def __call__(self, image: NDArray[np.uint8], maps: Maps) -> dict[str, NDArray[Any]]:
        """Token maps by count."""
        del maps
        size = image_size(image)
        return {str(n): GridPartitioner(num_tokens=n)({}, size).token_map for n in self.counts}


@dataclass(frozen=True)
class SlicCutter:
    """SLIC, its parameter searched so that the number of tokens comes close."""

    counts: Sequence[int]
    name: str = "slic"

    def __call__(self, image: NDArray[np.uint8], maps: Maps) -> dict[str, NDArray[Any]]:
        """Token maps by count."""
        del maps
        base = SuperpixelPartitioner("slic")

        def cut(parameter: float) -> tuple[NDArray[Any], int]:
            partition = replace(base, n_segments=max(1, round(parameter)))(
                {"image": image}, image_size(image)
            )
            return partition.token_map, partition.num_tokens

        return {str(n): _search(cut, n, n / 2, n * 3.0, rising=True, tries=6) for n in self.counts}


@dataclass(frozen=True)
class FelzenszwalbCutter:
    """Felzenszwalb and Huttenlocher's graph cut, its scale searched so that the number is close."""

    counts: Sequence[int]
    name: str = "felzenszwalb"

    def __call__(self, image: NDArray[np.uint8], maps: Maps) -> dict[str, NDArray[Any]]:
        """Token maps by count."""
        del maps

        from skimage.segmentation import felzenszwalb

        def cut(parameter: float) -> tuple[NDArray[Any], int]:
            # Not by the library's partitioner: its regions touch at corners, and counting the parts
            # as tokens of their own would make the method look worse than it is.
            labels = felzenszwalb(image, scale=parameter, sigma=0.8, min_size=50)
            return labels, int(labels.max()) + 1

        return {str(n): _search(cut, n, 1, 5000, rising=False, tries=9) for n in self.counts}


@dataclass(frozen=True)
class ThresholdCutter:
    """The paper's way: seeds below a threshold of a boundary map."""

    source: str
    thresholds: Sequence[float]

    @property
    def name(self) -> str:
        """What made the map, and how it is cut."""
        return f"{self.source} by threshold"

    def __call__(self, image: NDArray[np.uint8], maps: Maps) -> dict[str, NDArray[Any]]:
        """Token maps by threshold."""
        del image
        return {f"{t:g}": watershed_tokens(maps[self.source], t) for t in self.thresholds}


@dataclass(frozen=True)
class CountCutter:
    """An exact number of tokens from a boundary map."""

    source: str
    counts: Sequence[int]
    merge: MergeCost = "balanced"

    @property
    def name(self) -> str:
        """What made the map, and how neighbours merge."""
        return f"{self.source} by count ({self.merge})"

    def __call__(self, image: NDArray[np.uint8], maps: Maps) -> dict[str, NDArray[Any]]:
        """Token maps by count, all from one flood."""
        del image
        counts = list(self.counts)
        cuts = watershed_tokens(maps[self.source], num_tokens=counts, merge=self.merge)
        return {str(n): one for n, one in zip(counts, cuts, strict=True)}


@dataclass(frozen=True)
class SegmenterCutter:
    """Any segmenter of the library, brought to an exact number by merging."""

    segmenter: Segmenter
    counts: Sequence[int]
    name: str

    def __call__(self, image: NDArray[np.uint8], maps: Maps) -> dict[str, NDArray[Any]]:
        """Token maps by count."""
        del maps
        size = image_size(image)
        evidence = self.segmenter.infer([image], [size])[0]
        found: dict[str, NDArray[Any]] = {}
        for count in self.counts:
            partitioner = as_partitioner(self.segmenter.partitioner).for_num_tokens(count)
            partition = partitioner(evidence, size)
            found[str(count)] = apply_budget(partition, Budget(num_tokens=count), image).token_map
        return found


def _search(
    cut: Callable[[float], tuple[NDArray[Any], int]],
    target: int,
    low: float,
    high: float,
    *,
    rising: bool,
    tries: int,
) -> NDArray[Any]:
    """Bisect a parameter on a logarithmic scale; the cut whose number is nearest."""
    middle = (low * high) ** 0.5
    nearest, count = cut(middle)
    error = abs(count - target)
    for _ in range(tries - 1):
        if count == target:
            break
        if (count < target) == rising:
            low = middle
        else:
            high = middle
        middle = (low * high) ** 0.5
        token_map, count = cut(middle)
        if abs(count - target) < error:
            nearest, error = token_map, abs(count - target)
    return nearest
