"""``subtok tokenize``: cut every image of a folder or dataset once, and store the tokens."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subtok_data.cli.options import Commands, add_command, add_tokenizer_options, make_tokenizer
from subtok_data.cli.output import print_json, say
from subtok_data.errors import ConfigError

if TYPE_CHECKING:
    from subtok_data.data import TokenizeReport

__all__ = ["add_parser", "open_source"]

_LISTED = 20
_EXAMPLES = """\
  subtok tokenize photos/ --out tokens/
  subtok tokenize flickr8k/ --out tokens/ --split train --num-tokens 60 --workers 4
  subtok tokenize photos/ --out tokens/ --json > report.json

SRC is a folder of images (searched with its subfolders), or a Hugging Face dataset written by
save_to_disk. Read the tokens back with SubobjectDataset(dataset, tokens="tokens/"): the same
batches, without a model. The same command, given again, finishes a run that was interrupted.
"""


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(
        commands, "tokenize", "Store the tokens of a folder of images or of a dataset.", _EXAMPLES
    )
    parser.add_argument("source", metavar="SRC", help="folder of images, or dataset on disk")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the tokens")
    parser.add_argument("--split", help="which split, where SRC has several")
    parser.add_argument("--image-column", default="image", metavar="NAME", help="(default: image)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    add_tokenizer_options(parser)
    group = parser.add_argument_group("speed")
    group.add_argument(
        "--batch-size",
        type=int,
        default=8,
        metavar="N",
        help="images inferred together (default: 8)",
    )
    group.add_argument(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="processes that decode; 0 decodes in this one (default: 0)",
    )
    group.add_argument(
        "--segment-workers",
        type=int,
        metavar="N",
        help="images cut at once (default: the cores, less one)",
    )
    group.add_argument(
        "--executor",
        choices=("process", "thread", "inline"),
        default="process",
        help="where images are cut (default: process)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns 1 if an image failed."""
    from tqdm import tqdm

    dataset = open_source(args.source, args.split)
    tokenizer = make_tokenizer(args)

    from subtok_data.data import tokenize_dataset

    # Progress is for people: none where standard error goes to a file.
    with tqdm(unit=" images", disable=not sys.stderr.isatty(), total=len(dataset)) as bar:
        failed = 0

        def show(done: int, bad: int) -> None:
            nonlocal failed
            failed += bad
            bar.update(done)
            if bad:
                bar.set_postfix(failed=failed)

        try:
            report = tokenize_dataset(
                dataset,
                tokenizer,
                args.out,
                image_column=args.image_column,
                batch_size=args.batch_size,
                num_workers=args.workers,
                segment_workers=args.segment_workers,
                executor=args.executor,
                on_progress=show,
            )
        except KeyboardInterrupt:
            bar.close()
            say(f"subtok: what is done is kept in {args.out}; the same command goes on from there")
            raise
    if args.json:
        print_json({**asdict(report), "folder": str(report.folder)})
    else:
        _print(report)
    return 1 if report.failed else 0


def open_source(source: str, split: str | None) -> Any:
    """Open a folder of images, or a dataset written by ``save_to_disk``.

    Parameters
    ----------
    source : str
        Folder.
    split : str or None
        Needed where a dataset has several.

    Raises
    ------
    ConfigError
        If the folder is neither, or the split is missing or unknown.
    """
    folder = Path(source)
    is_dict = (folder / "dataset_dict.json").is_file()
    if not is_dict and not (folder / "state.json").is_file():
        if split is not None:
            raise ConfigError(
                f"--split {split}: {source!r} is a folder of images, only datasets have splits"
            )
        from subtok_data.data import ImageFiles

        return ImageFiles(folder)
    from datasets import load_from_disk

    dataset: Any = load_from_disk(str(folder))
    if not is_dict:
        if split is not None:
            raise ConfigError(f"--split {split}: the dataset in {source!r} has no splits")
        return dataset
    if split not in dataset:
        given = "none was given" if split is None else f"{split!r} is none of them"
        raise ConfigError(
            f"the dataset in {source!r} has the splits {sorted(dataset)}, {given}: "
            "name one with --split"
        )
    return dataset[split]


def _print(report: TokenizeReport) -> None:
    speed = report.images / report.seconds if report.seconds > 0 else 0.0
    print(
        f"{report.images} images, {report.tokens} tokens in {report.seconds:.1f} s "
        f"({speed:.1f} images/s); {report.bytes / 1e6:.2f} MB in {report.folder}/"
    )
    if report.rows_done_before:
        print(f"{report.rows_done_before} of {report.rows} rows were there already")
    if report.failed:
        say(f"subtok: {len(report.failed)} of {report.rows} rows have no tokens:")
        for row in report.failed[:_LISTED]:
            say(f"  {row.reason}")
        if len(report.failed) > _LISTED:
            say(f"  … and {len(report.failed) - _LISTED} more; --json lists all")
    print(f'read them with SubobjectDataset(dataset, tokens="{report.folder}")')
