"""Segmenters without a model: patches and superpixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from subtok_data.segment import GridPartitioner, Method, SuperpixelPartitioner
from subtok_data.segmenters.base import (
    Evidence,
    Images,
    Segmenter,
    Sizes,
    partitioner_config,
    refuse_prompts,
)

__all__ = ["PatchSegmenter", "SuperpixelSegmenter"]


class _HostSegmenter(Segmenter):
    """Segmenters that need no device: the evidence is the image, or nothing."""

    needs_image: ClassVar[bool]

    def infer(
        self, images: Images, sizes: Sizes, prompts: Sequence[Any] | None = None
    ) -> list[Evidence]:
        """Return ``{"image": (H, W, 3) uint8}`` or nothing for each; see :class:`Segmenter`."""
        refuse_prompts(self, prompts)
        if self.needs_image:
            return [{"image": image} for image in images]
        return [{} for _ in sizes]

    def config(self) -> dict[str, Any]:
        """Options as JSON values."""
        return {"segmenter": self.name, "partitioner": partitioner_config(self.partitioner)}


class PatchSegmenter(_HostSegmenter):
    """A grid of patches that covers every pixel, also when the side does not divide.

    Parameters
    ----------
    patch_size : int, optional
        Side of a patch in pixels; the patches at the right and bottom may be smaller.

    Examples
    --------
    >>> import numpy as np
    >>> from subtok_data import PatchSegmenter, SubobjectTokenizer
    >>> tokenizer = SubobjectTokenizer(PatchSegmenter(patch_size=16), size=None)
    >>> tokenizer(np.zeros((40, 48, 3), np.uint8)).num_tokens
    9
    """

    name: ClassVar[str] = "patch"
    needs_image: ClassVar[bool] = False

    def __init__(self, patch_size: int = 32) -> None:
        self.partitioner = GridPartitioner(patch=patch_size)

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], folder: Path, device: str | torch.device | None
    ) -> Self:
        """Build from what :meth:`config` wrote."""
        del folder, device
        return cls(config["partitioner"]["patch"])


class SuperpixelSegmenter(_HostSegmenter):
    """Superpixels of scikit-image as tokens: SLIC or Felzenszwalb.

    Parameters
    ----------
    method : {"slic", "felzenszwalb"}, optional
        Algorithm.
    n_segments : int, optional
        About how many tokens; the methods do not hit it exactly, ``num_tokens`` of the tokenizer
        does.

    Examples
    --------
    >>> from subtok_data import SubobjectTokenizer, SuperpixelSegmenter
    >>> tokenizer = SubobjectTokenizer(SuperpixelSegmenter("slic", n_segments=100))
    """

    name: ClassVar[str] = "superpixel"
    needs_image: ClassVar[bool] = True

    def __init__(self, method: Method = "slic", *, n_segments: int = 100) -> None:
        self.partitioner = SuperpixelPartitioner(method=method, n_segments=n_segments)

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], folder: Path, device: str | torch.device | None
    ) -> Self:
        """Build from what :meth:`config` wrote."""
        del folder, device
        return cls(config["partitioner"]["method"], n_segments=config["partitioner"]["n_segments"])
