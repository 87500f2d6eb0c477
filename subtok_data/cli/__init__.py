"""The command ``subtok``: parsers here, each command in a module of its own.

Modules of this package import only the standard library at the top, so that ``subtok --help``
answers at once; a command imports what it needs when it runs.

Exit codes: 0 all went well; 1 something failed, an image for instance; 2 the command cannot be run
as given; 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from subtok_data.cli.output import name_options
from subtok_data.errors import ConfigError, SubtokError

__all__ = ["build_parser", "main"]

_EPILOG = """\
exit codes:
  0  all went well
  1  something failed, an image for instance; the message says what
  2  the command cannot be run as given

examples:
  subtok demo                              pictures and timings of four photos
  subtok tokenize photos/ --out tokens/    store the tokens of a folder of images
  subtok COMMAND --help                    options and examples of one command
"""


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands.

    Returns
    -------
    argparse.ArgumentParser
        Parsed arguments have ``run``, a function from arguments to exit code.
    """
    from subtok_data import __version__
    from subtok_data.cli import bench, cache, demo, export, maps, tokenize
    from subtok_data.cli.evaluate import add_eval_parser
    from subtok_data.cli.train import add_train_parser

    parser = argparse.ArgumentParser(
        prog="subtok",
        description="Subobject tokens: look at them, store them, measure them, train for them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"subtok-data {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    demo.add_parser(commands)
    tokenize.add_parser(commands)
    export.add_parser(commands)
    cache.add_parser(commands)
    maps.add_parser(commands)
    bench.add_parser(commands)
    add_eval_parser(commands)
    add_train_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program name; those of this process by default.

    Returns
    -------
    int
        Exit code, see the module.

    Examples
    --------
    >>> main(["tokenize", "no-such-folder", "--out", "tokens"])
    2
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may be no UTF-8
    args = build_parser().parse_args(argv)
    # Workers share the cores with torch, whose idle threads would spin on them: where cores are
    # scarce, inference on the CPU then takes ten times as long. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return int(args.run(args))
    except ConfigError as error:
        print(f"subtok: {name_options(str(error), vars(args))}", file=sys.stderr)
        return 2
    except (SubtokError, OSError) as error:  # OSError: a full disk, a folder that is a file
        print(f"subtok: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("subtok: interrupted", file=sys.stderr)
        return 130
