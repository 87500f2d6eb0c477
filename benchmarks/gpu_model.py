"""Parts of ``bench_gpu.py`` about the machine and the boundary model alone."""

from __future__ import annotations

import copy
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import torch
from figures import Table
from gpu_timing import Cells, Setting, attempt, photo, photos

from subtok_data import SubobjectTokenizer
from subtok_data.boundary import BoundaryModel, load_network
from subtok_data.devices import Precision
from subtok_data.segmenters import EPOCSegmenter

CANVAS_STEPS = (32, 64, 128, 256)


def lite0() -> torch.nn.Module:
    """Load the packaged network."""
    return load_network(None).module


def b0() -> torch.nn.Module:
    """Build EPOC's network, SegFormer-b0, with random weights."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    return SegformerForSemanticSegmentation(SegformerConfig(num_labels=1))


NETWORKS: dict[str, Callable[[], torch.nn.Module]] = {"lite0": lite0, "b0": b0}


def floors(setting: Setting) -> list[Table]:
    """Measure what nothing on this machine can beat: bandwidth, launches, copies."""
    device = setting.device
    elements = 1 << (18 if setting.quick else 28)
    source = torch.empty(elements, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    ms, _ = setting.time(lambda: target.copy_(source))
    rows: list[Cells] = [["copy on the device, GB/s", 8 * elements / ms / 1e6]]
    small = torch.zeros(1, device=device)
    launches = 1000

    def launch() -> None:
        for _ in range(launches):
            small.add_(1)

    ms, host = setting.time(launch)
    rows.append(["launching a small operation, host µs", 1000 * host / launches])
    rows.append(["a small operation, device µs", 1000 * ms / launches])
    there = torch.empty(6_000_000, dtype=torch.uint8, device=device)
    for pinned in (True, False) if setting.is_cuda else (False,):
        here = torch.empty(6_000_000, dtype=torch.uint8, pin_memory=pinned)
        kind = "pinned" if pinned else "pageable"
        # Only a copy from or to pinned memory may be left to itself.
        up, _ = setting.time(lambda h=here, p=pinned: there.copy_(h, non_blocking=p))
        down, _ = setting.time(lambda h=here, p=pinned: h.copy_(there, non_blocking=p))
        rows += [[f"6 MB up, {kind}, ms", up], [f"6 MB down, {kind}, ms", down]]
    return [Table("floors of the machine", ["", "figure"], rows)]


def forwards(setting: Setting) -> list[Table]:
    """Measure forwards of equal images, by network, size, number and way."""
    sizes = setting.choose([(384, 512), (512, 512), (768, 768), (1024, 1024)], [(64, 96)])
    counts = setting.choose([1, 2, 4, 8, 16, 32], [1, 2])
    names = setting.choose(list(NETWORKS), ["lite0"])
    cases = [(n, s, c, w) for n in names for s in sizes for c in counts for w in _ways(setting)]
    columns = ["network, size, images, way", "device ms", "host ms", "images/s", "peak MB"]
    rows: list[Cells] = []
    made: dict[tuple[str, str], Any] = {}
    for name, size, count, way in setting.cases(cases):

        def row(name: str = name, size: Any = size, count: int = count, way: str = way) -> Cells:
            call = _forward(setting, name, way, size, count, made)
            device_ms, host_ms = setting.time(call)
            return [device_ms, host_ms, 1000 * count / device_ms, setting.peak_mb(call)]

        rows.append([f"{name}, {size[0]} x {size[1]}, {count}, {way}", *attempt(row, 4)])
    return [Table("one forward", columns, rows)]


def _ways(setting: Setting) -> list[str]:
    found = [f"model, {precision}" for precision in get_args(Precision)]
    found += ["module, half, channels last"]
    if setting.is_cuda:
        found += ["module, half, channels last, graph"]
    return ["model, auto", "module, half, channels last"] if setting.quick else found


def _forward(
    setting: Setting, name: str, way: str, size: tuple[int, int], count: int, made: dict[Any, Any]
) -> Callable[[], Any]:
    """Return a call of one forward: the library's way from bytes, or the bare network."""
    kind, options = way.split(", ", 1)
    if kind == "model":
        if (name, way) not in made:
            made[name, way] = BoundaryModel(
                NETWORKS[name](), device=setting.device, dtype=options, batch_size=64
            )
        model = made[name, way]
        pixels = [torch.from_numpy(photo(size, seed)).to(setting.device) for seed in range(count)]
        return lambda: model.predict_on_device(pixels)
    if (name, "module") not in made:
        dtype = torch.float16 if setting.is_cuda else torch.bfloat16
        module = copy.deepcopy(NETWORKS[name]()).eval().to(setting.device, dtype)
        made[name, "module"] = module.to(memory_format=torch.channels_last)
    module = made[name, "module"]
    dtype = next(module.parameters()).dtype
    inputs = torch.randn(count, 3, *size, device=setting.device, dtype=dtype)
    inputs = inputs.contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run() -> Any:
        return module(inputs)

    if not way.endswith("graph"):
        return run
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = run()

    def replay(held: Any = (inputs, outputs)) -> None:  # the graph reads and writes their memory
        del held
        graph.replay()

    return replay


