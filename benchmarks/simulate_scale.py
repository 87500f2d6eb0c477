"""Tokenizing 1 million to 1 billion images on 1 to 64 nodes, simulated from measured stages.

    python benchmarks/simulate_scale.py --plot docs/images/scale.png

Every shard goes to the actor that is free first, as in `subtok tokenize --engine ray`; actors start
one after the other on a node, shards take a little more or less time, all nodes read from one
storage, and `finish` runs on one process. ``STAGES`` and ``ASSUMED`` hold all figures that go in.
"""

from __future__ import annotations

import argparse
import heapq
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from subtok_data.data.store import default_shard_rows

STAGES = {
    # core-ms per image of 512 px, crowded cores: docs/loader.md, "Core-seconds"
    "decode": 4.9,
    "segment": 2.5,
    "main process": 1.3,
    # core-ms per record of 512 px, zstd 3
    "encode": 0.44,
    # core-ms per photo of 200 KB: docs/stored_tokens.md
    "hash": 0.2,
    # core-ms per image, four cores for 45 ms: docs/loader.md, "With the packaged model on the CPU"
    "model on the CPU": 180.0,
}
FINISH_S = 2.0e-6  # core-seconds a row, 100,000 generated rows
REPORT_BYTES = 367  # longest line that a shard sent back, 1,000 photos in 20 shards
STAGED_BYTES = 260_000  # an image of 256 px through the object store, were stages apart

ASSUMED = {
    "images a second of a GPU": 1000.0,  # not measured
    "bytes an image file": 200e3,
    "bytes a record": 7e3,
    "bytes a second of the storage": 10e9,
    "seconds until an actor works": 20.0,
    "share by which a shard's time varies": 0.05,
}


@dataclass(frozen=True)
class Node:
    """A machine: its actors, each with a part of its cores and GPUs."""

    name: str
    cores: int
    gpus: int
    actors: int

    def image_s(self) -> float:
        """Seconds of an actor for one image, its stages at once, each with the cores it needs."""
        cpu_s = sum(ms for stage, ms in STAGES.items() if stage != "model on the CPU") / 1e3
        cores = self.cores / self.actors
        if not self.gpus:
            return (cpu_s + STAGES["model on the CPU"] / 1e3) / cores
        return max(cpu_s / cores, self.actors / self.gpus / ASSUMED["images a second of a GPU"])


GPU = Node("GPU", cores=24, gpus=1, actors=4)
CPU = Node("CPU", cores=24, gpus=0, actors=4)


@dataclass(frozen=True)
class Result:
    rows: int
    nodes: int
    shard_rows: int
    make_s: float
    finish_s: float
    ideal_s: float
    core_hours: float
    gpu_hours: float

    @property
    def images_s(self) -> float:
        return self.rows / (self.make_s + self.finish_s)

    @property
    def efficiency(self) -> float:
        """Share of the speed that all actors would have, always at work."""
        return self.ideal_s / (self.make_s + self.finish_s)


def simulate(rows: int, nodes: int, node: Node, shard_rows: int | None = None) -> Result:
    """Give shards to actors until none is left."""
    shard_rows = shard_rows or default_shard_rows(rows)
    shards = -(-rows // shard_rows)
    actors = nodes * node.actors
    random = np.random.default_rng(0)
    # All actors at once may ask the storage for more than it gives.
    at_work = min(actors, shards)
    image_s = max(
        node.image_s(),
        at_work * ASSUMED["bytes an image file"] / ASSUMED["bytes a second of the storage"],
    )
    varied = 1 + ASSUMED["share by which a shard's time varies"] * random.standard_normal(shards)
    seconds = image_s * shard_rows * varied.clip(0.5)
    seconds[-1] *= (rows - (shards - 1) * shard_rows) / shard_rows
    start = ASSUMED["seconds until an actor works"]
    free = [start * (1 + actor % node.actors / node.actors) for actor in range(actors)]
    heapq.heapify(free)
    made = 0.0
    for one in seconds:
        end = heapq.heappop(free) + one
        heapq.heappush(free, end)
        made = max(made, end)
    finish = FINISH_S * rows
    hours = (made * nodes + finish) / 3600
    return Result(
        rows=rows,
        nodes=nodes,
        shard_rows=shard_rows,
        make_s=made,
        finish_s=finish,
        ideal_s=rows * node.image_s() / actors,
        core_hours=hours * node.cores,
        gpu_hours=made * nodes / 3600 * node.gpus,
    )


def print_table(node: Node, nodes: list[int], rows: list[int]) -> None:
    print(f"\n{node.name} nodes: {node.cores} cores, {node.gpus} GPUs, {node.actors} actors each")
    print("| images | shards | nodes | images/s | hours | efficiency | core-hours | GPU-hours |")
    print("|---|---|---|---|---|---|---|---|")
    for count in rows:
        for number in nodes:
            one = simulate(count, number, node)
            print(
                f"| {count:.0e} | {-(-count // one.shard_rows):,} | {number} | {one.images_s:,.0f} "
                f"| {(one.make_s + one.finish_s) / 3600:,.2f} | {one.efficiency:.2f} "
                f"| {one.core_hours:,.0f} | {one.gpu_hours:,.1f} |"
            )


def print_bytes(rows: list[int]) -> None:
    print("\n| images | tokens stored | files | object store | object store, staged |")
    print("|---|---|---|---|---|")
    for count in rows:
        shards = -(-count // default_shard_rows(count))
        print(
            f"| {count:.0e} | {count * ASSUMED['bytes a record'] / 1e9:,.0f} GB | {shards:,} "
            f"| {shards * REPORT_BYTES / 1e6:,.2f} MB | {count * STAGED_BYTES / 1e12:,.2f} TB |"
        )


def plot(path: Path, nodes: list[int], rows: list[int]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, node in zip(figure.subplots(1, 2), (GPU, CPU), strict=True):
        speeds = [number * node.actors / node.image_s() for number in nodes]
        axes.plot(nodes, speeds, color="0.7", label="linear")
        for count in rows:
            found = [simulate(count, number, node).images_s for number in nodes]
            axes.plot(nodes, found, marker="o", ms=3, label=f"{count / 1e6:,.0f} M images")
        small = replace(node, name="small shards")
        found = [simulate(rows[0], number, small, 1024).images_s for number in nodes]
        axes.plot(
            nodes, found, ls="--", color="C0", label=f"{rows[0] / 1e6:,.0f} M, --shard-rows 1024"
        )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(nodes, [str(number) for number in nodes])
        axes.set_xlabel("nodes")
        axes.set_title(f"{node.name} nodes, {node.cores} cores", fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
        axes.set_ylabel("images/s, finish included")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10**6, 10**7, 10**8, 10**9])
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument(
        "--gpu-images-s", type=float, default=ASSUMED["images a second of a GPU"], metavar="X"
    )
    parser.add_argument(
        "--storage-bytes-s",
        type=float,
        default=ASSUMED["bytes a second of the storage"],
        metavar="X",
    )
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    ASSUMED["images a second of a GPU"] = args.gpu_images_s
    ASSUMED["bytes a second of the storage"] = args.storage_bytes_s
    for node in (GPU, CPU):
        print_table(node, args.nodes, args.rows)
    print("\n1e+06 images in shards of 1,024:")
    for node in (GPU, CPU):
        one = simulate(10**6, max(args.nodes), node, 1024)
        print(f"{node.name}, {one.nodes} nodes: {one.images_s:,.0f} images/s, {one.efficiency:.2f}")
    print_bytes(args.rows)
    if args.plot:
        plot(args.plot, args.nodes, args.rows)


if __name__ == "__main__":
    main()
