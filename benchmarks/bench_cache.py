"""Images per second of a loader with a cache: the first epoch, which fills it, against the next.

    python benchmarks/bench_cache.py --photos PHOTOS --images 200
    python benchmarks/bench_cache.py --photos PHOTOS --images 200 --ranks 2

With several ranks the epochs are those of all ranks together, on gloo, with a collective in every
step. Also printed: what the index of a large cache takes (``--records``), and the size of a record.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time

# Idle threads of torch sleep instead of spinning on cores that other stages need.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from pathlib import Path

import numpy as np
import torch

from subtok_data import ImageFiles, SubobjectLoader, SubobjectTokenizer
from subtok_data.data.cache import SegmentIndex, describe_cache


def epochs(args: argparse.Namespace, folder: Path) -> list[list[float]]:
    """Seconds, images and hits of each epoch on this rank."""
    files = ImageFiles(args.photos)
    rows = torch.utils.data.Subset(files, range(0, len(files), max(1, len(files) // args.images)))
    rows = torch.utils.data.Subset(rows, range(min(args.images, len(rows))))
    ranked = torch.distributed.is_initialized()
    found: list[list[float]] = []
    options = {} if args.no_cache else {"cache": folder}
    with SubobjectLoader(
        rows,
        SubobjectTokenizer(size=args.size),
        batch_size=args.batch_size,
        shuffle=True,
        num_workers=args.num_workers,
        segment_workers=args.segment_workers,
        **options,
    ) as loader:
        for _ in range(args.epochs):
            before, started = loader.stats(), time.perf_counter()
            for _ in loader:
                if ranked:
                    torch.distributed.all_reduce(torch.zeros(1))
            after = loader.stats()
            found.append(
                [
                    time.perf_counter() - started,
                    after.images - before.images,
                    after.cache_hits - before.cache_hits,
                ]
            )
    return found


def report(found: torch.Tensor, folder: Path) -> None:
    """Print the epochs of all ranks; ``found`` is (ranks, epochs, 3)."""
    seconds = found[..., 0].max(0).values
    images, hits = found[..., 1].sum(0), found[..., 2].sum(0)
    speed = images / seconds
    for epoch, own in enumerate(speed.tolist()):
        print(
            f"epoch {epoch + 1}: {own:7.1f} images/s  ×{own / speed[0]:.1f}  "
            f"hits {hits[epoch] / images[epoch]:.0%}"
        )
    if (folder / "subtok-cache.json").exists():
        info = describe_cache(folder)
        each = info.bytes / info.records
        print(f"{info.records} records in {info.segments} files, {each:,.0f} bytes a record")


def measure_index(records: int, folder: Path) -> None:
    """Print what looking up takes among so many records."""
    entries = np.random.default_rng(0).integers(0, 1 << 63, (4, records), dtype=np.uint64)
    entries[2:] = 1
    started = time.perf_counter()
    index = SegmentIndex(folder).joined([("seg-.parquet", entries)])
    merged = time.perf_counter()
    with (folder / "index").open("wb") as file:
        index.save(file)
    saved = time.perf_counter()
    mapped = SegmentIndex.map(folder / "index")
    keys = [entries[:2, at].astype(">u8").tobytes() for at in range(0, records, records // 2000)]
    looked = time.perf_counter()
    assert all(any(mapped.find(key)) for key in keys)
    per_key = (time.perf_counter() - looked) / len(keys)
    print(
        f"{records:,} records: merged in {merged - started:.2f} s, shared in "
        f"{saved - merged:.2f} s and {index.entries.nbytes / 1e6:.0f} MB, looked up in "
        f"{per_key * 1e6:.0f} µs"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="folder of images")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--segment-workers", type=int, default=1)
    parser.add_argument("--no-cache", action="store_true", help="measure the loader without one")
    parser.add_argument("--records", type=int, help="measure an index of so many instead")
    args = parser.parse_args()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // args.ranks))
    if args.records is not None:
        with tempfile.TemporaryDirectory() as folder:
            measure_index(args.records, Path(folder))
    elif "RANK" in os.environ:
        torch.distributed.init_process_group("gloo")
        folder = Path(os.environ["BENCH_CACHE"])
        own = torch.tensor(epochs(args, folder))
        every = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(every, own)
        if torch.distributed.get_rank() == 0:
            report(torch.stack(every), folder)
        torch.distributed.destroy_process_group()
    else:
        with tempfile.TemporaryDirectory() as folder:
            if args.ranks == 1:
                report(torch.tensor([epochs(args, Path(folder))]), Path(folder))
                return
            launch = ("-m", "torch.distributed.run", "--standalone")
            subprocess.run(
                [sys.executable, *launch, f"--nproc_per_node={args.ranks}", *sys.argv],
                env={**os.environ, "BENCH_CACHE": folder},
                check=True,
            )


if __name__ == "__main__":
    main()
