"""Options that several commands share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from subtok_data.errors import ConfigError

if TYPE_CHECKING:
    from subtok_data.tokenizer import SubobjectTokenizer

__all__ = ["Commands", "add_command", "add_tokenizer_options", "make_tokenizer"]

Commands = argparse._SubParsersAction  # pyright: ignore[reportPrivateUsage]
"""What ``add_subparsers`` returns; argparse gives it no public name."""


def add_command(
    commands: Commands[argparse.ArgumentParser], name: str, summary: str, examples: str
) -> argparse.ArgumentParser:
    """Add a command with a one-line summary and examples below its options."""
    return commands.add_parser(
        name,
        help=summary[0].lower() + summary[1:].rstrip("."),
        description=summary,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_tokenizer_options(parser: argparse.ArgumentParser) -> None:
    """Add how images are cut."""
    group = parser.add_argument_group("how images are cut")
    group.add_argument(
        "--segmenter",
        choices=("epoc", "patch", "superpixel"),
        default="epoc",
        help="boundary model and watershed (default), a grid of patches, or SLIC superpixels",
    )
    group.add_argument(
        "--weights",
        metavar="PATH",
        help="boundary model: a folder or a hub id (default: the packaged one)",
    )
    group.add_argument(
        "--threshold", type=float, metavar="T", help="boundary threshold, in (0, 1) (default: 0.1)"
    )
    group.add_argument(
        "--num-tokens", type=int, metavar="N", help="exactly N tokens per image, instead"
    )
    group.add_argument("--max-tokens", type=int, metavar="N", help="at most N tokens per image")
    group.add_argument(
        "--min-area",
        type=int,
        metavar="PX",
        help="merge tokens of fewer pixels (default: 64 by threshold, else 0)",
    )
    group.add_argument(
        "--order", choices=("area", "raster"), default="area", help="(default: area)"
    )
    group.add_argument(
        "--size",
        type=int,
        default=512,
        metavar="PX",
        help="longest side of the image that is cut (default: 512)",
    )
    group.add_argument("--square", action="store_true", help="squash images to SIZE × SIZE")
    group.add_argument(
        "--device",
        help="where the boundary model runs, cpu or cuda (default: a GPU if there is one)",
    )


def make_tokenizer(args: argparse.Namespace) -> SubobjectTokenizer:
    """Build the tokenizer that the options describe.

    Raises
    ------
    ConfigError
        If options contradict each other.
    """
    from subtok_data.segmenters import EPOCSegmenter, PatchSegmenter, SuperpixelSegmenter
    from subtok_data.tokenizer import SubobjectTokenizer

    if args.segmenter != "epoc":
        for name in ("threshold", "weights", "device"):
            if getattr(args, name) is not None:
                raise ConfigError(
                    f"--{name} is about the boundary model: leave it out with "
                    f"--segmenter {args.segmenter}"
                )
        segmenter = PatchSegmenter() if args.segmenter == "patch" else SuperpixelSegmenter()
    elif args.threshold is not None and args.num_tokens is not None:
        raise ConfigError("--threshold and --num-tokens both set the granularity: give one")
    else:
        segmenter = EPOCSegmenter(args.weights, threshold=args.threshold, device=args.device)
    return SubobjectTokenizer(
        segmenter,
        num_tokens=args.num_tokens,
        max_tokens=args.max_tokens,
        min_area=args.min_area,
        order=args.order,
        size=args.size,
        square=args.square,
    )
