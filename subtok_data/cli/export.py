"""``subtok export``: stored tokens as COCO panoptic annotations."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from subtok_data.cli.options import Commands, add_command
from subtok_data.cli.output import print_json, say

__all__ = ["add_parser"]

_LISTED = 20
_EXAMPLES = """\
  subtok tokenize photos/ --out tokens/ --segmenter sam --segmenter-model facebook/sam-vit-base
  subtok export tokens/ coco/ --images photos/    maps of the size of the photos
  subtok export tokens/ coco/                     maps of the size that photos were tokenized at

DIR gets panoptic.json and panoptic/*.png: masks without overlap that cover the whole image. The id
of a segment is the token's number, and 1; its category is "token", or its class where the segmenter
knows classes.
"""


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(
        commands, "export", "Write stored tokens as COCO panoptic annotations.", _EXAMPLES
    )
    parser.add_argument("tokens", metavar="TOKENS", help="what subtok tokenize wrote")
    parser.add_argument("folder", metavar="DIR", help="folder for the annotations")
    parser.add_argument(
        "--images",
        metavar="SRC",
        nargs="+",
        help="the images or the dataset that was tokenized: maps get the size of their images",
    )
    parser.add_argument("--split", help="which split, where SRC has several")
    parser.add_argument("--image-column", default="image", metavar="NAME", help="(default: image)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns 1 if a row is not in the files."""
    from tqdm import tqdm

    from subtok_data.data import StoredTokens, export_panoptic, open_images

    stored = StoredTokens(args.tokens)
    images = None
    if args.images is not None:
        images = open_images(args.images, split=args.split, image_column=args.image_column)
    with tqdm(unit=" images", disable=not sys.stderr.isatty(), total=len(stored)) as bar:
        report = export_panoptic(
            stored, args.folder, images, image_column=args.image_column, on_progress=bar.update
        )
    if args.json:
        print_json(asdict(report))
    else:
        file = Path(report.folder) / "panoptic.json"
        print(f"{report.images} images, {report.tokens} segments in {file}")
    if report.failed:
        say(f"subtok: {len(report.failed)} of {len(stored)} rows are not in the files:")
        for reason in report.failed[:_LISTED]:
            say(f"  {reason}")
    return 1 if report.failed else 0
