"""Measure a store of many generated rows: opening, memory, lengths, random and sequential reads.

python benchmarks/bench_store.py --rows 10_000_000 --folder FOLDER

Rows hold maps of 64 × 64 pixels, so that the disk takes what is asked for; larger maps take longer
to decompress, which is measured apart, on maps of 512 × 512.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from subtok_data.data import StoredTokens, TokenWriter
from subtok_data.data.store import (
    StoredRow,
    StoreMeta,
    default_shard_rows,
)
from subtok_data.token_record import decode_record, encode_record

VARIANTS = 64


def token_map(side: int, tokens: int, seed: int) -> np.ndarray:
    """Voronoi cells: smooth borders, as those of a watershed."""
    random = np.random.default_rng(seed)
    points = random.uniform(0, side, (tokens, 2))
    y, x = np.mgrid[:side, :side]
    distance = (y[..., None] - points[:, 0]) ** 2 + (x[..., None] - points[:, 1]) ** 2
    _, found = np.unique(distance.argmin(-1), return_inverse=True)
    return found.reshape(side, side).astype(np.int16)


def write_shard(folder: str, shard: int) -> int:
    writer = TokenWriter.open(folder)
    maps = [token_map(64, 8 + seed, seed) for seed in range(VARIANTS)]
    pieces = [StoredRow.of(0, [one]) for one in maps]
    with writer.shard(writer.meta.shard_info(shard, 8)) as opened:
        for index in writer.meta.shard_range(shard):
            piece = pieces[index % VARIANTS]
            opened.add(
                StoredRow(
                    index,
                    f"images/{index // 1000:06d}/{index:09d}.jpg",
                    hashlib.sha256(index.to_bytes(8, "little")).digest()[:16],
                    piece.num_visual_tokens,
                    piece.sizes,
                    piece.records,
                )
            )
    return shard


def generate(folder: str, rows: int, processes: int) -> None:
    meta = StoreMeta(
        config={"generated": True},
        config_hash="0" * 16,
        rows=rows,
        shard_rows=default_shard_rows(rows),
        device="cpu",
        dtype="float32",
    )
    writer = TokenWriter(folder, meta)
    started = time.perf_counter()
    with ProcessPoolExecutor(processes) as pool:
        for number in pool.map(write_shard, [folder] * meta.num_shards, range(meta.num_shards)):
            if number % 50 == 0:
                print(f"shard {number} of {meta.num_shards}", flush=True)
    written = time.perf_counter()
    writer.finish()
    print(f"write {meta.num_shards} shards: {written - started:.0f} s, {processes} processes")
    print(f"finish: {time.perf_counter() - written:.1f} s")


def memory() -> float:
    """Memory that is this process's own, in MB."""
    with open("/proc/self/smaps_rollup") as file:
        lines = dict(line.split(":", 1) for line in file.readlines()[1:])
    return sum(int(lines[name].split()[0]) for name in ("Private_Clean", "Private_Dirty")) / 1e3


def read(folder: str, reads: int) -> None:
    before = memory()
    started = time.perf_counter()
    tokens = StoredTokens(folder)
    tokens.read(0)
    print(f"open and read the first row: {(time.perf_counter() - started) * 1e3:.1f} ms")
    started = time.perf_counter()
    lengths = tokens.lengths()
    print(
        f"lengths of {len(lengths):,} rows, checked: {(time.perf_counter() - started) * 1e3:.1f} ms"
    )
    del lengths
    random = np.random.default_rng(0)
    everywhere = random.integers(0, len(tokens), reads)
    for name, rows in (
        ("random", everywhere),
        ("the same again", everywhere),
        ("random within 100,000 rows", random.integers(0, min(len(tokens), 100_000), reads)),
    ):
        with rate(name, reads):
            for index in rows.tolist():
                tokens.read(index)
    count = min(len(tokens), 10 * reads)
    with rate("sequential", count):
        for row in tokens.rows(0, count):
            row.decode()
    taken, files = memory() - before, len(os.listdir("/proc/self/fd"))
    print(f"memory taken: {taken:.0f} MB; files open: {files}")


@contextmanager
def rate(name: str, count: int) -> Iterator[None]:
    """Print how many a second: by the clock, and by the time of the processor."""
    wall, own = time.perf_counter(), time.process_time()
    yield
    wall, own = time.perf_counter() - wall, time.process_time() - own
    print(f"{name}: {count / wall:,.0f} reads a second, {count / own:,.0f} a core-second")


def measure_codec() -> None:
    one = token_map(512, 64, 0)
    record = encode_record(one)
    for name, step in (
        ("encode", lambda: encode_record(one)),
        ("decode", lambda: decode_record(record)),
    ):
        started = time.perf_counter()
        for _ in range(50):
            step()
        each = (time.perf_counter() - started) / 50
        print(f"{name} 512 × 512 ({len(record):,} bytes): {each * 1e3:.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--reads", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", help="where to write, and to keep (default: temporary)")
    parser.add_argument("--read-only", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read_only:
        read(args.folder, args.reads)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or temporary
        generate(folder, args.rows, args.processes)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        print(f"{size / 1e9:.2f} GB, {size / args.rows:.0f} bytes a row")
        # In a process of its own: nothing of what was written is in its memory.
        command = [sys.executable, __file__, "--read-only", "--folder", folder]
        subprocess.run([*command, "--reads", str(args.reads)], check=True)
    measure_codec()


if __name__ == "__main__":
    main()
