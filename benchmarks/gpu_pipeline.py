"""Parts of ``bench_gpu.py`` about everything around the boundary model."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from figures import Table
from gpu_timing import Cells, Setting, attempt, jpegs, photo, photos

from subtok_data import (
    EPOCSegmenter,
    PanopticSegmenter,
    PixelConfig,
    SAMSegmenter,
    SubobjectCollator,
    SubobjectDataset,
    SubobjectLoader,
    SubobjectTokenizer,
    TokenEmbedding,
)
from subtok_data.data import tokenize_dataset
from subtok_data.segmenters import GenerationOptions

Batch = dict[str, Any]


class Repeated:
    """Rows again and again, so that an epoch is long enough to measure."""

    def __init__(self, rows: list[Batch], length: int) -> None:
        self.rows, self.length = rows, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Batch:
        return self.rows[index % len(self.rows)]


def make_loader(setting: Setting, longest: int, images: int, **options: Any) -> SubobjectLoader:
    """Make a loader of JPEG files in memory, with the packaged model on the device."""
    pixels = options.pop("pixels", PixelConfig())
    tokenizer = SubobjectTokenizer(EPOCSegmenter(device=setting.device), size=longest)
    rows = Repeated(jpegs(4 if setting.quick else 128, None), images)
    collator = SubobjectCollator(tokenizer, pixels=pixels)
    return SubobjectLoader(SubobjectDataset(rows), collator=collator, **options)


def rate(setting: Setting, batches: Iterator[Batch], warm: int) -> tuple[float, float]:
    """Images per second once the pipeline is full, and how many cores all processes kept busy."""
    for _ in range(warm):
        next(batches)
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]

    def spent() -> float:
        return sum(sum(one.cpu_times()[:2]) for one in family if one.is_running())

    images, began, before = 0, time.perf_counter(), spent()
    cores = float("nan")
    for number, batch in enumerate(batches):
        images += len(batch["num_visual_tokens"])
        if number % 16 == 15:  # while all workers live, and seldom: it takes time itself
            cores = (spent() - before) / (time.perf_counter() - began)
    setting.wait()
    return images / (time.perf_counter() - began), cores


def loaders(setting: Setting) -> list[Table]:
    """Measure the loader by workers, executor, batch, output and size."""
    where: list[tuple[str, str, Any]] = [
        ("cpu", "float32", "cpu"),
        ("cpu", "uint8", "cpu"),
        ("device", "float32", setting.device),
        ("device", "bfloat16", setting.device),
    ]
    usual = (8, 4, "process", 8, where[2], 512)
    cases = [usual]  # one thing changed at a time, the most telling first
    cases += [(8, 4, "process", 32, where[2], 512), (8, 4, "process", 8, where[2], 768)]
    cases += [(decode, 4, "process", 8, where[2], 512) for decode in (4, 12)]
    cases += [(8, segment, "process", 8, where[2], 512) for segment in (2, 8)]
    cases += [(8, 4, "thread", 8, where[2], 512)]
    cases += [(8, 4, "process", 8, one, 512) for one in where if one is not where[2]]
    cases += [(12, 8, "process", 32, where[3], 512), (12, 8, "process", 32, where[3], 768)]
    quick = [(1, 1, "thread", 2, where[0], 64)]
    rows: list[Cells] = []
    for case in setting.cases(setting.choose(cases, quick)):
        decode, segment, executor, batch, (place, dtype, _), longest = case

        def row(case: Any = case) -> Cells:
            decode, segment, executor, batch, (_, dtype, device), longest = case
            images = batch * (4 if setting.quick else max(40, 2400 // batch))
            with make_loader(
                setting,
                longest,
                images,
                num_workers=decode,
                segment_workers=segment,
                executor=executor,
                batch_size=batch,
                device=device,
                pixels=PixelConfig(dtype=dtype),
            ) as loader:
                found, cores = rate(setting, iter(loader), 2 if setting.quick else 12)
                return [found, cores]

        name = f"{decode}, {segment}, {executor}, {batch}, {place} {dtype}, {longest}"
        rows.append([name, *attempt(row, 2)])
    columns = ["decode, segment, executor, batch, output, size", "images/s", "cores busy"]
    return [Table("the loader", columns, rows)]


class Trainee:
    """A network with its optimiser, trained on the pixels of batches."""

    def __init__(self, setting: Setting, kind: str) -> None:
        self.setting, self.kind = setting, kind
        torch.manual_seed(0)
        if kind == "ResNet-18":  # many small kernels: launches are the limit
            from torchvision.models import resnet18

            self.side, self.net = 224, resnet18()
        else:  # few large ones: the GPU is the limit
            from torchvision.models import vit_b_16, vit_l_16

            self.side = 224
            self.net = (vit_b_16 if setting.quick else vit_l_16)()
        if setting.quick:
            self.side = 32
            self.net = torch.nn.Sequential(
                torch.nn.Conv2d(3, 4, 8, 8), torch.nn.Flatten(), torch.nn.LazyLinear(10)
            )
        self.net = self.net.to(setting.device)
        dtype = torch.bfloat16
        self.cast: Callable[[], Any] = lambda: torch.autocast(setting.device.type, dtype)
        self.net(torch.zeros(2, 3, self.side, self.side, device=setting.device))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-3)

    def step(self, pixels: torch.Tensor) -> None:
        """Do one training step; nothing of it waits for the device."""
        images = torch.nn.functional.interpolate(pixels.float(), (self.side, self.side))
        with self.cast():
            loss = self.net(images).float().square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def beside_training(setting: Setting) -> list[Table]:
    """Measure a training step on one ready batch, and with batches of the loader."""
    rows: list[Cells] = []
    cases = [
        (kind, batch)
        for batch in setting.choose([8, 32], [2])
        for kind in setting.choose(["ResNet-18", "ViT-L"], ["ResNet-18"])
    ]
    for kind, batch in setting.cases(cases):

        def row(kind: str = kind, batch: int = batch) -> Cells:
            trainee = Trainee(setting, kind)
            longest = 64 if setting.quick else 512
            steps = 4 if setting.quick else 60
            with make_loader(
                setting,
                longest,
                batch * (steps + 12),
                num_workers=1 if setting.quick else 8,
                segment_workers=1 if setting.quick else 4,
                batch_size=batch,
                drop_last=True,
                device=setting.device,
            ) as loader:
                batches = iter(loader)
                ready = next(batches)["pixel_values"]
                for _ in range(3):
                    trainee.step(ready)
                for _ in range(8):  # the pipeline is full, and its threads rest
                    trainee.step(next(batches)["pixel_values"])
                setting.wait()
                began = time.perf_counter()
                for _ in range(steps):
                    trainee.step(next(batches)["pixel_values"])
                setting.wait()
                beside = 1000 * (time.perf_counter() - began) / steps
            began = time.perf_counter()
            for _ in range(steps):
                trainee.step(ready)
            setting.wait()
            alone = 1000 * (time.perf_counter() - began) / steps
            return [alone, beside, beside / alone, 1000 * batch / beside]

        rows.append([f"{kind}, {batch}", *attempt(row, 4)])
    columns = ["network, batch", "step alone, ms", "with the loader, ms", "ratio", "images/s"]
    return [Table("beside training", columns, rows)]


def waits(setting: Setting) -> list[Table]:
    """Count what the host waited for in batches of the loader, and what its thread costs Python."""
    from torch.profiler import ProfilerActivity, profile

    batches = 3 if setting.quick else 20
    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if setting.is_cuda else []
    rows: list[Cells] = []
    with make_loader(
        setting,
        64 if setting.quick else 512,
        8 * 3 * (batches + 8),
        num_workers=1 if setting.quick else 8,
        segment_workers=1 if setting.quick else 4,
        batch_size=8,
        device=setting.device,
    ) as loader:
        taken = iter(loader)
        for _ in range(6):
            next(taken)
        with profile(activities=activities) as seen:
            for _ in range(batches):
                next(taken)
        counts = {event.key: event.count for event in seen.key_averages()}
        for name in (
            "cudaStreamSynchronize",
            "cudaDeviceSynchronize",
            "cudaEventSynchronize",
            "cudaMemcpy",
            "cudaMalloc",
            "cudaHostAlloc",
            "cudaLaunchKernel",
            "cudaMemcpyAsync",
            "cudaGraphLaunch",
        ):
            rows.append([f"{name} in a batch, all threads", counts.get(name, 0) / batches])
        pageable = sum(n for key, n in counts.items() if "Memcpy" in key and "Pageable" in key)
        rows.append(["copies of pageable memory in a batch", pageable / batches])
        if setting.is_cuda:
            torch.cuda.set_sync_debug_mode("warn")
            try:
                import warnings

                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    for _ in range(batches):
                        next(taken)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            found = sum("called a synchronizing" in str(one.message) for one in caught)
            rows.append(["warnings of waits in a batch, all threads", found / batches])

        def count() -> float:
            total, began = 0, time.perf_counter()
            while time.perf_counter() - began < (0.05 if setting.quick else 2.0):
                total += 1
            return total

        stop = threading.Event()

        def drain() -> None:
            for _ in taken:
                if stop.is_set():
                    return

        thread = threading.Thread(target=drain)
        thread.start()
        beside = count()
        stop.set()
        thread.join()
    rows.append(["a loop in Python beside the loader, of its speed alone", beside / count()])
    return [Table("waits and the interpreter lock", ["", "figure"], rows)]


LEAVES_EARLY = """
import sys
sys.path[:0] = {path!r}
import torch
from gpu_pipeline import make_loader
from gpu_timing import Setting
setting = Setting(torch.device({device!r}), True, 60)
if __name__ == "__main__":
    loader = make_loader(setting, 64, 64, num_workers=1, segment_workers=1, batch_size=4)
    next(iter(loader))
