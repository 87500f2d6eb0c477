"""What the parts of ``bench_gpu.py`` share: where they run, how they time, what they run on."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

Cells = list[str | int | float]

# Sizes of COCO's photos (height, width), in about the shares in which they occur.
COCO_SIZES = (
    [(480, 640)] * 9
    + [(640, 480)] * 4
    + [(427, 640)] * 5
    + [(640, 427)] * 2
    + [(426, 640), (640, 426), (375, 500), (500, 375), (612, 612), (640, 640), (360, 640)]
    + [(333, 500), (640, 512), (424, 640), (478, 640), (640, 481), (500, 333)]
)


@dataclass
class Setting:
    """Device, size of the run, and what it has taken so far.

    Attributes
    ----------
    device : torch.device
        Where the parts run.
    quick : bool
        Tiny forms of all parts, to see that they run.
    seconds : float
        A part begins no further case after so many.
    left_out : int
        Cases of the running part that were not begun.
    """

    device: torch.device
    quick: bool
    seconds: float
    left_out: int = 0
    _ends: float = field(default=0.0, repr=False)

    @property
    def is_cuda(self) -> bool:
        """Whether there are streams, events and pinned memory."""
        return self.device.type == "cuda"

    def choose(self, full: Sequence[Any], quick: Sequence[Any]) -> Sequence[Any]:
        """Return the cases of a full or of a quick run."""
        return quick if self.quick else full

    def begin(self) -> None:
        """Start the clock of a part."""
        self.left_out, self._ends = 0, time.monotonic() + self.seconds

    def cases(self, cases: Sequence[Any]) -> Iterator[Any]:
        """Yield cases until the part's time is up; at least one."""
        for at, case in enumerate(cases):
            if at and time.monotonic() > self._ends:
                self.left_out += len(cases) - at
                return
            yield case

    def wait(self) -> None:
        """Wait until the device has done what was queued."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def time(self, call: Callable[[], Any], rounds: int = 5) -> tuple[float, float]:
        """Time a call after one that warms up: ms on the device, ms until it returned; medians.

        On a CPU both are the same.
        """
        call()
        self.wait()
        device: list[float] = []
        host: list[float] = []
        for _ in range(2 if self.quick else rounds):
            if self.is_cuda:
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
            began = time.perf_counter()
            call()
            host.append(1000 * (time.perf_counter() - began))
            if self.is_cuda:
                end.record()
                end.synchronize()
                device.append(start.elapsed_time(end))
        return statistics.median(device or host), statistics.median(host)

    def peak_mb(self, call: Callable[[], Any]) -> float:
        """Return the most device memory that a call holds at one time beside what was there."""
        if not self.is_cuda:
            call()
            return float("nan")
        self.wait()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        call()
        self.wait()
        return (torch.cuda.max_memory_allocated(self.device) - before) / 1e6


def photo(size: tuple[int, int], seed: int) -> np.ndarray:
    """Make an image with borders: soft regions of colour, and noise of a camera."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (7, 9, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))
    flat = (smooth // 64) * 64 + random.integers(0, 8, (*size, 1), np.uint8)
    return flat.astype(np.uint8)


def photos(count: int, longest: int | None = None) -> list[np.ndarray]:
    """Make images of COCO's sizes in a mixed order; with a longest side, scaled to it."""
    order = np.random.default_rng(0).permutation(max(count, len(COCO_SIZES))) % len(COCO_SIZES)
    found: list[np.ndarray] = []
    for seed in range(count):
        height, width = COCO_SIZES[order[seed]]
        scale = 1.0 if longest is None else longest / max(height, width)
        found.append(photo((round(height * scale), round(width * scale)), seed))
    return found


def jpegs(count: int, longest: int | None = None) -> list[dict[str, Any]]:
    """Make rows of a dataset: photos as JPEG files in memory."""
    rows: list[dict[str, Any]] = []
    for image in photos(count, longest):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=85)
        rows.append({"image": file.getvalue()})
    return rows


def attempt(call: Callable[[], Cells], width: int) -> Cells:
    """Return the cells of a row, or what went wrong: one case must not end the sitting."""
    try:
        return call()
    except Exception as error:  # any: unknown hardware
        words = f"{type(error).__name__}: {error}".split("\n")[0][:80].replace("|", "/")
        return [words, *[""] * (width - 1)]
