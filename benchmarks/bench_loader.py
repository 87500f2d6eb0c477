"""Images per second of the loader, against its stages alone and against three ways of today.

    python benchmarks/bench_loader.py --model emulated --plot docs/images/loader_emulated.png
    python benchmarks/bench_loader.py --model real --images 160 --plot docs/images/loader_real.png
    python benchmarks/bench_loader.py --canvas-steps 32 64 128 256

``--model emulated`` replaces the boundary model by an asynchronous device: maps that were computed
before, at the host time that a GPU's launches cost and ready after its device time
(``emulated_device.py``; ``--host-us 0`` launches for free). It shows what the loader adds where a
GPU does the inference. ``--model real`` runs the packaged model on this machine.

``--canvas-steps`` measures instead what coarser canvases gain beside the emulated device: images a
forward, and images per second of the queueing thread alone and of the loader, for several batches.

Efficiency is images per second over the bound ``1 / max(slowest stage alone, core-seconds /
cores)`` per image: no schedule can be faster than its slowest stage, or than its work spread over
all cores. Stages and contenders are measured in one run, round after round; the tables give
medians.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time

# Idle threads of torch sleep instead of spinning on cores that other stages need.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from emulated_device import DeviceCosts, EmulatedDevice
from figures import Table, add_json_option, markdown, write_json
from today import CollateInWorker, CollateOriginal
from torch.utils.data import DataLoader

from subtok_data import (
    EPOCSegmenter,
    ImageFiles,
    PatchSegmenter,
    SubobjectCollator,
    SubobjectDataset,
    SubobjectLoader,
    SubobjectTokenizer,
)
from subtok_data.segment import DEFAULT_THRESHOLD, segment_image

BATCH = 8
PHOTOS = 40
AHEAD = 12
"""More batches than look-ahead and DataLoader workers prepare."""


class Rows:
    """Decoded rows again and again, so that an epoch is long enough to measure."""

    def __init__(self, dataset: Any, length: int) -> None:
        self.dataset, self.length = dataset, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index % len(self.dataset)]


def photos(folder: str = "photos/open", count: int = PHOTOS) -> Any:
    """Real photos: SUBTOK_TEST_DATA, shared/data beside the checkout, or scikit-image's own."""
    named = os.environ.get("SUBTOK_TEST_DATA")
    data_dir = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if (data_dir / folder).is_dir():
        files = ImageFiles(data_dir / folder)
        places = range(0, len(files), max(1, len(files) // count))[:count]
        return torch.utils.data.Subset(files, places)
    from skimage import data

    return [{"image": getattr(data, n)()} for n in ("astronaut", "chelsea", "coffee", "rocket")]


def per_image(
    call: Callable[[], Any], images: int, clock: Callable[[], float] = time.process_time
) -> float:
    """Core-seconds per image of one call, whatever else the machine does; or by another clock."""
    started = clock()
    call()
    return (clock() - started) / images


def stage_times(tokenizer: SubobjectTokenizer, rows: Any, emulated: bool) -> dict[str, float]:
    """Seconds per image of each stage alone, on one core; inference on all of them."""
    collator = SubobjectCollator(tokenizer)
    dataset = SubobjectDataset(rows)
    torch.set_num_threads(1)
    raws: list[Any] = []

    def decode() -> None:  # all photos: a few are large, and take most of the time
        for at in range(0, PHOTOS, BATCH):
            raws.append(collator.worker.collate([dataset[i] for i in range(at, at + BATCH)]))

    found = {"decode": per_image(decode, PHOTOS)}
    stages = collator.stages()
    batches = [stages.open(raw) for raw in raws]
    torch.set_num_threads(os.cpu_count() or 1 if not emulated else 1)

    def queue() -> None:
        for batch in batches:
            stages.infer(batch)

    def infer() -> None:
        if emulated:  # the host's part; the device works meanwhile
            found["queue"] = per_image(queue, PHOTOS, time.thread_time)
        else:
            queue()
        for batch in batches:
            if batch.inference is not None:
                batch.take_evidence(batch.inference.result())
                batch.inference = None

    found["infer"] = per_image(infer, PHOTOS, time.perf_counter)
    task = tokenizer.segment_task()
    pairs = [
        (one, image.shape[:2])
        for batch in batches
        for sample in batch.samples
        for one, image in zip(sample.evidence, sample.images, strict=True)
    ]
    found["segment"] = per_image(lambda: [segment_image(task, e, s) for e, s in pairs], len(pairs))
    torch.set_num_threads(1)
    for batch in batches:
        stages.segment(batch)
        stages.collect(batch)

    def finish() -> None:
        for batch in batches:
            stages.build(batch)
            batch.finished = None  # let go at once, as a training loop does

    finish()  # first touch of fresh memory is slow, and happens once
    found["finish"] = per_image(finish, PHOTOS)
    return found


def decoding_alone(rows: Any, tokenizer: SubobjectTokenizer, workers: int) -> float:
    """Seconds per image of decoding and transport, with the workers that the loader has."""
    loader = DataLoader(
        SubobjectDataset(rows),
        BATCH,
        collate_fn=SubobjectCollator(tokenizer),
        num_workers=workers,
        multiprocessing_context="forkserver",
    )
    iterator = iter(loader)
    for _ in range(2 * workers + 2):
        next(iterator)
    started = time.perf_counter()
    images = sum(len(pending.raw.samples) for pending in iterator)
    return (time.perf_counter() - started) / images


def epoch_rate(batches: Iterator[Any], warm_batches: int, step_s: float = 0.0) -> float:
    """Images per second after the pipeline is full."""
    iterator = iter(batches)
    for _ in range(warm_batches):
        next(iterator)
    images, started = 0, time.perf_counter()
    for batch in iterator:
        images += len(batch["pixel_values"])
        if step_s:
            time.sleep(step_s)
    return images / (time.perf_counter() - started)


def core_times(tokenizer: SubobjectTokenizer, rows: Any, workers: int) -> dict[str, float]:
    """Core-seconds per image of each kind of process, while the pipeline is full at both ends."""
    main = psutil.Process()

    def spent() -> dict[str, float]:
        found = {"main process": sum(main.cpu_times()[:2])}
        for child in main.children(recursive=True):
            is_segment = "subtok_data.segment.worker" in " ".join(child.cmdline())
            kind = "segment workers" if is_segment else "DataLoader workers"
            found[kind] = found.get(kind, 0.0) + sum(child.cpu_times()[:2])
        return found

    torch.set_num_threads(1)
    with SubobjectLoader(
        SubobjectDataset(rows),
        tokenizer,
        batch_size=BATCH,
        num_workers=workers,
        segment_workers=max(1, (os.cpu_count() or 1) - 1),
    ) as loader:
        batches = iter(loader)
        for _ in range(AHEAD):
            next(batches)
        before, images = spent(), 0
        for batch in itertools.islice(batches, len(loader) - 2 * AHEAD):
            images += len(batch["pixel_values"])
        after = spent()
    return {kind: (after[kind] - before[kind]) / images for kind in after}


def contenders(
    tokenizer: SubobjectTokenizer, rows: Any, workers: int, emulated: bool
) -> dict[str, Callable[[], float]]:
    """What is compared: a name and a function that gives images per second."""
    dataset = SubobjectDataset(rows)
    length = len(rows)
    cores = os.cpu_count() or 1

    def ours(executor: str) -> float:
        torch.set_num_threads(1 if emulated else cores)
        with SubobjectLoader(
            dataset,
            tokenizer,
            batch_size=BATCH,
            num_workers=workers,
            segment_workers=max(1, cores - 1),
            executor=executor,
        ) as loader:
            return epoch_rate(iter(loader), 6)

    def in_main() -> float:
        torch.set_num_threads(1 if emulated else cores)
        loader = DataLoader(dataset, BATCH, collate_fn=SubobjectCollator(tokenizer))
        return epoch_rate(iter(loader), 1)

    found = {
        "SubobjectLoader, processes": lambda: ours("process"),
        "SubobjectLoader, threads": lambda: ours("thread"),
        "collator in the main process": in_main,
    }
    if not emulated:
        options = {"num_workers": cores, "multiprocessing_context": "spawn"}
        short = [rows[i] for i in range(min(length, 8 * BATCH))]

        def in_workers(collate: Any) -> float:
            loader = DataLoader(_Decoded(short), BATCH, collate_fn=collate, **options)
            return epoch_rate(iter(loader), min(cores, 4))

        found["model in spawned workers"] = lambda: in_workers(CollateInWorker(tokenizer))
        found["procedure of the paper's code"] = lambda: in_workers(
            CollateOriginal(tokenizer, DEFAULT_THRESHOLD)
        )
    return found


class _Decoded:
    """Rows decoded in the worker, as plain dicts."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": SubobjectDataset(self.rows)[index].image}


def overlap(tokenizer: SubobjectTokenizer, rows: Any, workers: int, interval_s: float) -> dict:
    """Epochs beside a training step that waits: their time over that of the longer of the two.

    ``preparation``: a step as long as a batch takes when it is prepared in step, so that without
    overlap an epoch would take twice as long. ``interval``: a step as long as the loader's own
    interval between batches at full speed, the hardest case, since no time is left to catch up.
    """

    def rate(step_s: float, **options: Any) -> float:
        with SubobjectLoader(
            SubobjectDataset(rows), tokenizer, batch_size=BATCH, num_workers=workers, **options
        ) as loader:
            return epoch_rate(iter(loader), 6, step_s=step_s)

    preparation_s = BATCH / rate(0.0, prefetch_batches=0)
    return {
        "preparation": BATCH / rate(preparation_s) / preparation_s,
        "interval": BATCH / rate(interval_s) / interval_s,
    }


def known_maps(tokenizer: SubobjectTokenizer, source: Any, device: EmulatedDevice) -> None:
    """Compute the maps of all photos by the real model, for a device that only knows them."""
    for index in range(len(source)):
        image = tokenizer.canvas.fit(SubobjectDataset(source)[index].image)
        (found,) = tokenizer.segmenter.infer([image], [image.shape[:2]])
        device.maps[device.key(image)] = found["boundary_map"]


def canvas_table(args: argparse.Namespace, costs: DeviceCosts) -> None:
    """Print what coarser canvases gain, for several batch sizes, all in one run.

    Images are decoded before and partitioned into patches, so that the machine's cores are not the
    limit: what is left is the loader and the launches.
    """
    torch.set_num_threads(1)
    canvas = SubobjectTokenizer(PatchSegmenter(64), size=args.size).canvas
    dataset = SubobjectDataset(photos("coco/images", 200))
    images = [canvas.fit(dataset[i].image) for i in range(len(dataset))]
    rows = SubobjectDataset(Rows([{"image": image} for image in images], args.images))
    exact = sum(image.shape[0] * image.shape[1] for image in images) / len(images)
    cases = [(batch, step) for batch in args.batches for step in args.canvas_steps]
    found: dict[tuple[int, int], dict[str, list[float]]] = {case: {} for case in cases}

    def measure(batch: int, step: int) -> dict[str, float]:
        device = EmulatedDevice(PatchSegmenter(64).partitioner, costs, step)
        device.maps = {device.key(image): np.zeros((1, 1), np.uint8) for image in images}

        def queue() -> None:
            for at in range(0, len(images), batch):
                device.launch(images[at : at + batch], None)

        queue_s = per_image(queue, len(images), time.thread_time)  # whatever core it gets
        figures = {
            "images a forward": device.images / device.forwards,
            "pixels": device.pixels / device.images / exact,
            "queueing, ms": 1000 * queue_s,
            "queueing, images/s": 1 / queue_s,
        }
        with SubobjectLoader(
            rows,
            SubobjectTokenizer(device, size=args.size),
            batch_size=batch,
            num_workers=1,
            segment_workers=1,
        ) as loader:
            started = time.process_time()
            figures["loader, images/s"] = epoch_rate(iter(loader), max(2, 48 // batch))
            figures["main process, ms"] = 1000 * (time.process_time() - started) / len(rows)
        return figures

    for _ in range(args.rounds):
        for case in cases:
            for name, value in measure(*case).items():
                found[case].setdefault(name, []).append(value)
    names = list(found[cases[0]])
    print(
        f"emulated device, {costs.operations} operations of {costs.host_us} us, {args.size} px, "
        f"{len(images)} photos, {os.cpu_count()} cores, medians of {args.rounds} rounds\n"
    )
    print("| batch | canvas step | " + " | ".join(names) + " | loader, ratio |")
    print("|---" * (len(names) + 3) + "|")
    for (batch, step), of in found.items():
        # Rounds in pairs: other load on the machine meets both.
        base = found[batch, args.canvas_steps[0]]["loader, images/s"]
        ratios = [a / b for a, b in zip(of["loader, images/s"], base, strict=True)]
        middle = [statistics.median(of[name]) for name in names]
        cells = [f"{value:.0f}" if value >= 100 else f"{value:.2f}" for value in middle]
        print(f"| {batch} | {step} | {' | '.join(cells)} | {statistics.median(ratios):.2f} |")
    rows = [
        [f"{batch}, {step}", *(statistics.median(of[name]) for name in names)]
        for (batch, step), of in found.items()
    ]
    write_json(args.json, [Table("Canvas steps", ["batch, canvas step", *names], rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=("emulated", "real"), default="emulated")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--images", type=int, default=480, help="images per epoch and contender")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=3, help="DataLoader workers")
    costs = DeviceCosts()
    parser.add_argument(
        "--device-ms", type=float, default=costs.device_ms, help="emulated, per 512 x 512 pixels"
    )
    parser.add_argument(
        "--host-us", type=float, default=costs.host_us, help="emulated, of each operation launched"
    )
    parser.add_argument("--canvas-steps", type=int, nargs="+", help="compare these instead, in px")
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32], help="with canvas steps")
    add_json_option(parser)
    parser.add_argument("--plot", type=Path, help="also draw them here")
    args = parser.parse_args()
    costs = DeviceCosts(host_us=args.host_us, device_ms=args.device_ms)
    if args.canvas_steps:
        if bad := [step for step in args.canvas_steps if step < 32 or step % 32]:
            parser.error(f"--canvas-steps {bad[0]}: give multiples of 32")
        canvas_table(args, costs)
        return
    emulated = args.model == "emulated"
    source = photos()
    rows = Rows(source, args.images)
    tokenizer = SubobjectTokenizer(EPOCSegmenter(device="cpu"), size=args.size)
    if emulated:
        device = EmulatedDevice(tokenizer.segmenter.partitioner, costs)
        known_maps(tokenizer, source, device)
        tokenizer = SubobjectTokenizer(device, size=args.size)
    cores = os.cpu_count() or 1
    stage_times(tokenizer, rows, emulated)  # loads compiled code, fills caches
    stages: list[dict[str, float]] = []
    rates: dict[str, list[float]] = {}
    efficiency: dict[str, list[float]] = {}
    overlaps: list[dict[str, float]] = []
    for _ in range(args.rounds):
        times = stage_times(tokenizer, rows, emulated)
        core_s = sum(t for name, t in times.items() if name != "infer")
        core_s += 0.0 if emulated else times["infer"] * cores
        pipe = f"decode, {args.workers} workers and transport"
        times[pipe] = decoding_alone(rows, tokenizer, args.workers)
        stages.append(times)
        slowest = max(times["infer"], times["finish"], times[pipe])
        bound = 1 / max(slowest, core_s / cores)
        for name, call in contenders(tokenizer, rows, args.workers, emulated).items():
            rates.setdefault(name, []).append(call())
            efficiency.setdefault(name, []).append(rates[name][-1] / bound)
        fastest = rates["SubobjectLoader, processes"][-1]
        overlaps.append(overlap(tokenizer, rows, args.workers, BATCH / fastest))
    cores_s = core_times(tokenizer, rows, args.workers) if emulated else {}
    report(args, stages, rates, efficiency, overlaps, cores_s)


def report(args, stages, rates, efficiency, overlaps, cores_s) -> None:
    where = f"{args.model} model, {args.size} px, {os.cpu_count()} cores, batch {BATCH}"
    alone = {name: statistics.median(one[name] for one in stages) for name in stages[0]}
    tables = [
        Table(
            f"Stages alone, {where}",
            ["", "ms per image"],
            [[name, 1000 * seconds] for name, seconds in alone.items()],
        ),
        Table(
            f"Loaders, {where}",
            ["", "images/s", "of the bound"],
            [
                [name, statistics.median(of), statistics.median(efficiency[name])]
                for name, of in rates.items()
            ],
        ),
    ]
    if cores_s:
        floor, total = alone["decode"] + alone["segment"] + alone["finish"], sum(cores_s.values())
        spent_in = [[name, 1000 * s, s / floor] for name, s in cores_s.items()]
        spent_in.append(["together", 1000 * total, total / floor])
        head = ["", "core-ms per image", "of decode + segment + finish alone"]
        tables.append(Table("Core-seconds of an epoch by process", head, spent_in))
    print("\n\n".join(markdown(table) for table in tables))
    for name, words in {
        "preparation": "a batch's preparation without overlap",
        "interval": "the loader's own interval",
    }.items():
        ratio = statistics.median(one[name] for one in overlaps)
        print(f"\nEpoch beside a training step as long as {words}: {ratio:.2f}x the step")
    figures = {"stages": stages, "rates": rates, "efficiency": efficiency, "overlap": overlaps}
    write_json(args.json, tables, **figures, core_seconds=cores_s)
    if args.plot:
        plot(args, rates, efficiency)


def plot(args, rates, efficiency) -> None:
    """Bars of images per second, and where the bound lies."""
    from matplotlib.figure import Figure

    names = list(rates)[::-1]
    medians = [statistics.median(rates[name]) for name in names]
    first = next(iter(rates))
    bound = statistics.median(r / e for r, e in zip(rates[first], efficiency[first], strict=True))
    figure = Figure(figsize=(7, 0.8 + 0.42 * len(names)), layout="constrained")
    axes = figure.subplots()
    ours = ["#2b6cb0" if name.startswith("Subobject") else "#a0aec0" for name in names]
    bars = axes.barh(names, medians, color=ours, height=0.65)
    axes.bar_label(bars, fmt="%.0f", label_type="center", color="white", weight="bold")
    axes.axvline(bound, color="#c53030", linewidth=1.2)
    axes.set_ylim(-0.5, len(names) + 0.1)
    words = f"bound {bound:.0f} "
    axes.text(bound, len(names) - 0.3, words, color="#c53030", ha="right", va="center")
    axes.set_xlim(0, 1.15 * max(bound, *medians))
    axes.set_xlabel(
        f"images per second ({args.model} model, {args.size} px, {os.cpu_count()} cores)"
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(args.plot, dpi=140)


if __name__ == "__main__":
    main()
