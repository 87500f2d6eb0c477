"""Time to the first tokens: importing, compiling on a new machine, loading code that is compiled.

    python benchmarks/bench_startup.py

Each figure is of a process of its own. Seconds of the processor count, beside those by the clock:
what compiles runs on one core, and other load on the machine would count twice.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from figures import Table, add_json_option, markdown, write_json

HEAD = (
    "import time\n"
    "def now(): return time.perf_counter(), time.process_time()\n"
    "def since(then): print(*(b - a for a, b in zip(then, now())))\n"
)
IMPORT = HEAD + "{before}\nthen = now()\n{module}\nsince(then)\n"
FIRST = (
    HEAD
    + "import numpy as np, numba, subtok_data.segment as s\n"
    + "levels = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)\n"
    + "task = s.SegmentTask({task})\n"
    + "then = now()\n"
    + "s.segment_image(task, {{'boundary_map': levels}}, levels.shape)\n"
    + "since(then)\n"
)
TASKS = {
    "strength": "s.WatershedPartitioner(), s.Budget(strength=0.4)",
    "num_tokens": "s.WatershedPartitioner(), s.Budget(num_tokens=60)",
    "threshold": "s.WatershedPartitioner(0.1)",
}


def seconds(code: str, cache: Path | None = None) -> tuple[float, float]:
    """Run code in a fresh interpreter; seconds by the clock and of the processor."""
    environment = dict(os.environ)
    if cache is not None:
        environment["NUMBA_CACHE_DIR"] = str(cache)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    wall, own = done.stdout.split()[-2:]
    return float(wall), float(own)


def middle(code: str, rounds: int, cache: Path | None = None) -> tuple[float, float]:
    found = [seconds(code, cache) for _ in range(rounds)]
    return median(wall for wall, _ in found), median(own for _, own in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    add_json_option(parser)
    args = parser.parse_args()
    rows: list[list[str | int | float]] = []
    for name, before, module in (
        ("numpy", "", "import numpy"),
        ("numba, after numpy", "import numpy", "import numba"),
        ("torch", "", "import torch"),
        (
            "SubobjectTokenizer, after torch",
            "import torch",
            "from subtok_data import SubobjectTokenizer",
        ),
        ("subtok_data.segment, after numpy", "import numpy", "import subtok_data.segment"),
    ):
        code = IMPORT.format(before=before, module=module)
        rows.append([f"import {name}", *middle(code, args.rounds)])
    files: list[list[str | int | float]] = []
    for name in args.tasks:
        with tempfile.TemporaryDirectory() as folder:
            code, cache = FIRST.format(task=TASKS[name]), Path(folder)
            rows.append([f"first tokens by {name}, nothing compiled", *seconds(code, cache)])
            rows.append([f"first tokens by {name}, compiled", *middle(code, args.rounds, cache)])
            sizes = [file.stat().st_size for file in cache.rglob("*.nbc")]
            files.append([name, len(sizes), sum(sizes) / 1e3])
    tables = [
        Table("Start-up", ["", "s", "core-s"], rows),
        Table("Compiled code on disk", ["", "files", "kB"], files),
    ]
    print("\n\n".join(markdown(table) for table in tables))
    write_json(args.json, tables)


if __name__ == "__main__":
    main()
