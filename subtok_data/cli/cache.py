"""``subtok cache``: look into a cache of tokens, merge its files, clear it."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subtok_data.cli.options import Commands, add_command
from subtok_data.cli.output import print_json, print_table, say

if TYPE_CHECKING:
    from subtok_data.data import CacheInfo

__all__ = ["add_parser"]

_EXAMPLES = """\
  subtok cache info tokens-cache/                what is in it, by configuration
  subtok cache compact tokens-cache/             one file for each, no image twice
  subtok cache compact tokens-cache/ --only 55a796728da028ae
                                                 and all other configurations deleted
  subtok cache clear tokens-cache/               all of it deleted

A cache is the folder of SubobjectLoader(cache=...). While a loader works, info is harmless, and
after compact or clear it tokenizes anew what it cannot find.
"""


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(
        commands, "cache", "Look into a cache of tokens, merge its files, or clear it.", _EXAMPLES
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    summaries = {
        "info": "Count segments, records and bytes of each configuration.",
        "compact": "Merge the segments of each configuration into one, without duplicates.",
        "clear": "Delete all that is in a cache.",
    }
    for name, summary in summaries.items():
        action = actions.add_parser(name, help=summary.rstrip("."), description=summary)
        action.add_argument("folder", type=Path, metavar="DIR", help="the folder of the cache")
        action.add_argument("--json", action="store_true", help="print the result as JSON")
        if name == "compact":
            action.add_argument(
                "--only", metavar="HASH", help="delete all configurations but this one"
            )
        action.set_defaults(run=run, action=name)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns 1 if a segment is damaged."""
    from subtok_data.data import clear_cache, compact_cache, describe_cache

    if args.action == "clear":
        info = clear_cache(args.folder)
        say(f"deleted {info.records:,} records in {info.segments:,} files, {_size(info.bytes)}")
    elif args.action == "compact":
        before = describe_cache(args.folder)
        info = compact_cache(args.folder, only=args.only)
        say(
            f"{before.segments:,} files of {_size(before.bytes)} became {info.segments:,} of "
            f"{_size(info.bytes)}"
        )
    else:
        info = describe_cache(args.folder)
    if args.json:
        print_json(_described(info))
    elif args.action != "clear":
        _print(info)
    damaged = [(part, name) for part in info.parts for name in part.damaged]
    for part, name in damaged if args.action == "info" else ():
        say(f"damaged: {args.folder / part.config_hash / part.kind / name}: delete it, or compact")
    return 1 if damaged and args.action == "info" else 0


def _described(info: CacheInfo) -> dict[str, Any]:
    totals = {"segments": info.segments, "records": info.records, "bytes": info.bytes}
    return {"folder": info.folder, **totals, "parts": [asdict(part) for part in info.parts]}


def _print(info: CacheInfo) -> None:
    rows = [
        (
            part.config_hash,
            (part.config or {}).get("segmenter", "unknown"),
            part.kind,
            f"{part.segments:,}",
            f"{part.records:,}",
            _size(part.bytes),
        )
        for part in info.parts
    ]
    print_table(["configuration", "segmenter", "made in", "files", "records", "size"], rows)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"
