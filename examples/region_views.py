"""Pictures of caption_regions.py: the loss, and held-out regions with their captions."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.patches import Rectangle

__all__ = ["draw_curve", "draw_regions"]


def draw_curve(entries: list[dict[str, float]], path: Path) -> None:
    """Plot the loss of every step, and its running mean."""
    losses = np.array([one["loss"] for one in entries])
    width = max(1, len(losses) // 25)
    smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
    figure, axis = pyplot.subplots(figsize=(5, 3))
    axis.plot(losses, color="C0", alpha=0.25)
    axis.plot(np.arange(len(smooth)) + width // 2, smooth, color="C0")
    axis.set(xlabel="step", ylabel="loss per text token")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw_regions(
    datasets: list[Any],
    found: list[list[dict[str, Any]]],
    path: Path,
    *,
    shown: Collection[int] | None = None,
    pictures: int = 6,
    regions: int = 5,
) -> None:
    """Draw held-out pictures with their largest regions: green where the caption is right.

    ``shown`` holds the ids of the pictures to choose from; all by default.
    """
    chosen = [
        (dataset, own, sample)
        for dataset, own in zip(datasets, found, strict=True)
        for sample in _fullest(dataset, own, pictures // len(datasets), shown)
    ]
    figure, axes = pyplot.subplots(2, -(-len(chosen) // 2), figsize=(12, 7), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (dataset, own, number) in zip(axes.flat, chosen, strict=False):
        sample = dataset[number]
        prompts = sample.prompts[0]
        masks = prompts.regions()
        axis.imshow(sample.image)
        for place in np.argsort(-masks.areas)[:regions].tolist():
            one = next(o for o in own if o["sample"] == number and o["region"] == place)
            x0, y0, x1, y1 = prompts.bounds()[place].tolist()
            colour = "#0a9d3c" if one["right"] else "#d62728"
            axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=colour, lw=1.5))
            axis.text(
                *(x0 + 2, y0 + 2),
                one["caption"] if one["right"] else f"{one['caption']} ({one['phrases'][0]})",
                va="top",
                fontsize=7,
                color="white",
                bbox={"facecolor": colour, "pad": 1, "lw": 0},
                clip_on=True,
            )
    figure.tight_layout()
    figure.savefig(path, dpi=80, pil_kwargs={"quality": 80})
    pyplot.close(figure)


def _fullest(
    dataset: Any, found: list[dict[str, Any]], count: int, shown: Collection[int] | None
) -> list[int]:
    """Samples with three to eight regions first."""
    numbers: dict[int, int] = {}
    for one in found:
        if shown is None or dataset.dataset[one["sample"]]["image_id"] in shown:
            numbers[one["sample"]] = numbers.get(one["sample"], 0) + 1
    ranked = sorted(numbers, key=lambda sample: (not 3 <= numbers[sample] <= 8, sample))
    return ranked[:count]
