"""Layout of figures: rows of captioned images on one page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

__all__ = ["NotebookFigure", "Panel", "Row", "image_page"]

_INK = "#1c1e21"
_SOFT = "#6b7178"
_FRAME = "#d5d8dc"
_MARGIN = 0.28  # inches, as all lengths here
_GAP = 0.16
_CAPTION = 0.26
_HEADING = 0.42
_TITLE = 0.46


class NotebookFigure(Figure):
    """A figure that notebooks show although ``pyplot`` never saw it."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()

    def _repr_html_(self) -> str:
        """Never wider than its place: notebooks, and galleries that collect HTML."""
        data = base64.b64encode(self._repr_png_()).decode()
        return f'<img alt="figure" style="max-width: 100%" src="data:image/png;base64,{data}">'


@dataclass(frozen=True, eq=False)
class Panel:
    """One image and the two halves of its caption.

    Parameters
    ----------
    image : (H, W, 3) uint8 array
        Drawn as it is.
    label : str
        Left, dark.
    detail : str, optional
        Right, grey.
    """

    image: NDArray[np.uint8]
    label: str
    detail: str = ""


@dataclass(frozen=True, eq=False)
class Row:
    """Panels side by side, of equal size, with a heading above them."""

    panels: Sequence[Panel]
    heading: str = ""
    remark: str = ""


def image_page(
    rows: Sequence[Row], *, panel_width: float = 4.0, title: str = "", subtitle: str = ""
) -> Figure:
    """Lay out rows of images on one page.

    Parameters
    ----------
    rows : sequence of Row
        From top to bottom; all panels have the aspect ratio of the first.
    panel_width : float, optional
        Inches.
    title, subtitle : str, optional
        Above the first row.

    Returns
    -------
    matplotlib.figure.Figure
        200 dots per inch.

    Examples
    --------
    >>> panel = Panel(np.zeros((20, 40, 3), np.uint8), "nothing")
    >>> len(image_page([Row([panel, panel])], panel_width=2).axes)
    2
    """
    first = rows[0].panels[0].image
    panel_height = panel_width * first.shape[0] / first.shape[1]
    columns = max(len(row.panels) for row in rows)
    heads = [_HEADING if row.heading else 0.0 for row in rows]
    head = _TITLE if title else 0.0
    width = 2 * _MARGIN + columns * panel_width + (columns - 1) * _GAP
    height = 2 * _MARGIN + head + sum(heads) + len(rows) * (panel_height + _CAPTION)
    height += (len(rows) - 1) * _GAP
    figure = NotebookFigure(figsize=(width, height), dpi=200, facecolor="white")
    place = _Place(figure, width, height)
    top = _MARGIN
    if title:
        place.heading(title, subtitle, top + 0.16, size=11)
        top += head
    for row, extra in zip(rows, heads, strict=True):
        if row.heading:
            place.heading(row.heading, row.remark, top + 0.2, size=10)
            top += extra
        for column, panel in enumerate(row.panels):
            left = _MARGIN + column * (panel_width + _GAP)
            place.panel(panel, left, top, panel_width, panel_height)
        top += panel_height + _CAPTION + _GAP
    return figure


@dataclass(frozen=True, eq=False)
class _Place:
    """Places text and panels on a figure, in inches from its top left."""

    figure: Figure
    width: float
    height: float

    def text(self, words: str, x: float, y: float, **style: Any) -> Any:
        return self.figure.text(x / self.width, 1 - y / self.height, words, **style)

    def heading(self, words: str, remark: str, y: float, *, size: float) -> None:
        drawn = self.text(
            words, _MARGIN, y, fontsize=size, fontweight="bold", color=_INK, va="baseline"
        )
        if remark:
            extent = drawn.get_window_extent()
            x = extent.x1 / self.figure.dpi + 0.12
            self.text(remark, x, y, fontsize=9, color=_SOFT, va="baseline")

    def panel(self, panel: Panel, left: float, top: float, width: float, height: float) -> None:
        bottom = self.height - top - height
        box = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(box)
        axes.imshow(panel.image, extent=(0, 1, 0, 1), aspect="auto", interpolation="antialiased")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(color=_FRAME, linewidth=0.5)
        y = top + height + 0.17
        self.text(panel.label, left, y, fontsize=9, color=_INK, va="baseline")
        self.text(panel.detail, left + width, y, fontsize=9, color=_SOFT, va="baseline", ha="right")
