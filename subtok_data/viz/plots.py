"""Visualisation of tokens: outlines, mean colours, and figures that compare settings.

matplotlib is loaded when a figure is drawn; the functions that return an image need only numpy and
scipy. No figure touches ``pyplot``, so nothing depends on a display or on global state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from subtok_data.errors import ConfigError
from subtok_data.images import image_size, resize
from subtok_data.segment import (
    Budget,
    SegmentTask,
    WatershedPartitioner,
    segment_image,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "HasTokens",
    "boundary_image",
    "mean_color_image",
    "outline_image",
    "plot_thresholds",
    "plot_tokens",
]

THRESHOLDS = (0.05, 0.1, 0.2, 0.4)
STRENGTHS = (0.2, 0.4, 0.6, 0.8)
TOKEN_COUNTS = (16, 60, 150, 400)
_LANDSCAPE = 1.15
_INK = np.array([16, 32, 66], np.float32)
_PAPER = np.array([252, 252, 250], np.float32)


class HasTokens(Protocol):
    """An image and its tokens, as :class:`~subtok_data.TokenizedImage` has them."""

    @property
    def image(self) -> NDArray[np.uint8]: ...  # noqa: D102
    @property
    def token_map(self) -> NDArray[Any]: ...  # noqa: D102
    @property
    def num_tokens(self) -> int: ...  # noqa: D102
    @property
    def areas(self) -> NDArray[np.int64]: ...  # noqa: D102
    @property
    def boundary_map(self) -> NDArray[np.uint8] | None: ...  # noqa: D102


def outline_image(
    image: NDArray[np.uint8],
    token_map: NDArray[Any],
    *,
    color: tuple[int, int, int] = (255, 235, 120),
    width: float = 1.3,
    scale: int = 2,
) -> NDArray[np.uint8]:
    """Draw the borders of tokens over an image.

    Parameters
    ----------
    image : (H, W, 3) uint8 array
        Image under the outlines.
    token_map : (H, W) integer array
        Token of each pixel.
    color : three int, optional
        Of the lines; a soft dark rim sets them off from bright parts.
    width : float, optional
        Line width in pixels of ``image``, above 0.
    scale : int, optional
        Enlargement of the result, for lines finer than pixels.

    Returns
    -------
    (H · scale, W · scale, 3) uint8 array

    Raises
    ------
    ConfigError
        If image and map differ in size, or width or scale are out of range.

    Examples
    --------
    >>> token_map = np.repeat([[0, 1]], 8, axis=0).repeat(8, axis=1)
    >>> outline_image(np.zeros((8, 16, 3), np.uint8), token_map, scale=3).shape
    (24, 48, 3)
    """
    from scipy.ndimage import gaussian_filter

    _check_pair(image, token_map)
    if width <= 0 or scale < 1:
        raise ConfigError(f"width={width}, scale={scale}: width must be above 0, scale at least 1")
    canvas = resize(image, (image.shape[0] * scale, image.shape[1] * scale)).astype(np.float32)
    borders = _borders(token_map, scale).astype(np.float32)
    # A blurred hairline is a smooth line: clipping its profile at a height gives it the width.
    spread = max(0.5, width * scale / 2.355)
    line = np.clip(gaussian_filter(borders, spread) * spread * 2.6, 0, 1)[..., None]
    rim = np.clip(gaussian_filter(borders, 2.2 * spread) * spread * 3.0, 0, 1)[..., None]
    canvas *= 1 - 0.45 * rim
    canvas += (np.array(color, np.float32) - canvas) * line
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def _borders(token_map: NDArray[Any], scale: int) -> NDArray[np.bool_]:
    """Mark one-pixel lines between different tokens, on a grid ``scale`` times finer."""
    fine = np.repeat(np.repeat(token_map, scale, axis=0), scale, axis=1)
    borders = np.zeros(fine.shape, np.bool_)
    borders[:, 1:] = fine[:, 1:] != fine[:, :-1]
    borders[1:] |= fine[1:] != fine[:-1]
    return borders


def mean_color_image(
    image: NDArray[np.uint8],
    token_map: NDArray[Any],
    *,
    empty: tuple[int, int, int] = (255, 255, 255),
) -> NDArray[np.uint8]:
    """Paint each token of an image in its mean colour.

    Parameters
    ----------
    image : (H, W, 3) uint8 array
        Image whose colours are averaged.
    token_map : (H, W) integer array
        Token of each pixel; −1 for none.
    empty : three int, optional
        Colour of pixels without a token.

    Returns
    -------
    (H, W, 3) uint8 array

    Raises
    ------
    ConfigError
        If image and map differ in size.

    Examples
    --------
    >>> image = np.array([[[0, 0, 0], [100, 50, 0], [7, 7, 7]]], np.uint8)
    >>> mean_color_image(image, np.array([[0, 0, 1]])).tolist()
    [[[50, 25, 0], [50, 25, 0], [7, 7, 7]]]
    """
    _check_pair(image, token_map)
    labels = token_map.reshape(-1).astype(np.int64) + 1
    counts = np.maximum(np.bincount(labels), 1)
    sums = [np.bincount(labels, image[..., channel].reshape(-1)) for channel in range(3)]
    colors = np.rint(np.stack(sums, axis=1) / counts[:, None]).astype(np.uint8)
    colors[0] = empty
    return colors[labels].reshape(image.shape)


def boundary_image(boundary_map: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Render a boundary map as an image, dark where the probability is high.

    Parameters
    ----------
    boundary_map : (H, W) uint8 array
        Quantised probability: 255 for 1.

    Returns
    -------
    (H, W, 3) uint8 array

    Examples
    --------
    >>> boundary_image(np.array([[0, 255]], np.uint8)).tolist()
    [[[252, 252, 250], [16, 32, 66]]]
    """
    # The exponent lifts faint boundaries, which decide where small tokens end.
    ink = np.linspace(0, 1, 256, dtype=np.float32)[:, None] ** 0.7
    return np.rint(_PAPER + (_INK - _PAPER) * ink).astype(np.uint8)[boundary_map]


