"""``subtok tokenize``: cut every image of a folder or dataset once, and store the tokens."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any

from subtok_data.cli.options import Commands, add_command, add_tokenizer_options, make_tokenizer
from subtok_data.cli.output import print_json, say
from subtok_data.errors import ConfigError

if TYPE_CHECKING:
    from subtok_data.data import Engine, TokenizeReport

__all__ = ["add_parser"]

_LISTED = 20
_OF_RAY = ("actors", "gpus", "cpus")
_EXAMPLES = """\
  subtok tokenize photos/ --out tokens/
  subtok tokenize flickr8k/ --out tokens/ --split train --num-tokens 60 --workers 4
  subtok tokenize photos/ --out tokens/ --json > report.json
  subtok tokenize "shards/*.tar" --out s3://bucket/tokens     a file of tokens for each tar file
  subtok tokenize s3://bucket/rows/*.parquet --out tokens/ --image-column picture

on several machines that share a folder, each with its number:
  subtok tokenize photos/ --out tokens/ --part 0/64
  subtok tokenize tokens/ --status         which shards are missing or damaged
  subtok tokenize tokens/ --finish         once all parts are done
  subtok tokenize photos/ --out tokens/ --verify 200      recompute 200 images and compare
  subtok tokenize tokens/ --verify 200     without the images: checksums, lengths, 200 maps

on a cluster of Ray, or with several processes here:
  subtok tokenize photos/ --out tokens/ --engine ray --actors 1:8 --gpus 0.25 --cpus 6

SRC is a folder of images (searched with its subfolders); files or patterns: images, tar files as
WebDataset writes them, Parquet files; a Hugging Face dataset: USER/NAME, or a folder written by
save_to_disk. SRC and DIR may be on s3://, gs:// and hf:// too. Read the tokens back with
SubobjectDataset(dataset, tokens="tokens/"): the same batches, without a model. The same command,
given again, goes on with a run that was interrupted, and makes shards anew that are damaged.
"""


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(
        commands, "tokenize", "Store the tokens of a folder of images or of a dataset.", _EXAMPLES
    )
    parser.add_argument(
        "source",
        metavar="SRC",
        nargs="+",
        help="images: a folder, files, patterns, or a dataset; with --status and --finish the "
        "tokens",
    )
    parser.add_argument("--out", metavar="DIR", help="folder or URI for the tokens")
    parser.add_argument("--split", help="which split, where SRC has several")
    parser.add_argument("--image-column", default="image", metavar="NAME", help="(default: image)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    group = parser.add_argument_group("parts")
    group.add_argument(
        "--part", metavar="I/N", help="make only the I-th of N parts, counted from 0"
    )
    steps = group.add_mutually_exclusive_group()
    steps.add_argument(
        "--finish", action="store_true", help="make the tokens of all parts readable"
    )
    steps.add_argument(
        "--status", action="store_true", help="say what is missing; reads every byte there is"
    )
    steps.add_argument(
        "--verify",
        type=int,
        metavar="N",
        help="recompute N random rows and compare; with the tokens as SRC and no --out, check what "
        "can be checked without images",
    )
    group.add_argument(
        "--mixed",
        action="store_true",
        help="take shards of several devices and precisions, which may differ by some pixels",
    )
    group.add_argument(
        "--redo-changed",
        action="store_true",
        help="make shards anew whose images were changed since",
    )
    group.add_argument(
        "--shard-rows",
        type=int,
        metavar="N",
        help="images in a file (default: some 64 files, 256 to 16,384 in each)",
    )
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
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="who makes the files: this process, or actors of Ray on this machine or a cluster",
    )
    group.add_argument(
        "--actors", metavar="LOW:HIGH", help="fewest and most actors of Ray (default: 1:8)"
    )
    group.add_argument(
        "--gpus",
        type=float,
        metavar="X",
        help="GPUs of an actor, such as 0.25 (default: 1 if the model is on a GPU, else 0)",
    )
    group.add_argument("--cpus", type=float, metavar="X", help="cores of an actor (default: 1)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns 1 if an image failed, or tokens are not all there or the same."""
    if args.status:
        return _status(args)
    if args.finish:
        return _finish(args)
    if args.verify is not None:
        return _check(args) if args.out is None else _verify(args)
    if args.out is None:
        raise ConfigError("name the folder for the tokens: --out DIR")
    return _tokenize(args)


def _tokenize(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    part = _parse_part(args.part)
    engine = _engine(args)
    dataset = _open_source(args)
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
                part=part,
                engine=engine,
                redo_changed=args.redo_changed,
                on_progress=show,
                **_job_options(args),
            )
        except KeyboardInterrupt:
            bar.close()
            say(f"subtok: what is done is kept in {args.out}; the same command goes on from there")
            raise
    if args.json:
        print_json(asdict(report))
    else:
        _print(report)
    return 1 if report.num_failed else 0


def _open_source(args: argparse.Namespace) -> Any:
    from subtok_data.data import open_images

    return open_images(args.source, split=args.split, image_column=args.image_column)


def _job_options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "mixed": args.mixed,
        "image_column": args.image_column,
        "batch_size": args.batch_size,
        "num_workers": args.workers,
        "segment_workers": args.segment_workers,
        "executor": args.executor,
        "shard_rows": args.shard_rows,
    }


