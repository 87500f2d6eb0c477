"""``subtok eval``: boundaries and tokens against human segmentations."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subtok_data.errors import ConfigError

if TYPE_CHECKING:
    from subtok_data.evaluation import AnnotatedSet, MapMaker

__all__ = ["add_eval_parser", "run_eval"]

_EXAMPLES = """examples:
  subtok eval --bsds BSDS500
      the packaged weights, Sobel and Canny on the validation split; patches, SLIC, Felzenszwalb
  subtok eval --bsds BSDS500 --maps default,my_run/final --counts 60 --output results
      two models at 60 tokens; report.md, report.json and plots in results/
  subtok eval --panoptic images panoptic.json panoptic_maps --limit 50 --json
      50 images of COCO panoptic, figures as JSON on standard output
"""


def add_eval_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add ``eval`` to the command line.

    Parameters
    ----------
    subparsers : argparse sub-parsers
        What ``ArgumentParser.add_subparsers`` returned.

    Returns
    -------
    argparse.ArgumentParser
        Its default ``run`` is `run_eval`.
    """
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "eval",
        help="measure boundaries and tokens against human segmentations",
        description="Measure boundary maps (ODS, OIS, AP) and tokens (accuracy, covering, recall, "
        "purity) against human segmentations.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    data = parser.add_argument_group("data (one or more)")
    data.add_argument("--bsds", metavar="ROOT", help="folder of BSDS500")
    data.add_argument("--split", default="val", help="split of BSDS500 (default: val)")
    data.add_argument(
        "--panoptic", nargs=3, metavar=("IMAGES", "JSON", "MAPS"), help="COCO panoptic"
    )
    data.add_argument("--labels", nargs=2, metavar=("IMAGES", "LABELS"), help="label PNGs")
    data.add_argument("--limit", type=int, help="so many images of each, evenly spread")
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--maps",
        default="sobel,canny,default",
        help="boundary maps: sobel, canny, default (packaged weights), folders or hub ids, "
        "separated by commas (default: %(default)s)",
    )
    what.add_argument("--counts", default="30,60,120", help="token counts (default: %(default)s)")
    what.add_argument(
        "--thresholds",
        default="0.02,0.05,0.1,0.15,0.2,0.3,0.4,0.5",
        help="watershed thresholds (default: %(default)s)",
    )
    what.add_argument(
        "--min-areas",
        default="0",
        help="tokens by threshold of fewer pixels merge, 64 as in the tokenizer "
        "(default: %(default)s)",
    )
    what.add_argument(
        "--strengths", default="0.2,0.4,0.8", help="border strengths (default: %(default)s)"
    )
    what.add_argument("--merges", default="balanced", help="merge costs: balanced, boundary")
    what.add_argument(
        "--ods-thresholds", type=int, default=33, help="thresholds of ODS (default: %(default)s)"
    )
    what.add_argument("--no-boundaries", action="store_true", help="leave out ODS, OIS, AP")
    what.add_argument("--no-tokens", action="store_true", help="leave out token figures")
    what.add_argument("--no-original", action="store_true", help="leave out the slowest figure")
    parser.add_argument("--device", help="where models run (default: CUDA if there is one)")
    parser.add_argument("--output", type=Path, help="folder for report.md, report.json and plots")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.set_defaults(run=run_eval)
    return parser


def run_eval(options: argparse.Namespace) -> int:
    """Run ``subtok eval``; returns the exit code.

    Parameters
    ----------
    options : argparse.Namespace
        What the parser of `add_eval_parser` gave.
    """
    from subtok_data.evaluation import (
        FelzenszwalbCutter,
        MergeCutter,
        PatchCutter,
        SlicCutter,
        ThresholdCutter,
        evaluate,
        write_report,
    )

    makers = _makers(options.maps, options.device)
    cutters: list[Any] = []
    if not options.no_tokens:
        counts = _numbers(options.counts, int, "counts")
        thresholds = _numbers(options.thresholds, float, "thresholds")
        strengths = _numbers(options.strengths, float, "strengths")
        areas = _numbers(options.min_areas, int, "min-areas")
        cutters = [PatchCutter(counts), SlicCutter(counts), FelzenszwalbCutter(counts)]
        for name in makers:
            if name not in ("sobel", "canny"):
                cutters += [ThresholdCutter(name, thresholds, area) for area in areas]
                merges: list[Any] = options.merges.split(",")
                cutters += [MergeCutter(name, "strength", strengths, merge) for merge in merges]
                cutters += [MergeCutter(name, "num_tokens", counts, merge) for merge in merges]
    reports = [
        evaluate(
            one.every(options.limit),
            makers,
            cutters,
            boundaries=not options.no_boundaries,
            thresholds=options.ods_thresholds,
            original=not options.no_original,
            progress=sys.stderr.isatty(),
        )
        for one in _sets(options)
    ]
    if options.output:
        for path in write_report(options.output, reports):
            sys.stderr.write(f"wrote {path}\n")
    if options.json:
        sys.stdout.write(json.dumps([one.to_dict() for one in reports]) + "\n")
    else:
        sys.stdout.write("\n".join(one.to_markdown() for one in reports) + "\n")
    return 0


def _sets(options: argparse.Namespace) -> list[AnnotatedSet]:
    from subtok_data.evaluation import read_bsds, read_label_maps, read_panoptic

    sets: list[AnnotatedSet] = []
    if options.bsds:
        sets.append(read_bsds(options.bsds, options.split))
    if options.panoptic:
        sets.append(read_panoptic(*options.panoptic))
    if options.labels:
        sets.append(read_label_maps(*options.labels))
    if not sets:
        raise ConfigError("nothing to measure on: give --bsds, --panoptic or --labels")
    return sets


def _makers(names: str, device: str | None) -> dict[str, MapMaker]:
    from subtok_data.boundary import BoundaryModel
    from subtok_data.evaluation import BASELINES

    makers: dict[str, MapMaker] = {}
    for name in names.split(","):
        if name in BASELINES:
            makers[name] = BASELINES[name]
            continue
        model = BoundaryModel.from_pretrained(None if name == "default" else name, device=device)
        shown = model.name if model.name not in makers else name

        def make(image: Any, model: BoundaryModel = model) -> Any:
            return model.predict([image])[0]

        makers[shown] = make
    return makers


def _numbers(text: str, kind: type[Any], name: str) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--{name} {text!r}: numbers separated by commas are expected") from error
