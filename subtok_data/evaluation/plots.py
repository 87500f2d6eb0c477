"""Plots of a report: precision against recall, and token quality against token count."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from subtok_data.evaluation.results import Report

__all__ = ["plot_precision_recall", "plot_tokens"]

_PANELS = (
    ("asa", "achievable segmentation accuracy"),
    ("covering", "covering"),
    ("boundary_recall", "boundary recall, 2 px"),
    ("purity", "share of pure tokens"),
)

_TICKS = (1, 2, 5, 10, 20, 30, 60, 120, 250, 500, 1000, 2000)
_GREY = ("#8a8f98", "#b0793f", "#6b8e5a")
_COLOURS = ("#1f5fbf", "#c2372e", "#7b3fa0", "#0f8a83", "#d08a00", "#444444", "#e377c2")
_MARKERS = "osD^vP*X"


def plot_precision_recall(report: Report) -> Figure:
    """Plot precision against recall of each boundary map, with lines of equal F-measure.

    Parameters
    ----------
    report : Report
        With boundary figures.

    Returns
    -------
    Figure
        6 by 5 inches.
    """
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.add_subplot()
    grid = np.linspace(0.01, 1, 200)
    for f in np.arange(0.3, 1.0, 0.1):
        with np.errstate(divide="ignore", invalid="ignore"):
            curve = f * grid / (2 * grid - f)
        visible = (curve > 0) & (curve <= 1)
        axes.plot(grid[visible], curve[visible], color="#dddddd", linewidth=0.8, zorder=0)
    for index, (name, scores) in enumerate(report.boundaries.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        seen = scores.recall > 0
        label = f"{name}: ODS {scores.ods:.3f}"
        axes.plot(scores.recall[seen], scores.precision[seen], color=colour, label=label)
        best = int(np.abs(scores.thresholds - scores.ods_threshold).argmin())
        axes.plot(scores.recall[best], scores.precision[best], "o", color=colour)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="recall", ylabel="precision")
    axes.set_title(f"{report.dataset}, {report.images} images")
    axes.legend(loc="lower left", frameon=False)
    return figure


def plot_tokens(report: Report) -> Figure:
    """Plot four token figures against the mean number of tokens, a line for each method.

    Parameters
    ----------
    report : Report
        With token figures.

    Returns
    -------
    Figure
        10 by 8.5 inches.
    """
    figure = Figure(figsize=(10, 8.5), layout="constrained")
    grid: Any = figure.subplots(2, 2)
    methods = list(dict.fromkeys(row.method for row in report.tokens))
    plain = [name for name in methods if " by " not in name]
    for axes, (key, title) in zip(grid.flat, _PANELS, strict=True):
        for index, method in enumerate(methods):
            points = [
                (row.scores.tokens, getattr(row.scores, key))
                for row in report.tokens
                if row.method == method
            ]
            if " by threshold" not in method:
                points.sort()
            if method in plain:
                colour = _GREY[plain.index(method) % len(_GREY)]
            else:
                colour = _COLOURS[(index - len(plain)) % len(_COLOURS)]
            style = "--" if " by threshold" in method else "-"
            marker = _MARKERS[index % len(_MARKERS)]
            axes.plot(*zip(*points, strict=True), style, marker=marker, markersize=4,
                      color=colour, label=method, linewidth=1.3)  # fmt: skip
        axes.set(xscale="log", title=title, xlabel="tokens an image")
        axes.set_xticks(_TICKS, [str(one) for one in _TICKS])
        axes.minorticks_off()
        low, high = (pick(row.scores.tokens for row in report.tokens) for pick in (min, max))
        axes.set_xlim(low / 1.15, high * 1.15)
        axes.grid(color="#eeeeee")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"{report.dataset}, {report.images} images")
    return figure
