"""Exact counts, limits and least areas of any partition; grids and superpixels."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from helpers.boundary_maps import smooth_noise

from subtok_data.errors import ConfigError
from subtok_data.segment import (
    Budget,
    GridPartitioner,
    Partition,
    SuperpixelPartitioner,
    WatershedPartitioner,
    apply_budget,
    arrange,
    measure,
    segment_image,
)

LEVELS = smooth_noise(np.random.default_rng(0), (90, 110), 2)
EVIDENCE = {"boundary_map": LEVELS}


def cut(threshold: float = 0.45) -> Partition:
    return WatershedPartitioner(threshold)(EVIDENCE, LEVELS.shape)


def test_limits_are_kept() -> None:
    free = cut()
    assert free.num_tokens > 30
    assert apply_budget(free, Budget()) is free
    assert apply_budget(free, Budget(max_tokens=1000, min_area=1)) is free
    for limit in (1, 2, 20, free.num_tokens - 1, free.num_tokens):
        for budget in (Budget(max_tokens=limit), Budget(num_tokens=limit)):
            merged = apply_budget(free, budget)
            assert merged.num_tokens == limit
            assert (merged.token_map >= 0).all()
            assert measure(merged.token_map, limit).areas.sum() == LEVELS.size


def test_min_area_comes_first() -> None:
    merged = apply_budget(cut(), Budget(min_area=150))
    assert measure(merged.token_map, merged.num_tokens).areas.min() >= 150
    both = apply_budget(cut(), Budget(min_area=150, max_tokens=5))
    assert both.num_tokens == 5
    one = apply_budget(cut(), Budget(min_area=10**9))
    assert one.num_tokens == 1


def test_drop_keeps_the_largest() -> None:
    free = cut()
    free = Partition(free.token_map, free.num_tokens, LEVELS, {"n": np.arange(free.num_tokens)})
    dropped = apply_budget(free, Budget(max_tokens=7, overflow="drop"))
    assert dropped.num_tokens == 7
    areas = measure(free.token_map, free.num_tokens).areas
    kept = dropped.token_fields["n"]
    assert sorted(areas[kept]) == sorted(areas)[-7:]
    for token, old in enumerate(kept):
        assert np.array_equal(dropped.token_map == token, free.token_map == old)
    assert np.array_equal(dropped.token_map < 0, ~np.isin(free.token_map, kept))
    segmented = arrange(dropped, shape_size=3)
    assert (np.diff(segmented.geometry.areas) <= 0).all()
    assert (segmented.token_map == -1).sum() == (dropped.token_map == -1).sum()


def test_islands_cannot_merge() -> None:
    islands = Partition(np.array([[0, 1, -1, 2, -1, 3]], np.int16), 4)
    assert apply_budget(islands, Budget(max_tokens=3)).num_tokens == 3
    with pytest.raises(ValueError, match="3 groups of tokens do not touch .* merged to 2"):
        apply_budget(islands, Budget(max_tokens=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"num_tokens": True}, "num_tokens=True"),
        ({"min_area": -2}, "min_area=-2"),
        ({"min_area": 2.5}, "min_area=2.5"),
        ({"overflow": "cut"}, "overflow='cut'"),
        ({"overflow": "drop"}, "give max_tokens"),
        ({"overflow": "drop", "num_tokens": 4}, "leave out num_tokens"),
        ({"num_tokens": 4, "max_tokens": 2}, "num_tokens=4 is above max_tokens=2"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Budget(**options)


def test_partitions_are_checked() -> None:
    token_map = np.zeros((2, 3), np.int16)
    for arguments, message in (
        ((token_map.astype(np.int64), 1), "dtype int64: expected"),
        ((token_map[0], 1), r"shape \(3,\)"),
        ((token_map, 0), "num_tokens=0"),
        ((token_map, 1, np.zeros((3, 2), np.uint8)), r"cost_map of shape \(3, 2\)"),
        ((token_map, 1, None, {"a": np.zeros(2)}), r"token_fields\['a'\] has 2 rows"),
        ((token_map, 1, None, {}, {"a": "sum"}), r"field_rules\['a'\]='sum'"),
    ):
        with pytest.raises(ValueError, match=message):
            Partition(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(1, 1), (7, 1000), (224, 224), (333, 250)])
@pytest.mark.parametrize("patch", [1, 16, 60, 5000])
def test_patches_cover_every_pixel(size: tuple[int, int], patch: int) -> None:
    partition = GridPartitioner(patch=patch)({}, size)
    rows, columns = -(-size[0] // patch), -(-size[1] // patch)
    geometry = measure(partition.token_map, rows * columns)
    assert partition.num_tokens == rows * columns
    assert geometry.areas.sum() == size[0] * size[1]
    assert geometry.areas[0] == min(patch, size[0]) * min(patch, size[1])


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (300, 7), (224, 224), (333, 250)])
@pytest.mark.parametrize("count", [1, 2, 7, 64, 100, 1000, 2100])
def test_grids_of_an_exact_count(size: tuple[int, int], count: int) -> None:
    partition = GridPartitioner(patch=16).for_num_tokens(count)({}, size)
    expected = min(count, size[0] * size[1])
    assert partition.num_tokens == expected
    geometry = measure(partition.token_map, expected)
    boxes = geometry.boxes
    assert np.array_equal((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), geometry.areas)
    if expected == 64 and size == (224, 224):
        assert geometry.areas.min() == geometry.areas.max()


def test_grid_needs_one_size() -> None:
    for options in ({}, {"patch": 8, "num_tokens": 8}, {"patch": 0}):
        with pytest.raises(ConfigError, match="patch="):
            GridPartitioner(**options)


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
        segmented = segment_image(
            SuperpixelPartitioner(method),
            {"image": image},
            image.shape[:2],
            Budget(num_tokens=count),
        )
        assert segmented.num_tokens == count
        assert segmented.requested == count
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


@dataclass(frozen=True)
class Halves:
    """A partitioner with fields, and no way to be finer."""

    def __call__(self, evidence: Any, size: tuple[int, int]) -> Partition:
        token_map = np.zeros(size, np.int16)
        token_map[:, size[1] // 3 :] = 1
        return Partition(token_map, 2, None, {"name": np.array(["left", "right"])})


def test_segment_image_does_all_steps() -> None:
    for partitioner in (WatershedPartitioner(), GridPartitioner(patch=8), Halves()):
        again = pickle.loads(pickle.dumps(partitioner))
        cut = segment_image(again, EVIDENCE, LEVELS.shape, Budget(num_tokens=9), "raster", 4)
        count = cut.num_tokens
        assert count == (2 if isinstance(partitioner, Halves) else 9)
        assert cut.shortfall == 9 - count
        assert cut.shapes is not None
        assert cut.shapes.shape == (count, 4, 4)
        assert np.array_equal(np.unique(cut.token_map), np.arange(count))
        fresh = measure(cut.token_map, count)
        assert np.array_equal(fresh.boxes, cut.geometry.boxes)
        assert np.array_equal(fresh.centers, cut.geometry.centers)
        assert np.array_equal(fresh.areas, cut.geometry.areas)
        pickle.loads(pickle.dumps(cut))
    by_area = segment_image(Halves(), {}, (4, 9))
    assert by_area.token_fields["name"].tolist() == ["right", "left"]
    assert by_area.shortfall == 0
    with pytest.raises(ValueError, match="resize the map"):
        segment_image(WatershedPartitioner(), EVIDENCE, (5, 5))


def test_a_partition_of_another_size_is_refused() -> None:
    def wrong(evidence: Any, size: tuple[int, int]) -> Partition:
        return Partition(np.zeros((1, 1), np.int16), 1)

    with pytest.raises(ValueError, match=r"cut a picture of \(1, 1\) pixels: expected \(4, 4\)"):
        segment_image(wrong, {}, (4, 4))


def test_arranging_leaves_the_partition_alone() -> None:
    partition = cut()
    before = partition.token_map.copy()
    arranged = arrange(partition)
    assert np.array_equal(partition.token_map, before)
    overwritten = arrange(partition, overwrite=True)
    assert overwritten.token_map is partition.token_map
    assert np.array_equal(overwritten.token_map, arranged.token_map)


def test_protected_tokens_outlast_the_others():
    token_map = np.array([[0, 1, 1, 2, 3, 3, 3, 4]], np.int16)
    protected = np.array([False, False, True, False, True])
    partition = Partition(token_map, 5, protected=protected)
    merged = apply_budget(partition, Budget(min_area=3))
    # The crumb between protected tokens joins one of them, those are no crumbs themselves.
    assert merged.token_map.tolist() == [[0, 0, 0, 1, 2, 2, 2, 3]]
    for limit, rest in ((4, [False, True, False, True]), (3, [True, False, True]), (2, [True] * 2)):
        kept = apply_budget(partition, Budget(num_tokens=limit))
        assert kept.num_tokens == limit
        assert kept.protected.tolist() == rest
    dropped = apply_budget(partition, Budget(max_tokens=3, overflow="drop"))
    assert dropped.token_map.tolist() == [[-1, -1, -1, 0, 1, 1, 1, 2]]
    assert dropped.protected.tolist() == [True, False, True]
