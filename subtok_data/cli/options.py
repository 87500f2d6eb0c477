"""Options that several commands share."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from subtok_data.errors import ConfigError

if TYPE_CHECKING:
    from subtok_data.segmenters import Segmenter
    from subtok_data.tokenizer import SubobjectTokenizer

__all__ = ["Commands", "add_command", "add_tokenizer_options", "make_tokenizer"]

Commands = argparse._SubParsersAction  # pyright: ignore[reportPrivateUsage]
"""What ``add_subparsers`` returns; argparse gives it no public name."""

_SEGMENTERS = ("epoc", "patch", "superpixel", "sam", "sam-edges", "efficient-sam", "panoptic")
_OPTIONS = {
    "weights": ("epoc",),
    "threshold": ("epoc", "sam-edges"),
    "dtype": ("epoc",),
    "device": ("epoc", "sam", "sam-edges", "efficient-sam", "panoptic"),
    "segmenter-model": ("sam", "sam-edges", "efficient-sam", "panoptic"),
    "points-per-side": ("sam", "sam-edges", "efficient-sam"),
}
"""Options that only some segmenters have."""

_SAM = "a folder or hub id of SAM, SAM 2, SAM 3 or EdgeTAM"
_MODEL_OF = {
    "sam": _SAM,
    "sam-edges": _SAM,
    "efficient-sam": "EfficientSAM's TorchScript file or ONNX encoder",
    "panoptic": "a folder or hub id of Mask2Former, OneFormer or EoMT",
}


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
    """Add how images are partitioned."""
    group = parser.add_argument_group("how images are partitioned")
    group.add_argument(
        "--segmenter",
        choices=_SEGMENTERS,
        default="epoc",
        help="boundary model and watershed (default), a grid of patches, SLIC superpixels, masks "
        "of SAM, its zero-shot edges and a watershed, masks of EfficientSAM, or a panoptic model",
    )
    group.add_argument(
        "--segmenter-model",
        metavar="PATH",
        help="the model of sam, sam-edges and panoptic: a folder or a hub id; of efficient-sam: "
        "its TorchScript file, its ONNX encoder, or a folder with them",
    )
    group.add_argument(
        "--points-per-side",
        type=int,
        metavar="N",
        help="prompt SAM and EfficientSAM with N × N points (default: 32; for edges 16)",
    )
    group.add_argument(
        "--weights",
        metavar="PATH",
        help="boundary model: a folder or a hub id (default: the packaged one)",
    )
    group.add_argument(
        "--threshold",
        type=float,
        metavar="T",
        help="boundary threshold of epoc and sam-edges, in (0, 1) (default: 0.1 of sam-edges)",
    )
    group.add_argument(
        "--num-tokens", type=int, metavar="N", help="exactly N tokens per image, instead"
    )
    group.add_argument(
        "--strength",
        type=float,
        metavar="S",
        help="as many tokens as have borders stronger than S, from 0 to 1 (default: 0.4 of epoc)",
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
        help="longest side that images are resized to (default: 512)",
    )
    group.add_argument("--square", action="store_true", help="squash images to SIZE × SIZE")
    group.add_argument(
        "--device",
        help="where the model runs, cpu or cuda (default: a GPU if there is one)",
    )
    group.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="precision of the boundary model (default: what is fast on the device)",
    )


def make_tokenizer(args: argparse.Namespace) -> SubobjectTokenizer:
    """Build the tokenizer that the options describe.

    Raises
    ------
    ConfigError
        If options contradict each other.
    """
    from subtok_data.tokenizer import SubobjectTokenizer

    segmenter = _make_segmenter(args)
    return SubobjectTokenizer(
        segmenter,
        num_tokens=args.num_tokens,
        strength=args.strength,
        max_tokens=args.max_tokens,
        min_area=args.min_area,
        order=args.order,
        size=args.size,
        square=args.square,
    )


def _make_segmenter(args: argparse.Namespace) -> Segmenter:
    from subtok_data import segmenters
    from subtok_data.segmenters import DEFAULT_OPTIONS, GenerationOptions

    _refuse_foreign(args)
    kind, model, device = args.segmenter, args.segmenter_model, args.device
    if kind == "epoc":
        return _make_epoc(args)
    if kind == "patch":
        return segmenters.PatchSegmenter()
    if kind == "superpixel":
        return segmenters.SuperpixelSegmenter()
    if kind == "panoptic":
        return segmenters.PanopticSegmenter(model, device=device)
    points = {} if args.points_per_side is None else {"points_per_side": args.points_per_side}
    if kind == "sam-edges":
        return segmenters.SAMEdgeSegmenter(model, threshold=args.threshold, device=device, **points)
    if kind == "sam":
        return segmenters.SAMSegmenter(model, options=GenerationOptions(**points), device=device)
    options = replace(DEFAULT_OPTIONS, **points)
    return segmenters.EfficientSAMSegmenter(model, options=options, device=device)


def _make_epoc(args: argparse.Namespace) -> Segmenter:
    from subtok_data.segmenters import EPOCSegmenter

    if args.dtype is None:
        return EPOCSegmenter(args.weights, threshold=args.threshold, device=args.device)
    from subtok_data.boundary import BoundaryModel

    model = BoundaryModel.from_pretrained(args.weights, device=args.device, dtype=args.dtype)
    return EPOCSegmenter(model, threshold=args.threshold)


def _refuse_foreign(args: argparse.Namespace) -> None:
    """Raise ConfigError for options that the segmenter has no use for, and for a missing model."""
    kind = args.segmenter
    for name, kinds in _OPTIONS.items():
        given = getattr(args, name.replace("-", "_")) is not None
        if given and kind not in kinds:
            raise ConfigError(
                f"--{name} is an option of --segmenter {', '.join(kinds)}: leave it out with "
                f"--segmenter {kind}"
            )
    if kind in _OPTIONS["segmenter-model"] and args.segmenter_model is None:
        raise ConfigError(
            f"--segmenter {kind} needs --segmenter-model PATH: {_MODEL_OF[kind]}; "
            "no such model comes with the library"
        )