def plot_tokens(tokenized: HasTokens, *, title: str = "") -> Figure:
    """Draw one image and its tokens: image, boundary map, outlines, mean-colour reconstruction.

    Parameters
    ----------
    tokenized : TokenizedImage
        Result of :class:`~subtok_data.SubobjectTokenizer`; without a boundary map (patches,
        superpixels) that panel is left out.
    title : str, optional
        Above the panels.

    Returns
    -------
    matplotlib.figure.Figure
        Notebooks show it; ``figure.savefig("tokens.png")`` writes it.

    Examples
    --------
    >>> from subtok_data import PatchSegmenter, SubobjectTokenizer
    >>> tokenizer = SubobjectTokenizer(PatchSegmenter(16), size=64)
    >>> len(plot_tokens(tokenizer(np.zeros((48, 64, 3), np.uint8))).axes)
    3
    """
    from subtok_data.viz.pages import Panel, Row, image_page

    height, width = tokenized.token_map.shape
    image, token_map, count = tokenized.image, tokenized.token_map, tokenized.num_tokens
    panels = [Panel(image, "image", f"{width} × {height}")]
    if tokenized.boundary_map is not None:
        panels.append(
            Panel(boundary_image(tokenized.boundary_map), "boundary probability", "paper 0, ink 1")
        )
    largest = float(tokenized.areas.max()) / token_map.size
    panels += [
        Panel(outline_image(image, token_map), f"{count} {_tokens(count)}", "outlines"),
        Panel(
            mean_color_image(image, token_map),
            "one colour per token",
            f"largest: {largest:.0%}",
        ),
    ]
    if width > _LANDSCAPE * height and len(panels) == 4:
        rows = [Row(panels[:2]), Row(panels[2:])]
    else:
        rows = [Row(panels)]
    panel_width = 4.2 if len(rows) == 2 else 3.0
    return image_page(rows, panel_width=panel_width, title=title)


def plot_thresholds(
    tokenized: HasTokens,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    strengths: Sequence[float] = STRENGTHS,
    num_tokens: Sequence[int] = TOKEN_COUNTS,
    title: str = "",
) -> Figure:
    """Compare the controls of granularity in one figure: thresholds, strengths, exact counts.

    Parameters
    ----------
    tokenized : TokenizedImage
        With a boundary map.
    thresholds : sequence of float, optional
        In (0, 1); may be empty.
    strengths : sequence of float, optional
        From 0 to 1; may be empty.
    num_tokens : sequence of int, optional
        Exact numbers of tokens; may be empty.
    title : str, optional
        Above the panels.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ConfigError
        If there is no boundary map, or nothing to compare.
    """
    from subtok_data.viz.pages import Panel, Row, image_page

    boundary = tokenized.boundary_map
    if boundary is None:
        raise ConfigError(
            "these tokens were made without a boundary map, so there is no threshold to compare: "
            "use a tokenizer with EPOCSegmenter, the default"
        )
    if not thresholds and not strengths and not num_tokens:
        raise ConfigError(
            "thresholds, strengths and num_tokens are all empty: give at least one value"
        )
    by_threshold = [
        (f"t = {t:g}", SegmentTask(WatershedPartitioner(threshold=t))) for t in thresholds
    ]
    by_strength = [
        (f"s = {s:g}", SegmentTask(WatershedPartitioner(), Budget(strength=s))) for s in strengths
    ]
    by_count = [
        (f"N = {n}", SegmentTask(WatershedPartitioner(), Budget(num_tokens=n))) for n in num_tokens
    ]

    def row(settings: Sequence[tuple[str, SegmentTask]], heading: str, remark: str) -> Row:
        panels: list[Panel] = []
        for label, task in settings:
            found = segment_image(task, {"boundary_map": boundary}, image_size(boundary))
            flat = mean_color_image(tokenized.image, found.token_map)
            outlined = outline_image(flat, found.token_map, color=(255, 255, 255), width=0.7)
            panels.append(Panel(outlined, label, f"{found.num_tokens} {_tokens(found.num_tokens)}"))
        return Row(panels, heading, remark)

    rows: list[Row] = []
    if by_threshold:
        rows.append(row(by_threshold, "threshold", "seeds are the parts with P < t"))
    if by_strength:
        rows.append(
            row(by_strength, "strength", "neighbours merged unless the border is stronger than s")
        )
    if by_count:
        rows.append(
            row(by_count, "num_tokens", "exactly N, neighbours merged by boundary strength")
        )
    return image_page(rows, panel_width=3.0, title=title)


def _tokens(count: int) -> str:
    return "token" if count == 1 else "tokens"


def _check_pair(image: NDArray[np.uint8], token_map: NDArray[Any]) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.shape[:2] != token_map.shape:
        raise ConfigError(
            f"image of shape {image.shape} and token map of shape {token_map.shape}: expected "
            "(H, W, 3) and (H, W) of the same height and width"
        )
