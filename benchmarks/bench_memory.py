"""Resident memory of the loader over many batches, and its bytes in flight against the bound.

    python benchmarks/bench_memory.py --batches 2000 --plot docs/images/loader_memory.png

Counts the main process with its segment workers. Images are generated, of changing sizes, so that
buffers of all stages have to grow; the watershed runs on maps of their gradient.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import psutil
from figures import Table, add_json_option, write_json

from subtok_data import SubobjectLoader, SubobjectTokenizer
from subtok_data.segment import WatershedPartitioner

SIZES = ((128, 160), (160, 128), (192, 192), (96, 224))


class GradientSegmenter:
    """A boundary map without a model: differences between neighbours."""

    partitioner = WatershedPartitioner(threshold=0.1)

    def infer(self, images, sizes, prompts=None):
        return [{"boundary_map": _gradient(image)} for image in images]


def _gradient(image: np.ndarray) -> np.ndarray:
    gray = image.mean(axis=2, dtype=np.float32)
    steps = np.abs(np.diff(gray, axis=0, prepend=gray[:1]))
    steps += np.abs(np.diff(gray, axis=1, prepend=gray[:, :1]))
    return np.minimum(2 * steps, 255).astype(np.uint8)


class Blobs:
    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int):
        height, width = SIZES[index % len(SIZES)]
        random = np.random.default_rng(index)
        coarse = random.integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8)
        return {"image": np.kron(coarse, np.ones((16, 16, 1), np.uint8)), "label": index}


def resident(processes: list[psutil.Process]) -> float:
    """Megabytes that belong to these processes alone or together."""
    return sum(process.memory_info().rss for process in processes) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=8)
    add_json_option(parser)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    tokenizer = SubobjectTokenizer(GradientSegmenter(), size=None)
    rows = Blobs(args.batches * args.batch_size)
    found: list[tuple[int, float]] = []
    with SubobjectLoader(
        rows, tokenizer, batch_size=args.batch_size, segment_workers=2, prefetch_batches=3
    ) as loader:
        started = time.perf_counter()
        for number, batch in enumerate(loader):
            if number % 20 == 0:
                main_process = psutil.Process()
                found.append((number, resident([main_process, *main_process.children()])))
            del batch
        seconds = time.perf_counter() - started
        stats = loader.stats()
    per_batch = sum(h * w * 3 for h, w in SIZES) * args.batch_size // len(SIZES)
    tail = [size for number, size in found if number >= args.batches // 10]
    first, last = np.mean(tail[: len(tail) // 4]), np.mean(tail[-len(tail) // 4 :])
    print(f"{args.batches} batches in {seconds:.0f} s")
    print(f"resident after a tenth: {first:.1f} MB, at the end: {last:.1f} MB")
    print(f"largest step above the first: {max(tail) - tail[0]:.1f} MB")
    print(
        f"peak bytes in flight: {stats.peak_bytes_in_flight}, "
        f"bound (prefetch_batches + 2) x bytes of a batch: 5 x {per_batch} = {5 * per_batch}"
    )
    figures: list[list[str | int | float]] = [
        ["resident after a tenth, MB", first],
        ["resident at the end, MB", last],
        ["peak of the bytes in flight, MB", stats.peak_bytes_in_flight / 1e6],
        ["their bound, MB", 5 * per_batch / 1e6],
        ["batches a second", args.batches / seconds],
    ]
    title = f"Memory of the loader over {args.batches} batches of {args.batch_size}"
    write_json(args.json, [Table(title, ["", ""], figures)])
    if args.plot:
        plot(found, args.plot)


def plot(found: list[tuple[int, float]], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*found, strict=True), color="#2b6cb0", linewidth=1.2)
    axes.set_ylim(0, 1.15 * max(size for _, size in found))
    axes.set_xlabel("batch")
    axes.set_ylabel("resident memory (MB)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=140)


if __name__ == "__main__":
    main()
