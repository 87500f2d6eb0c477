"""``subtok bench``: run a benchmark of the source checkout."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from subtok_data.cli.options import Commands, add_command
from subtok_data.errors import ConfigError

__all__ = ["add_parser"]

_EXAMPLES = """\
  subtok bench watershed                  the flood against scikit-image and the original procedure
  subtok bench watershed --help           options of that benchmark
  subtok bench all --json figures/        those that need no files of yours, in some minutes
  subtok bench all --help                 options of all of them

NAME runs benchmarks/bench_NAME.py, which an installation from a checkout (pip install -e .) has.
Most write their figures, and the machine's description, to a file with --json FILE.
"""


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(commands, "bench", "Measure speed on this machine.", _EXAMPLES)
    parser.add_argument("name", metavar="NAME", help="which benchmark: watershed, loader …; or all")
    parser.add_argument(
        "rest", metavar="…", nargs=argparse.REMAINDER, help="options of the benchmark"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, folder: Path | None = None) -> int:
    """Run the benchmark in a process of its own; returns its exit code."""
    folder = folder or Path(__file__).parents[2] / "benchmarks"
    scripts = {file.stem.removeprefix("bench_"): file for file in folder.glob("bench_*.py")}
    if (folder / "run_all.py").exists():
        scripts["all"] = folder / "run_all.py"
    if not scripts:
        raise ConfigError(
            "benchmarks are part of the source checkout and not of the installed package: clone "
            "the repository, install it with `pip install -e .`, and run the command again"
        )
    if args.name not in scripts:
        raise ConfigError(f"no benchmark {args.name!r}: there are {', '.join(sorted(scripts))}")
    # Its own interpreter: what this one has imported and compiled must not colour the figures.
    return subprocess.run(
        [sys.executable, str(scripts[args.name]), *args.rest], check=False
    ).returncode
