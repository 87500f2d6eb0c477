"""A GPU without a GPU: maps that are known before, at the price that a GPU asks of its host.

Queueing a forward costs the calling thread time, for each operation and whatever its size: Python
calls the module, torch dispatches, the driver takes the launch. On a fast GPU this is more than the
computation, so that images per second are decided by the number of forwards, and that by how many
images of a batch share a canvas. A device that launches for free hides it.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from subtok_data.boundary.padding import balanced, group
from subtok_data.segment import Partitioner

Image = NDArray[np.uint8]

# Of how many pixels a forward is at most: 16 images of 512 x 512, as BoundaryModel's batch_size.
_PIXELS_AT_ONCE = 16 * 512**2


def _churn(rounds: int) -> int:
    """Arithmetic that no compiler shortens: each step needs the one before."""
    state = 88172645463325252
    for _ in range(rounds):
        state ^= (state << 13) & 0x7FFFFFFFFFFFFFFF
        state ^= state >> 7
        state ^= (state << 17) & 0x7FFFFFFFFFFFFFFF
    return state


_hold = numba.njit("int64(int64)")(_churn)
_release = numba.njit("int64(int64)", nogil=True)(_churn)


@dataclass(frozen=True)
class DeviceCosts:
    """What a forward costs the host and the device.

    The defaults are an estimate for the packaged network in eager mode on a fast GPU: 250
    operations of 9 to 14 µs, the middle taken; half of it in Python with the interpreter lock, half
    in torch's dispatcher and the driver, which release it (torch's bindings do so at every
    operation). A kernel runs for 4 µs at least, and an image of 512 x 512 takes 0.3 ms.

    Attributes
    ----------
    operations : int
        Operations in a forward.
    host_us : float
        Host time of each, in microseconds; 0 for a device that launches for free.
    held : float
        Share of the host time that is spent with the interpreter lock, 0 to 1.
    kernel_us : float
        Least device time of each.
    device_ms : float
        Device time of 512 x 512 pixels of a canvas, in milliseconds.
    """

    operations: int = 250
    host_us: float = 11.6
    held: float = 0.5
    kernel_us: float = 4.0
    device_ms: float = 0.3

    def device_seconds(self, pixels: int) -> float:
        """Time that one forward of so many pixels keeps the device busy."""
        floor = self.operations * self.kernel_us / 1e6 if self.host_us else 0.0
        return max(floor, self.device_ms / 1e3 * pixels / 512**2)


class Host:
    """Charges the calling thread for launches: a fixed amount of work, on whatever core it gets."""

    def __init__(self, costs: DeviceCosts) -> None:
        self.costs = costs
        rounds = 20_000
        _hold(rounds)
        best = float("inf")
        for _ in range(50):  # the quickest: other load on the machine only adds
            started = time.perf_counter()
            _hold(rounds)
            best = min(best, time.perf_counter() - started)
        per_us = rounds / (1e6 * best)
        self._held = round(per_us * costs.host_us * costs.held)
        self._free = round(per_us * costs.host_us * (1 - costs.held))

    def launch(self) -> None:
        """Spend what queueing one forward costs, operation by operation."""
        if not self.costs.host_us:
            return
        for _ in range(self.costs.operations):
            _hold(self._held)
            _release(self._free)


def forwards(sizes: Sequence[tuple[int, int]], step: int) -> list[tuple[tuple[int, int], int]]:
    """Canvas and number of images of each forward of a batch, as the boundary model forms them.

    Parameters
    ----------
    sizes : sequence of (int, int)
        Heights and widths of the batch's images.
    step : int
        Canvases are multiples of this many pixels; itself a multiple of 32.
    """
    # The package groups images; of these only shapes exist.
    images = [np.broadcast_to(np.uint8(0), (*size, 3)) for size in sizes]
    return [
        (canvas, len(chunk))
        for canvas, members in group(images, step).items()
        for chunk in balanced(members, max(1, min(16, _PIXELS_AT_ONCE // (canvas[0] * canvas[1]))))
    ]


class EmulatedDevice:
    """Knows the maps of its images, and gives them when a GPU would, one forward after the other.

    Parameters
    ----------
    partitioner : Partitioner
        What makes tokens of the maps.
    costs : DeviceCosts, optional
        Host and device time of a forward.
    canvas_step : int, optional
        Canvases are multiples of this many pixels: the larger, the more images share a forward.

    Attributes
    ----------
    maps : dict
        Boundary map of each image by :meth:`key`, to be filled before use.
    images, forwards, pixels : int
        Of all launches so far; pixels are those of canvases.
    """

    is_asynchronous = True

    def __init__(
        self, partitioner: Partitioner, costs: DeviceCosts | None = None, canvas_step: int = 32
    ) -> None:
        self.partitioner = partitioner
        self.canvas_step = canvas_step
        self.maps: dict[bytes, Image] = {}
        self.images = self.forwards = self.pixels = 0
        self._costs = costs or DeviceCosts()
        self._host = Host(self._costs)
        self._free_at = 0.0
        self._lock = threading.Lock()

    @staticmethod
    def key(image: Image) -> bytes:
        """Return what tells an image from the others."""
        return hashlib.blake2b(image[::37, ::37].tobytes()).digest()

    def launch(self, images: Sequence[Image], sizes: Any, prompts: Any = None) -> _Launch:
        """Queue the forwards of a batch, at the calling thread's cost; returns before they end."""
        del sizes, prompts
        with self._lock:
            for canvas, count in forwards([i.shape[:2] for i in images], self.canvas_step):
                pixels = count * canvas[0] * canvas[1]
                self._host.launch()
                busy = self._costs.device_seconds(pixels)
                self._free_at = max(self._free_at, time.perf_counter()) + busy
                self.forwards += 1
                self.pixels += pixels
            self.images += len(images)
            return _Launch(self._free_at, [self.maps[self.key(image)] for image in images])

    def infer(self, images: Sequence[Image], sizes: Any, prompts: Any = None) -> list[Any]:
        """Queue the forwards and wait for them."""
        return self.launch(images, sizes).result()

    def config(self) -> dict[str, Any]:
        """Return the identity of the device, as a segmenter's."""
        return {"segmenter": "emulated", "canvas_step": self.canvas_step}


class _Launch:
    def __init__(self, ready_at: float, maps: list[Image]) -> None:
        self.ready_at, self.maps = ready_at, maps

    def result(self) -> list[dict[str, Image]]:
        time.sleep(max(0.0, self.ready_at - time.perf_counter()))
        return [{"boundary_map": boundary} for boundary in self.maps]
