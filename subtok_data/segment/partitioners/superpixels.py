"""Partition into superpixels of scikit-image: tokens without any model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from subtok_data.arguments import check_choice, check_count
from subtok_data.errors import ConfigError
from subtok_data.segment.partition import Evidence, Partition, Partitioner, token_dtype

__all__ = ["SuperpixelPartitioner"]

Method = Literal["slic", "felzenszwalb"]

# Each try is twice as fine as the last; the finest is 2^9 times finer than the first.
_TRIES = 10


@dataclass(frozen=True)
class SuperpixelPartitioner(Partitioner):
    """Partitions an image by colour; reads ``evidence["image"]``, (H, W, 3) uint8.

    Parameters
    ----------
    method : {"slic", "felzenszwalb"}
        :func:`skimage.segmentation.slic` (Achanta et al., 2012) or
        :func:`skimage.segmentation.felzenszwalb` (Felzenszwalb and Huttenlocher, 2004).
    n_segments : int
        SLIC: about how many superpixels.
    compactness : float
        SLIC: weight of distance against colour.
    scale : float
        Felzenszwalb: higher gives larger superpixels.
    sigma : float
        Width of the Gaussian smoothing before, in pixels.
    min_size : int
        Felzenszwalb: least pixels of a superpixel.
    num_tokens : int, optional
        Repeat with finer and finer options until there are so many superpixels.

    Raises
    ------
    ConfigError
        A value out of range.

    Examples
    --------
    >>> image = np.zeros((16, 16, 3), np.uint8)
    >>> image[:, 8:] = 255
    >>> SuperpixelPartitioner(n_segments=4)({"image": image}, (16, 16)).num_tokens
    4
    """

    method: Method = "slic"
    n_segments: int = 64
    compactness: float = 10.0
    scale: float = 100.0
    sigma: float = 0.8
    min_size: int = 20
    num_tokens: int | None = None

    def __post_init__(self) -> None:
        check_choice("method", self.method, get_args(Method))
        check_count("n_segments", self.n_segments)
        check_count("min_size", self.min_size)
        check_count("num_tokens", self.num_tokens)
        for name in ("compactness", "scale"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)}: expected a number above 0")
        if not self.sigma >= 0:
            raise ConfigError(f"sigma={self.sigma}: expected 0 or more pixels")

    def for_num_tokens(self, num_tokens: int) -> SuperpixelPartitioner:
        """Return a partitioner of so many superpixels or more, where the image has them."""
        return replace(self, n_segments=num_tokens, num_tokens=num_tokens)

    def __call__(self, evidence: Evidence, size: tuple[int, int]) -> Partition:
        """Partition an image into 4-connected superpixels in raster order, without a cost map."""
        if "image" not in evidence:
            raise ValueError(f'no "image" in the evidence: it holds {sorted(evidence)}')
        image = evidence["image"]
        if image.shape != (*size, 3) or image.dtype != np.uint8:
            raise ValueError(
                f"image of shape {image.shape}, dtype {image.dtype}: expected {(*size, 3)} uint8"
            )
        labels, count = self._superpixels(image, 1)
        for attempt in range(1, _TRIES):
            if self.num_tokens is None or count >= self.num_tokens:
                break
            finer, more = self._superpixels(image, 2**attempt)
            if more > count:
                labels, count = finer, more
        return Partition(labels.astype(token_dtype(count)), count)

    def _superpixels(self, image: NDArray[np.uint8], finer: int) -> tuple[NDArray[np.int64], int]:
        from skimage.measure import label
        from skimage.segmentation import felzenszwalb, slic

        if self.method == "slic":
            parts = slic(
                image,
                n_segments=min(self.n_segments * finer, image.shape[0] * image.shape[1]),
                compactness=self.compactness,
                sigma=self.sigma,
                start_label=0,
            )
        else:
            parts = felzenszwalb(
                image,
                scale=self.scale / finer,
                sigma=self.sigma,
                min_size=max(self.min_size // finer, 1),
            )
        # Superpixels may touch themselves at corners only; their parts become tokens of their own.
        found: Any = label(parts, background=-1, return_num=True, connectivity=1)
        labels, count = found
        return labels - 1, count
