"""Superpixels: connected, of an exact count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from subtok_data.errors import ConfigError
from subtok_data.segment import Budget, SegmentTask, SuperpixelPartitioner, segment_image


def photo() -> np.ndarray:
    from skimage.data import astronaut

    return astronaut()[::4, ::3].copy()


@pytest.mark.parametrize("method", ["slic", "felzenszwalb"])
def test_superpixels_are_connected(method: Any) -> None:
    from skimage.measure import label

    image = photo()
    partition = SuperpixelPartitioner(method)({"image": image}, image.shape[:2])
    assert partition.num_tokens > 20
    parts = label(partition.token_map, background=-1, connectivity=1)
    assert parts.max() == partition.num_tokens == len(np.unique(partition.token_map))


@pytest.mark.parametrize("method", ["slic", "felzenszwalb"])
def test_superpixels_of_an_exact_count(method: Any) -> None:
    image = photo()
    for count in (1, 50, 200):
        task = SegmentTask(SuperpixelPartitioner(method), Budget(num_tokens=count))
        segmented = segment_image(task, {"image": image}, image.shape[:2])
        assert segmented.num_tokens == count
        assert segmented.shortfall == 0


def test_superpixels_need_an_image() -> None:
    partitioner = SuperpixelPartitioner()
    with pytest.raises(ValueError, match='no "image"'):
        partitioner({}, (4, 4))
    with pytest.raises(ValueError, match=r"expected \(4, 4, 3\) uint8"):
        partitioner({"image": np.zeros((4, 4, 3), np.float32)}, (4, 4))
    for options in ({"method": "quick"}, {"compactness": 0.0}, {"sigma": -1.0}, {"scale": np.nan}):
        with pytest.raises(ConfigError, match=f"{next(iter(options))}=.*expected"):
            SuperpixelPartitioner(**options)
