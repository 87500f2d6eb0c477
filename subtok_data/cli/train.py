"""``subtok train``: train a boundary network on one's own segmentations."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subtok_data.errors import ConfigError
from subtok_data.training import PRESETS, preset

if TYPE_CHECKING:
    from types import FrameType

    from subtok_data.training import BoundarySource

__all__ = ["add_train_parser", "run_train"]

_EXAMPLES = """examples:
  subtok train run --data masks:photos,masks --init efficientnet_lite0.pth
      from MobileSAM masks of a folder of photos (tools/make_masks of the source code)
  subtok train run --data labels:images,label_pngs --validate labels:val,val_pngs --steps 2000
      from label PNGs, with a loss on held-out images, and previews in run/validation
  subtok train run --data teacher:photos,maps,masks --init earlier/final
      self-training: from the maps of earlier weights (subtok maps), and masks where there are any
  subtok train run --preset epoc --data masks:sa1b,sa1b
      the paper's recipe; SA-1B's JSON files lie beside its images
  accelerate launch -m subtok_data train run --data masks:photos,masks
      on all devices that accelerate is configured for
The same command again goes on where the run was interrupted. Then:
BoundaryModel.from_pretrained("run/final").

data: bsds:ROOT,SPLIT  panoptic[+open]:IMAGES,JSON,MAPS  instances[+open]:IMAGES,JSON
      masks:IMAGES,MASKS  labels:IMAGES,LABELS  teacher:IMAGES,MAPS[,MASKS]
"""

#: Settings that have an option of their own.
_SETTINGS: tuple[tuple[str, type[Any], str], ...] = (
    ("steps", int, "optimiser steps"),
    ("stop_after", int, "end after so many of them"),
    ("batch_size", int, "crops a device and forward pass"),
    ("accumulate", int, "forward passes a step"),
    ("learning_rate", float, "rate of AdamW"),
    ("crop", int, "side of the crops in pixels"),
    ("min_side", int, "least longest side that an image is scaled to"),
    ("max_side", int, "greatest longest side that an image is scaled to"),
    ("mixed_precision", str, "no or bf16"),
    ("logit_shift", float, "added to the logits of saved weights"),
    ("seed", int, "of crops and initial weights"),
    ("warmup", int, "steps in which the rate rises"),
    ("frozen_stages", int, "first stages of the encoder that keep their weights"),
    ("workers", int, "loader workers"),
    ("checkpoint_every", int, "steps between checkpoints"),
    ("validate_every", int, "steps between validations"),
    ("architecture", str, "lite or segformer"),
)

INTERRUPTED = 130


def add_train_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add ``train`` to the command line.

    Parameters
    ----------
    subparsers : argparse sub-parsers
        What ``ArgumentParser.add_subparsers`` returned.

    Returns
    -------
    argparse.ArgumentParser
        Its default ``run`` is `run_train`.
    """
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "train",
        help="train a boundary network on segmentations",
        description="Train a boundary network; an interrupted run goes on exactly.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("output", type=Path, help="folder of the run")
    parser.add_argument(
        "--data", action="append", required=True, metavar="KIND:…", help="repeat for several"
    )
    parser.add_argument("--validate", action="append", default=[], metavar="KIND:…")
    parser.add_argument("--init", type=Path, help="EfficientNet-Lite0 weights, or a model folder")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="default")
    for name, kind, text in _SETTINGS:
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=kind,
            metavar=kind.__name__.upper(),
            help=f"{text} (default: the preset's)",
        )
    parser.add_argument("--cpu", action="store_true", help="leave other devices alone")
    parser.add_argument(
        "--tracker",
        action="append",
        default=[],
        metavar="NAME",
        help="tensorboard, wandb, mlflow or another that accelerate knows; repeat for several",
    )
    parser.set_defaults(run=run_train)
    return parser


def run_train(options: argparse.Namespace) -> int:
    """Run ``subtok train``; returns the exit code, 130 if it was interrupted.

    Parameters
    ----------
    options : argparse.Namespace
        What the parser of `add_train_parser` gave.
    """
    from subtok_data.training import Trainer, parse_source

    given = {name: getattr(options, name) for name, _, _ in _SETTINGS}
    config = preset(options.preset, **{k: v for k, v in given.items() if v is not None})
    soft = config.labels == "soft"

    def read(texts: list[str]) -> list[BoundarySource]:
        return [parse_source(text, soft=soft, logit_shift=config.logit_shift) for text in texts]

    if options.init is not None and not options.init.exists():
        raise ConfigError(f"--init {options.init} does not exist")
    trainer = Trainer(
        config,
        read(options.data),
        options.output,
        validation=read(options.validate),
        init=options.init,
        cpu=options.cpu,
        trackers=options.tracker,
        progress=True,
    )
    for problem in trainer.problems:
        sys.stderr.write(f"left out: {problem}\n")
    if trainer.step:
        sys.stderr.write(f"going on after step {trainer.step}\n")

    def leave(number: int, frame: FrameType | None) -> None:
        del number, frame
        trainer.stop()

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        folder = trainer.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if folder is None:
        sys.stderr.write(f"stopped after step {trainer.step}; the same command goes on\n")
        return INTERRUPTED
    sys.stderr.write(f"wrote {folder}\n")
    return 0