"""


def memory_and_time(setting: Setting) -> list[Table]:
    """Watch memory over batches of many sizes; time opening, closing and leaving."""
    rows: list[Cells] = []
    model = EPOCSegmenter(device=setting.device).model
    rounds = 3 if setting.quick else 500
    marks = {max(1, rounds // 10), rounds // 2, rounds}
    images = photos(4 if setting.quick else 200, 96 if setting.quick else None)
    for number in setting.cases(range(1, rounds + 1)):
        at = 8 * number % len(images)
        model.predict((images[at:] + images[:at])[: 2 if setting.quick else 8])
        if number in marks:
            rows.append([f"after {number} batches", *_memory(setting)])
    memory = Table(
        "memory of the device, MB",
        ["native sizes of photos", "allocated", "reserved", "inactive", "pinned"],
        rows,
    )
    times: list[Cells] = []

    def open_and_close() -> None:
        with make_loader(
            setting, 64, 16, num_workers=0, segment_workers=1, batch_size=4, device=setting.device
        ) as loader:
            next(iter(loader))

    cycles: list[float] = []
    for _ in setting.cases(range(2 if setting.quick else 50)):
        began = time.perf_counter()
        open_and_close()
        cycles.append(time.perf_counter() - began)
    times.append(["open, first batch, close, s: first time", cycles[0]])
    times.append([f"median of {len(cycles)}", statistics.median(cycles)])
    times.append(["threads left", sum("subtok" in one.name for one in threading.enumerate())])
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "leaves_early.py"
        script.write_text(LEAVES_EARLY.format(path=sys.path, device=str(setting.device)))
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False
        )
    times.append(["a script that leaves in the middle of an epoch, s", time.perf_counter() - began])
    times.append(["its exit code", done.returncode])
    times.append(["lines that it wrote to stderr", len(done.stderr.splitlines())])
    return [memory, Table("opening, closing, leaving", ["", "figure"], times)]


def _memory(setting: Setting) -> Cells:
    if not setting.is_cuda:
        return [float("nan")] * 4
    found = torch.cuda.memory_stats(setting.device)
    names = ("allocated_bytes.all.peak", "reserved_bytes.all.current")
    figures: Cells = [found[name] / 1e6 for name in names]
    figures.append(found["inactive_split_bytes.all.current"] / 1e6)
    pinned = getattr(torch.cuda, "host_memory_stats", dict)()
    return [*figures, pinned.get("allocated_bytes.current", float("nan")) / 1e6]


def other_segmenters(setting: Setting) -> list[Table]:
    """Measure SAM and Mask2Former with random weights, and a step of the token embedding."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from bench_segmenters import save_published
    from helpers import tiny_panoptic, tiny_sam

    rows: list[Cells] = []
    unsure = {"threshold": 0, "mask_threshold": 0, "overlap_threshold": 0}
    for name in setting.cases(("sam", "mask2former")):

        def row(name: str = name) -> Cells:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder)
                if setting.quick:
                    (tiny_sam if name == "sam" else tiny_panoptic).save_model(name, path)
                else:
                    save_published(name, path)
                points = 4 if setting.quick else 16
                if name == "sam":
                    options = GenerationOptions(
                        points_per_side=points, iou_threshold=0, stability_threshold=0
                    )
                    segmenter: Any = SAMSegmenter(path, options=options, device=setting.device)
                else:
                    segmenter = PanopticSegmenter(path, device=setting.device, **unsure)
                images = photos(1 if setting.quick else 4, 64 if setting.quick else 512)
                sizes = [image.shape[:2] for image in images]
                _, ms = setting.time(lambda: segmenter.infer(images, sizes), rounds=3)
                return [1000 * len(images) / ms]

        rows.append([name, *attempt(row, 1)])
    return [
        Table("other segmenters, random weights", ["", "images/s"], rows),
        _embedding(setting),
    ]


