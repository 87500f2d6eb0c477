"""``subtok maps``: the boundary maps of a folder of images, as grey PNGs."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from subtok_data.cli.options import Commands, add_command
from subtok_data.cli.output import say
from subtok_data.errors import ConfigError, SubtokError

__all__ = ["add_parser"]

_EXAMPLES = """\
  subtok maps photos/ maps/
  subtok maps photos/ maps/ --scales 0.5,1,1.5,2 --weights my_run/final
  subtok maps coco/images maps/ --only-with masks/
      images with a file of the same name in masks/, whatever its suffix

A map has the size of its image; 255 = certainly a boundary. The same command, given again,
finishes a run that was interrupted. Maps are what "subtok train --data teacher:" learns from.
"""


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(
        commands, "maps", "Write the boundary maps of a folder of images.", _EXAMPLES
    )
    parser.add_argument("images", type=Path, metavar="IMAGES", help="folder of images")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the PNGs")
    parser.add_argument(
        "--weights", metavar="PATH", help="a folder or a hub id (default: the packaged model)"
    )
    parser.add_argument(
        "--scales",
        default="1",
        metavar="S,…",
        help="multiples of the image's size; the map is the mean of theirs (default: 1)",
    )
    parser.add_argument(
        "--canvas-step",
        type=int,
        metavar="PIXELS",
        help="pad images to multiples of it, itself one of 32 (default: that of the weights)",
    )
    parser.add_argument(
        "--only-with", type=Path, metavar="DIR", help="only images with a file of this name there"
    )
    parser.add_argument("--device", help="cpu or cuda (default: a GPU if there is one)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns 1 if an image failed."""
    from PIL import Image
    from tqdm import tqdm

    from subtok_data.annotations import images_by_stem
    from subtok_data.boundary import BoundaryModel
    from subtok_data.images import to_rgb

    try:
        scales = [float(part) for part in args.scales.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"--scales {args.scales!r}: numbers separated by commas are expected"
        ) from error
    files = images_by_stem(args.images)
    if args.only_with is not None:
        if not args.only_with.is_dir():
            raise ConfigError(f"--only-with {str(args.only_with)!r} is not a folder")
        wanted = {path.stem for path in args.only_with.iterdir()}
        files = {stem: path for stem, path in files.items() if stem in wanted}
    if not files:
        raise ConfigError(f"no image to make a map of in {str(args.images)!r}")
    step = "saved" if args.canvas_step is None else args.canvas_step
    model = BoundaryModel.from_pretrained(
        args.weights, device=args.device, scales=scales, canvas_step=step
    )
    args.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for stem, path in tqdm(files.items(), unit=" images", disable=not sys.stderr.isatty()):
        target = args.out / f"{stem}.png"
        if target.exists():
            continue
        try:
            levels = model.predict(to_rgb(path))
        except SubtokError as error:
            say(f"subtok: {path}: {error}")
            failed += 1
            continue
        # Whole or not at all: what exists is not made again.
        partial = target.with_suffix(".partial")
        Image.fromarray(levels).save(partial, format="PNG")
        os.replace(partial, target)
    say(f"{len(files) - failed} maps in {args.out}")
    return 1 if failed else 0
