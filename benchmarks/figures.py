"""Figures of a benchmark as tables: written as JSON with the machine they are of, and as Markdown.

Each benchmark takes ``--json FILE`` (:func:`add_json_option`) and gives its tables to
:func:`write_json`; ``run_all.py`` runs them in turn and puts the tables into docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["Table", "add_json_option", "machine", "markdown", "read_json", "write_json"]

PACKAGES = ("numpy", "numba", "torch", "pillow", "scikit-image", "opencv-python-headless", "higra")


@dataclass
class Table:
    """Rows of one measurement; the first column names them."""

    title: str
    columns: list[str]
    rows: list[list[str | int | float]]


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--json FILE``."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")


def machine() -> dict[str, Any]:
    """Describe what the figures were measured on."""
    import psutil

    versions: dict[str, str] = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_model(),
        "cores": usable,
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": versions,
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((s.split(":", 1)[1].strip() for s in lines if s.startswith("model name")), "")


def write_json(file: Path | None, tables: list[Table], **more: Any) -> None:
    """Write tables, and what else a benchmark wants to keep; nothing without a file."""
    if file is None:
        return
    record = {
        "command": " ".join(["python", "benchmarks/" + Path(sys.argv[0]).name, *_options()]),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine(),
        "tables": [asdict(table) for table in tables],
        **more,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=1, default=str))


def _options() -> list[str]:
    """Return the options of this run, without where the figures go."""
    given, kept = sys.argv[1:], []
    while given:
        option = given.pop(0)
        if option in ("--json", "--plot"):
            given = given[1:]
        elif not option.startswith(("--json=", "--plot=")):
            kept.append(option)
    return kept


def read_json(file: Path) -> tuple[dict[str, Any], list[Table]]:
    """Read what a benchmark wrote: everything, and its tables."""
    record = json.loads(file.read_text())
    return record, [Table(**table) for table in record["tables"]]


def markdown(table: Table) -> str:
    """Format a table, with its title above it."""
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    cells = ["| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines]
    return f"**{table.title}**\n\n" + "\n".join(cells)


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