def _embedding(setting: Setting) -> Table:
    """Time a step of the token embedding, by where the maps are."""
    side = 64 if setting.quick else 512
    tokenizer = SubobjectTokenizer(EPOCSegmenter(device=setting.device), size=side)
    rows: list[Cells] = []
    cases = [
        (images, pooling, place)
        for images in setting.choose([8, 32], [2])
        for pooling in ("area", "bilinear")
        for place in ("host", "device")
    ]
    for images, pooling, place in setting.cases(cases):

        def row(images: int = images, pooling: Any = pooling, place: str = place) -> Cells:
            collator = SubobjectCollator(tokenizer)
            rows = [{"image": photo((side, side), seed)} for seed in range(images)]
            batch = dict(collator(rows))
            device = setting.device
            moved = {
                key: value.to(device)
                if isinstance(value, torch.Tensor)
                and (place == "device" or key not in TokenEmbedding.host_keys)
                else value
                for key, value in batch.items()
            }
            embedding = TokenEmbedding(768, 1024, pooling=pooling, stride=16).to(device)
            features = torch.randn(
                images, 768, side // 16, side // 16, device=device, requires_grad=True
            )
            tokens = int(batch["num_visual_tokens"].sum())

            def step() -> None:
                embedding(features, moved).sum().backward()

            device_ms, host_ms = setting.time(step)
            return [tokens, device_ms, host_ms, setting.peak_mb(step)]

        rows.append([f"{images}, {pooling}, {place}", *attempt(row, 4)])
    columns = ["images, pooling, maps on", "tokens", "device ms", "host ms", "peak MB"]
    return Table("token embedding, forward and backward", columns, rows)


def whole_dataset(setting: Setting) -> list[Table]:
    """Measure how fast the tokens of a dataset are made and stored."""
    rows: list[Cells] = []
    for batch in setting.cases(setting.choose([8, 32], [2])):

        def row(batch: int = batch) -> Cells:
            longest = 64 if setting.quick else 512
            count = 4 if setting.quick else 1600
            data = Repeated(jpegs(4 if setting.quick else 128), count)
            tokenizer = SubobjectTokenizer(EPOCSegmenter(device=setting.device), size=longest)
            with tempfile.TemporaryDirectory() as folder:
                began = time.perf_counter()
                tokenize_dataset(
                    data,
                    tokenizer,
                    Path(folder) / "tokens",
                    batch_size=batch,
                    num_workers=0 if setting.quick else 8,
                    segment_workers=1 if setting.quick else min(8, os.cpu_count() or 1),
                )
                return [count / (time.perf_counter() - began)]

        rows.append([f"batch {batch}", *attempt(row, 1)])
    return [Table("tokens of a whole dataset", ["", "images/s"], rows)]
