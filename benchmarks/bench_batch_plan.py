"""Time, memory and padding of batches planned by length, for as many rows as anybody has.

    python benchmarks/bench_batch_plan.py --rows 100_000_000

Lengths are generated: log-normal, 10 to 250 tokens, as uint16 in a memory-mapped file; the median
changes every 10,000 rows (37 to 99), as neighbours are alike in most data sets. Each plan runs in a
process of its own, for its own peak of resident memory; pages of the mapped file count into it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from figures import Table, add_json_option, write_json

from subtok_data import BatchPlan
from subtok_data.data import SubobjectBatchSampler
from subtok_data.data.loader import batch_sampler

CHUNK = 1_000_000
PLANS: dict[str, dict[str, Any]] = {
    "shuffled": {},
    "by_length": {"by_length": True},
    "max_batch_length": {"max_batch_length": 4_000},
    "by_length, max_batch_length": {"by_length": True, "max_batch_length": 4_000},
}


def write_lengths(path: Path, rows: int) -> None:
    lengths = np.memmap(path, np.uint16, "w+", shape=rows)
    for at in range(0, rows, CHUNK):
        random = np.random.default_rng(at)
        count = min(CHUNK, rows - at)
        median = np.repeat(random.uniform(3.6, 4.6, -(-count // 10_000)), 10_000)[:count]
        drawn = np.exp(median + 0.5 * random.standard_normal(count))
        lengths[at : at + count] = drawn.clip(10, 250)
    lengths.flush()


def peak_mb() -> float:
    """Peak of resident memory of this process; ``getrusage`` would count that of its parent in."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure(path: Path, name: str, batch_size: int, world: int) -> dict[str, Any]:
    """Plan as rank 1 of ``world`` does; runs in a process of its own."""
    batch_sampler.rank_and_world_size = lambda: (1, world)  # no process group for a benchmark
    clock = time.perf_counter
    lengths = np.memmap(path, np.uint16, "r")
    imported_mb = peak_mb()
    started = clock()
    plan = BatchPlan(lengths, **PLANS[name])
    sampler = SubobjectBatchSampler(
        len(lengths), batch_size, drop_last=True, shuffle=True, plan=plan
    )
    batches = len(sampler)
    found: dict[str, Any] = {"plan": name, "batches": batches, "count_s": clock() - started}
    started = clock()
    next(sampler.batches_from(0))
    found["first_s"] = clock() - started
    started = clock()
    next(sampler.batches_from(batches * 9 // 10))
    found["resume_s"] = clock() - started
    started = clock()
    places = tokens = rows = 0
    for window in sampler._epoch_batches(len(lengths), world).windows():
        own = lengths[window.rows]
        longest = np.maximum.reduceat(own, window.bounds[:-1]).astype(np.int64)
        places += int((longest * np.diff(window.bounds)).sum())
        tokens += int(own.sum(dtype=np.int64))
        rows += len(window.rows)
    found["epoch_s"] = clock() - started
    started = clock()
    given = sum(1 for _ in sampler)
    found["iterate_s"] = clock() - started
    assert given == batches
    found["rows"] = rows
    found["padding"] = 1 - tokens / places
    return {**found, "peak_mb": peak_mb(), "imported_mb": imported_mb}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--world", type=int, default=8, help="ranks")
    add_json_option(parser)
    args = parser.parse_args()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lengths.u2"
        write_lengths(path, args.rows)
        for name in PLANS:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found.append(pool.apply(measure, (path, name, args.batch_size, args.world)))
    print(f"{args.rows:,} rows, batches of {args.batch_size} on each of {args.world} ranks\n")
    print(
        "| plan | count | first batch | resume at 90 % | whole epoch, all ranks "
        "| iterate, one rank | peak memory | padding |\n|---|---|---|---|---|---|---|---|"
    )
    for one in found:
        print(
            f"| {one['plan']} | {one['count_s']:.2f} s | {one['first_s']:.2f} s "
            f"| {one['resume_s']:.2f} s | {one['epoch_s']:.1f} s | {one['iterate_s']:.1f} s "
            f"| {one['peak_mb']:.0f} MB ({one['imported_mb']:.0f} MB after imports) "
            f"| {one['padding']:.1%} |"
        )
    columns = ["", "first batch, s", "resume at 90 %, s", "whole epoch, s", "peak MB", "padding, %"]
    keys = ("first_s", "resume_s", "epoch_s", "peak_mb")
    rows = [[r["plan"], *(r[key] for key in keys), 100 * r["padding"]] for r in found]
    write_json(args.json, [Table(f"Batch plans of {args.rows:,} rows", columns, rows)], plans=found)


if __name__ == "__main__":
    main()