def canvases(setting: Setting) -> Table:
    """Measure batches of photos of COCO's sizes, by canvas step; twice, the second in a new thread.

    What the second costs more is what a thread has to plan anew.
    """
    cases = [
        (longest, batch, step)
        for longest in setting.choose([512, 768], [96])
        for batch in setting.choose([8, 32], [4])
        for step in setting.choose(CANVAS_STEPS, [32, 64])
    ]
    rows: list[Cells] = []
    for longest, batch, step in setting.cases(cases):

        def row(longest: int = longest, batch: int = batch, step: int = step) -> Cells:
            images = photos(8 if setting.quick else 256, longest)
            model = BoundaryModel(lite0(), device=setting.device, canvas_step=step, batch_size=32)
            times: list[float] = []

            def epoch() -> None:
                began = time.perf_counter()
                for at in range(0, len(images), batch):
                    model.predict(images[at : at + batch])
                times.append(len(images) / (time.perf_counter() - began))

            epoch()  # loads kernels
            epoch()
            thread = threading.Thread(target=epoch)
            thread.start()
            thread.join()
            return [times[0], times[1], times[2]]

        rows.append([f"{longest}, {batch}, {step}", *attempt(row, 3)])
    columns = ["longest side, batch, canvas step", "first epoch", "second", "in a new thread"]
    return Table("canvases, images/s", columns, rows)


def precision(setting: Setting) -> Table:
    """Compare maps with those of a CPU in float32: levels, company, runs, tokens."""
    images = photos(2 if setting.quick else 24, 96 if setting.quick else 512)
    exact = BoundaryModel(lite0(), device="cpu", dtype="float32").predict(images)
    task = SubobjectTokenizer(EPOCSegmenter(device="cpu")).segment_task()
    rows: list[Cells] = []
    for dtype in setting.cases(get_args(Precision)):

        def row(dtype: Any = dtype) -> Cells:
            from subtok_data.segment import segment_image

            model = BoundaryModel(lite0(), device=setting.device, dtype=dtype)
            together = model.predict(images)
            alone = [model.predict([image])[0] for image in images]
            again = model.predict(images)

            def furthest(one: Any, other: Any) -> int:
                pairs = zip(one, other, strict=True)
                return max(int(np.abs(a.astype(int) - b).max()) for a, b in pairs)

            away = [np.abs(a.astype(int) - b) for a, b in zip(together, exact, strict=True)]
            counts = [
                [segment_image(task, {"boundary_map": one}, one.shape).num_tokens for one in maps]
                for maps in (together, exact)
            ]
            others = sum(a != b for a, b in zip(*counts, strict=True))
            return [
                max(int(one.max()) for one in away),
                statistics.mean(float(one.mean()) for one in away),
                furthest(together, alone),
                furthest(together, again),
                f"{others} of {len(images)}",
            ]

        rows.append([dtype, *attempt(row, 5)])
    columns = ["dtype", "most levels", "mean", "alone", "again", "images with other counts"]
    return Table("distance from float32 on a CPU, in levels of 255", columns, rows)