def _parse_part(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    number, _, parts = text.partition("/")
    if not (number.isdecimal() and parts.isdecimal()):
        raise ConfigError(f"--part {text}: give I/N, such as 0/64, the first of 64 parts")
    return int(number), int(parts)


def _engine(args: argparse.Namespace) -> Engine | None:
    options: dict[str, Any] = {
        name: getattr(args, name) for name in _OF_RAY if getattr(args, name) is not None
    }
    if args.engine != "ray":
        if options:
            raise ConfigError(f"--{next(iter(options))} is an option of --engine ray")
        return None
    if "actors" in options:
        low, _, high = args.actors.partition(":")
        if not (low.isdecimal() and high.isdecimal()):
            raise ConfigError(f"--actors {args.actors}: give LOW:HIGH, such as 1:8")
        options["actors"] = int(low), int(high)

    from subtok_data.data import RayEngine

    return RayEngine(**options)


def _status(args: argparse.Namespace) -> int:
    from subtok_data.data import TokenWriter

    folder = args.out or args.source[0]
    status = TokenWriter.open(folder).status()
    there = status.shards - len(status.missing) - len(status.damaged)
    if args.json:
        print_json(asdict(status))
    else:
        ends = "finished" if status.finished else "not finished"
        print(
            f"{there} of {status.shards} shards ({status.rows} rows) are whole in {folder}, {ends}"
        )
        if status.missing:
            print(f"missing: {_spans(status.missing)}")
        for _, why in status.damaged[:_LISTED]:
            say(f"  {why}")
    return 0 if there == status.shards and status.finished else 1


def _finish(args: argparse.Namespace) -> int:
    from subtok_data.data import StoredTokens, TokenWriter

    folder = args.out or args.source[0]
    TokenWriter.open(folder).finish()
    tokens = StoredTokens(folder)
    summary = {"rows": len(tokens), "num_failed": tokens.num_failed, "folder": str(folder)}
    if args.json:
        print_json(summary)
    else:
        print(f"tokens of {len(tokens)} rows are finished in {folder}")
        if tokens.num_failed:
            say(f"subtok: {tokens.num_failed} of {len(tokens)} rows have no tokens:")
            for _, _, reason in islice(tokens.failures(), _LISTED):
                say(f"  {reason}")
    return 1 if tokens.num_failed else 0


def _check(args: argparse.Namespace) -> int:
    """Check tokens without their images."""
    _refuse_no_rows(args)
    folder = args.source[0]

    from subtok_data.data import check_tokens

    report = check_tokens(folder, args.verify)
    if args.json:
        print_json({**asdict(report), "images_compared": False})
        return 1 if report.problems else 0
    print(
        f"{report.shards} shards are whole in {folder}, and {report.rows} rows were decoded: "
        f"{len(report.problems)} problems"
    )
    for problem in report.problems[:_LISTED]:
        say(f"  {problem}")
    print(
        f"images were not compared: for that, subtok tokenize SRC --out {folder} --verify "
        f"{args.verify}, with the options of the run"
    )
    return 1 if report.problems else 0


def _refuse_no_rows(args: argparse.Namespace) -> None:
    if args.verify < 1:
        raise ConfigError(f"--verify {args.verify}: give the number of rows, at least 1")


def _verify(args: argparse.Namespace) -> int:
    _refuse_no_rows(args)
    dataset = _open_source(args)
    tokenizer = make_tokenizer(args)

    from subtok_data.data import verify_tokens

    report = verify_tokens(dataset, tokenizer, args.out, args.verify, **_job_options(args))
    if args.json:
        print_json(asdict(report))
        return 1 if report.differing else 0
    print(
        f"{report.rows - len(report.differing)} of {report.rows} rows come out as they are stored"
    )
    for row in report.differing[:_LISTED]:
        say(f"  row {row.index}: {row.what}; {row.pixels:.2%} of the pixels differ")
    return 1 if report.differing else 0


def _spans(numbers: Sequence[int]) -> str:
    """Join numbers as ranges: 0–3, 7."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    words = [str(low) if low == high else f"{low}–{high}" for low, high in spans]
    more = f" and {len(words) - _LISTED} more ranges" if len(words) > _LISTED else ""
    return ", ".join(words[:_LISTED]) + more


def _print(report: TokenizeReport) -> None:
    speed = report.images / report.seconds if report.seconds > 0 else 0.0
    print(
        f"{report.images} images, {report.tokens} tokens in {report.seconds:.1f} s "
        f"({speed:.1f} images/s); {report.bytes / 1e6:.2f} MB in {report.folder}/"
    )
    if report.rows_done_before:
        print(f"{report.rows_done_before} of {report.rows} rows were there already")
    if report.failed:
        say(f"subtok: {report.num_failed} of {report.rows} rows have no tokens:")
        for row in report.failed[:_LISTED]:
            say(f"  {row.reason}")
        if report.num_failed > _LISTED:
            say(f"  … and {report.num_failed - _LISTED} more; --json lists up to 1,000")
    if report.finished:
        print(f'read them with SubobjectDataset(dataset, tokens="{report.folder}")')
    else:
        print(f"when all parts are done: subtok tokenize {report.folder} --finish")
