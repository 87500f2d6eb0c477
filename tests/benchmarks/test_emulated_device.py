"""The emulated device charges for forwards, and forms them as the package does."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest

from subtok_data import PatchSegmenter

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from emulated_device import DeviceCosts, EmulatedDevice, forwards

SIZES = [(512, 384), (380, 512), (512, 340), (512, 512)]


def test_coarser_canvases_make_fewer_forwards():
    assert len(forwards(SIZES, 32)) == 4
    assert forwards(SIZES, 128) == [((512, 384), 2), ((384, 512), 1), ((512, 512), 1)]
    assert forwards(SIZES, 512) == [((512, 512), 4)]
    # Large images run in several forwards of about equal length.
    assert [count for _, count in forwards([(1024, 1024)] * 6, 32)] == [3, 3]


@pytest.mark.parametrize(("step", "expected"), [(32, 4), (512, 1)])
def test_a_launch_costs_core_time_for_each_forward(step, expected):
    costs = DeviceCosts(operations=50, host_us=40, device_ms=0)
    device = EmulatedDevice(PatchSegmenter(64).partitioner, costs, step)
    images = [np.full((*size, 3), at, np.uint8) for at, size in enumerate(SIZES)]
    device.maps = {device.key(one): one[..., 0] for one in images}
    device.launch(images, None)
    device.forwards = 0
    began = time.thread_time()
    found = device.launch(images, None).result()
    spent = time.thread_time() - began
    assert device.forwards == expected
    assert spent > 0.5 * expected * 50 * 40e-6
    assert all(
        np.array_equal(f["boundary_map"], i[..., 0]) for f, i in zip(found, images, strict=True)
    )


def test_a_device_that_launches_for_free_is_busy_for_its_images_only():
    free = DeviceCosts(host_us=0, device_ms=2)
    assert free.device_seconds(512 * 512) == pytest.approx(0.002)
    assert DeviceCosts().device_seconds(1) == pytest.approx(0.001)
