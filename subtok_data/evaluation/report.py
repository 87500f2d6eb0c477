"""Evaluation of boundary maps and token maps on an annotated set, and its files."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from subtok_data.errors import ConfigError
from subtok_data.evaluation.boundary_metrics import (
    BoundaryCounts,
    count_boundaries,
    score_boundaries,
)
from subtok_data.evaluation.results import Report, TokenRow
from subtok_data.evaluation.token_metrics import Reference, TokenScores, mean_scores, token_scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from subtok_data.evaluation.cutters import Cutter
    from subtok_data.evaluation.datasets import AnnotatedSet

__all__ = ["evaluate", "write_report"]

MapMaker = Callable[["NDArray[np.uint8]"], "NDArray[np.uint8]"]

#: Maps whose lines are one pixel wide already.
THIN_ALREADY = ("canny",)


def evaluate(
    images: AnnotatedSet,
    makers: Mapping[str, MapMaker],
    cutters: Sequence[Cutter],
    *,
    boundaries: bool = True,
    thresholds: int = 33,
    original: bool = True,
    progress: bool = False,
) -> Report:
    """Measure boundary maps and token maps on every image.

    Parameters
    ----------
    images : AnnotatedSet
        Images with human segmentations.
    makers : mapping of str to callable
        RGB (H, W, 3) uint8 → boundary map (H, W) uint8.
    cutters : sequence of Cutter
        Ways to segment; those that read a boundary map name one of `makers`.
    boundaries : bool
        Score the boundary maps too.
    thresholds : int
        Thresholds of the boundary figures.
    original : bool
        Compute the original's monosemanticity too.
    progress : bool
        Show a bar.

    Returns
    -------
    Report
        Means over the images.

    Raises
    ------
    ConfigError
        No image.
    """
    if not len(images):
        raise ConfigError(f"{images.name} has no images")
    counts: dict[str, list[BoundaryCounts]] = defaultdict(list)
    scores: dict[tuple[str, str], list[TokenScores]] = defaultdict(list)
    for one in tqdm(
        images, total=len(images), desc=images.name, unit="image", disable=not progress
    ):
        maps = {name: make(one.image) for name, make in makers.items()}
        if boundaries:
            for name, boundary_map in maps.items():
                counts[name].append(
                    count_boundaries(
                        boundary_map,
                        one.boundaries,
                        thresholds=thresholds,
                        thin=name not in THIN_ALREADY,
                    )
                )
        if not cutters:
            continue
        reference = Reference(one.label_maps, original=original)
        for cutter in cutters:
            for setting, token_map in cutter(one.image, maps).items():
                scores[cutter.name, setting].append(token_scores(token_map, reference))
    return Report(
        images.name,
        len(images),
        {name: score_boundaries(rows) for name, rows in counts.items()},
        [TokenRow(*key, mean_scores(rows)) for key, rows in scores.items()],
    )


def write_report(folder: str | Path, reports: Sequence[Report]) -> list[Path]:
    """Write ``report.json``, ``report.md`` and the plots of each data set.

    Parameters
    ----------
    folder : path
        Made if missing.
    reports : sequence of Report
        One a data set.

    Returns
    -------
    list of Path
        The files.
    """
    from subtok_data.evaluation.plots import plot_precision_recall, plot_tokens

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    table, data = folder / "report.md", folder / "report.json"
    table.write_text("\n".join(one.to_markdown() for one in reports), encoding="utf-8")
    data.write_text(
        json.dumps([one.to_dict() for one in reports], indent=1) + "\n", encoding="utf-8"
    )
    written = [table, data]
    for report in reports:
        stem = "".join(c if c.isalnum() else "_" for c in report.dataset.lower())
        if report.boundaries:
            written.append(folder / f"{stem}_boundaries.png")
            plot_precision_recall(report).savefig(written[-1], dpi=110)
        if report.tokens:
            written.append(folder / f"{stem}_tokens.png")
            plot_tokens(report).savefig(written[-1], dpi=110)
    return written
