"""Scores, curves and pictures of ``image_free_segmentation.py``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from subtok_data.images import to_rgb

__all__ = ["Scores", "draw_curves", "draw_pictures", "print_table"]


class Scores:
    """Counts of (labelled category, predicted category) over pixels."""

    def __init__(self, categories: int) -> None:
        self.counts = np.zeros((categories, categories), np.int64)

    def add(self, predicted: NDArray[Any], labels: NDArray[Any]) -> None:
        """Count one image; −1 in ``labels`` is left out."""
        known, size = labels >= 0, len(self.counts)
        pairs = labels[known].astype(np.int64) * size + predicted[known]
        self.counts += np.bincount(pairs, minlength=size * size).reshape(size, size)

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each category in per cent, NaN where no pixel is labelled."""
        hit = np.diag(self.counts)
        union = self.counts.sum(0) + self.counts.sum(1) - hit
        labelled = self.counts.sum(1) > 0
        return np.where(labelled, 100 * hit / np.maximum(union, 1), np.nan)

    @property
    def mean_iou(self) -> float:
        """Mean over the categories that are labelled anywhere."""
        return float(np.nanmean(self.iou))

    @property
    def accuracy(self) -> float:
        """Per cent of labelled pixels that are right."""
        return float(100 * np.trace(self.counts) / max(self.counts.sum(), 1))

    def as_dict(self, categories: Sequence[str]) -> dict[str, Any]:
        """Plain values for JSON."""
        each = {n: round(v, 2) for n, v in zip(categories, self.iou.tolist(), strict=True) if v > 0}
        return {"mIoU": self.mean_iou, "accuracy": self.accuracy, "IoU": each}


def print_table(table: dict[str, Scores]) -> None:
    """Print a Markdown table."""
    print("\n| training; evaluation | mIoU | pixels right |\n|---|---|---|")
    for name, scores in table.items():
        print(f"| {name} | {scores.mean_iou:.2f} % | {scores.accuracy:.1f} % |")
    print()


def draw_curves(curves: dict[str, list[dict[str, float]]], file: Path) -> None:
    """Loss on words, and mIoU on real images, over the steps."""
    figure = Figure(figsize=(8, 3.3), layout="constrained")
    loss, quality = figure.subplots(1, 2)
    for name, curve in curves.items():
        for axes, key in ((loss, "loss"), (quality, "mIoU")):
            points = [(point["step"], point[key]) for point in curve if key in point]
            axes.plot(*zip(*points, strict=True), label=name, marker="o" if key == "mIoU" else None)
    loss.set(title="Loss on artificial maps of words", xlabel="step", yscale="log")
    quality.set(title="mIoU on tokens of real images, per cent", xlabel="step")
    figure.legend(*quality.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    for axes in (loss, quality):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)


def draw_pictures(
    rows: Sequence[dict[str, Any]],
    shown: dict[str, Sequence[NDArray[Any]]],
    categories: Sequence[str],
    file: Path,
    count: int = 4,
) -> None:
    """Image, label map and predictions, side by side, of the first images that may be shown.

    With real images these are the first by licence, not by quality.
    """
    chosen = [n for n, row in enumerate(rows) if row.get("open", True)][:count]
    columns = 2 + len(shown)
    figure = Figure(figsize=(3 * columns, 2.5 * len(chosen)), layout="constrained")
    colours = _colours(len(categories))
    for line, axes in zip(
        chosen, figure.subplots(len(chosen), columns, squeeze=False), strict=True
    ):
        row = rows[line]
        axes[0].imshow(to_rgb(row["image"]))
        maps = [row["labels"], *(maps[line] for maps in shown.values())]
        for place, (labels, title) in enumerate(zip(maps, ["labels", *shown], strict=True)):
            axes[place + 1].imshow(np.where(labels[..., None] < 0, 1.0, colours[labels]))
            axes[place + 1].set_title(title, fontsize="small")
            _name_largest(axes[place + 1], labels, categories)
        for one in axes:
            one.axis("off")
    figure.savefig(file, dpi=80, pil_kwargs={"quality": 85})


def _colours(count: int) -> NDArray[np.float64]:
    """Colours that differ between neighbours in the list."""
    hue = np.arange(count) * 0.618 % 1
    return hsv_to_rgb(np.stack([hue, 0.35 + 0.3 * (np.arange(count) % 3) / 2, 0.9 + 0 * hue], -1))


def _name_largest(axes: Any, labels: NDArray[Any], words: Sequence[str], most: int = 5) -> None:
    found, sizes = np.unique(labels[labels >= 0], return_counts=True)
    for category in found[np.argsort(-sizes)][:most]:
        y, x = np.nonzero(labels == category)
        middle = np.argmin((y - np.median(y)) ** 2 + (x - np.median(x)) ** 2)
        axes.text(x[middle], y[middle], words[category], fontsize=8, ha="center", va="center")
