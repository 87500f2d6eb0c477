"""``TokenizedImage``: what the tokenizer gives for one image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from subtok_data.segment import Evidence, Segmented

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["TokenizedImage"]


@dataclass(frozen=True, eq=False)
class TokenizedImage:
    """One image and its tokens, in pixels of the resized image.

    Attributes
    ----------
    image : (H, W, 3) uint8 ndarray
        The image, resized.
    token_map : (H, W) int16 or int32 ndarray
        Token of each pixel, 0 to N - 1.
    num_tokens : int
        N, at least 1.
    areas : (N,) int64 ndarray
        Pixels of each token; they sum to H · W.
    boxes : (N, 4) int32 ndarray
        x0, y0, x1, y1, half-open.
    centers : (N, 2) float32 ndarray
        Mean (y, x); the center of the first pixel is at (0.5, 0.5).
    boundary_map : (H, W) uint8 ndarray or None
        Boundary probability × 255, for segmenters that have one.
    token_fields : dict of str to (N,) ndarray
        What the segmenter knows of each token: class, score, prompt …
    source_size : (int, int)
        Height and width before resizing, after EXIF orientation.
    prompt_tokens : (P,) int64 ndarray or None
        With prompts: the token that fits each of them best.
    """

    image: NDArray[np.uint8]
    token_map: NDArray[Any]
    num_tokens: int
    areas: NDArray[np.int64]
    boxes: NDArray[np.int32]
    centers: NDArray[np.float32]
    boundary_map: NDArray[np.uint8] | None
    token_fields: dict[str, NDArray[Any]]
    source_size: tuple[int, int]
    shapes: NDArray[np.bool_] | None = field(default=None, repr=False)
    prompt_tokens: NDArray[np.int64] | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        image: NDArray[np.uint8],
        segmented: Segmented,
        evidence: Evidence,
        source_size: tuple[int, int],
    ) -> TokenizedImage:
        """Join an image with its tokens and the evidence that decided them."""
        return cls(
            image=image,
            token_map=segmented.token_map,
            num_tokens=segmented.num_tokens,
            areas=segmented.geometry.areas,
            boxes=segmented.geometry.boxes,
            centers=segmented.geometry.centers,
            boundary_map=evidence.get("boundary_map"),
            token_fields=dict(segmented.token_fields),
            source_size=source_size,
            shapes=segmented.shapes,
            prompt_tokens=segmented.prompt_tokens,
        )

    def __len__(self) -> int:
        return self.num_tokens

    def __repr__(self) -> str:
        height, width = self.token_map.shape
        return f"TokenizedImage(num_tokens={self.num_tokens}, height={height}, width={width})"

    def plot(self) -> Figure:
        """Draw image, boundary map, token outlines and mean-colour reconstruction.

        Returns
        -------
        matplotlib.figure.Figure
            Shown by notebooks; ``figure.savefig(path)`` writes it.
        """
        from subtok_data.viz import plot_tokens

        return plot_tokens(self)
