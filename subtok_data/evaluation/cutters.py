"""Ways to segment an image at matched token counts: the methods that a report compares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

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
    "Cutter",
    "FelzenszwalbCutter",
    "MergeCutter",
    "PatchCutter",
    "SegmenterCutter",
    "SlicCutter",
    "ThresholdCutter",
]

#: Boundary maps of the image by the name of what made them.
Maps = dict[str, Any]


class Cutter(Protocol):
    """Segments one image at several settings."""

    name: str

    def __call__(self, image: NDArray[np.uint8], maps: Maps) -> dict[str, NDArray[Any]]:
        """Compute token maps (H, W) by setting."""
        ...


@dataclass(frozen=True)
class PatchCutter:
    """A grid of an exact number of nearly square patches."""

    counts: Sequence[int]
    name: str = "patch"

    def __call__(self, image: NDArray[np.uint8], maps: Maps) -> dict[str, NDArray[Any]]:
        """Compute token maps by count."""
        del maps
        size = image_size(image)
        return {str(n): GridPartitioner(num_tokens=n)({}, size).token_map for n in self.counts}


@dataclass(frozen=True)
class SlicCutter:
    """SLIC, its parameter searched for about the number of tokens."""

    counts: Sequence[int]
    name: str = "slic"

    def __call__(self, image: NDArray[np.uint8], maps: Maps) -> dict[str, NDArray[Any]]:
        """Compute token maps by count."""
        del maps
        base = SuperpixelPartitioner("slic")

        def partition_at(parameter: float) -> tuple[NDArray[Any], int]:
            partition = replace(base, n_segments=max(1, round(parameter)))(
                {"image": image}, image_size(image)
            )
            return partition.token_map, partition.num_tokens

        return {
            str(n): _search(partition_at, n, n / 2, n * 3.0, rising=True, tries=6)
            for n in self.counts
        }


@dataclass(frozen=True)
class FelzenszwalbCutter:
    """Felzenszwalb and Huttenlocher's segmentation, its scale searched for about the number."""

    counts: Sequence[int]
    name: str = "felzenszwalb"

    def __call__(self, image: NDArray[np.uint8], maps: Maps) -> dict[str, NDArray[Any]]:
        """Compute token maps by count."""
        del maps

        from skimage.segmentation import felzenszwalb

        def partition_at(parameter: float) -> tuple[NDArray[Any], int]:
            # Not by the library's partitioner: its regions touch at corners, and counting the parts
            # as tokens of their own would make the method look worse than it is.
            labels = felzenszwalb(image, scale=parameter, sigma=0.8, min_size=50)
            return labels, int(labels.max()) + 1

        return {
            str(n): _search(partition_at, n, 1, 5000, rising=False, tries=9) for n in self.counts
        }


@dataclass(frozen=True)
class ThresholdCutter:
    """The paper's watershed, with seeds below a threshold of a boundary map."""

    source: str
    thresholds: Sequence[float]
    min_area: int = 0

    @property
    def name(self) -> str:
        """What made the map, and how it is segmented."""
        merged = f", {self.min_area} px or more" if self.min_area else ""
        return f"{self.source} by threshold{merged}"

    def __call__(self, image: NDArray[np.uint8], maps: Maps) -> dict[str, NDArray[Any]]:
        """Compute token maps by threshold."""
        del image
        boundary_map = maps[self.source]
        return {
            f"{t:g}": watershed_tokens(boundary_map, t, min_area=self.min_area)
            for t in self.thresholds
        }


@dataclass(frozen=True)
class MergeCutter:
    """Watershed of a boundary map, merged to counts of tokens or across borders up to strengths."""

    source: str
    control: Literal["num_tokens", "strength"]
    values: Sequence[float]
    merge: MergeCost = "balanced"

    @property
    def name(self) -> str:
        """What made the map, what is controlled, and how neighbours merge."""
        control = "count" if self.control == "num_tokens" else self.control
        return f"{self.source} by {control} ({self.merge})"

    def __call__(self, image: NDArray[np.uint8], maps: Maps) -> dict[str, NDArray[Any]]:
        """Compute token maps by value of the control, all from one flood."""
        del image
        values: Any = list(self.values)
        options: dict[str, Any] = {self.control: values}
        cuts = watershed_tokens(maps[self.source], merge=self.merge, **options)
        return {f"{value:g}": one for value, one in zip(values, cuts, strict=True)}


@dataclass(frozen=True)
class SegmenterCutter:
    """A segmenter of the library, merged to an exact number of tokens."""

    segmenter: Segmenter
    counts: Sequence[int]
    name: str

    def __call__(self, image: NDArray[np.uint8], maps: Maps) -> dict[str, NDArray[Any]]:
        """Compute token maps by count."""
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
    partition_at: Callable[[float], tuple[NDArray[Any], int]],
    target: int,
    low: float,
    high: float,
    *,
    rising: bool,
    tries: int,
) -> NDArray[Any]:
    """Bisect a parameter on a logarithmic scale for the partition nearest to a number of tokens."""
    middle = (low * high) ** 0.5
    nearest, count = partition_at(middle)
    error = abs(count - target)
    for _ in range(tries - 1):
        if count == target:
            break
        if (count < target) == rising:
            low = middle
        else:
            high = middle
        middle = (low * high) ** 0.5
        token_map, count = partition_at(middle)
        if abs(count - target) < error:
            nearest, error = token_map, abs(count - target)
    return nearest
