"""All steps on one image, and tasks that contradict themselves."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from helpers.boundary_maps import smooth_noise

from subtok_data import watershed_tokens
from subtok_data.errors import ConfigError
from subtok_data.segment import (
    Budget,
    FillRules,
    GridPartitioner,
    MaskPartitioner,
    Partition,
    PromptedPartitioner,
    Prompts,
    SegmentTask,
    SuperpixelPartitioner,
    WatershedPartitioner,
    measure,
    segment_image,
)

LEVELS = smooth_noise(np.random.default_rng(0), (90, 110), 2)
EVIDENCE = {"boundary_map": LEVELS}


@dataclass(frozen=True)
class Halves:
    """A partitioner with fields, and no way to be finer."""

    def __call__(self, evidence: Any, size: tuple[int, int]) -> Partition:
        token_map = np.zeros(size, np.int16)
        token_map[:, size[1] // 3 :] = 1
        return Partition(token_map, 2, None, {"name": np.array(["left", "right"])})


def test_segment_image_does_all_steps() -> None:
    for partitioner in (WatershedPartitioner(), GridPartitioner(patch=8), Halves()):
        task = SegmentTask(partitioner, Budget(num_tokens=9), "raster", 4)
        cut = segment_image(pickle.loads(pickle.dumps(task)), EVIDENCE, LEVELS.shape)
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
    by_area = segment_image(SegmentTask(Halves()), {}, (4, 9))
    assert by_area.token_fields["name"].tolist() == ["right", "left"]
    assert by_area.shortfall == 0
    with pytest.raises(ValueError, match="resize the map"):
        segment_image(SegmentTask(WatershedPartitioner()), EVIDENCE, (5, 5))


def test_a_partition_of_another_size_is_refused() -> None:
    def wrong(evidence: Any, size: tuple[int, int]) -> Partition:
        return Partition(np.zeros((1, 1), np.int16), 1)

    with pytest.raises(ValueError, match=r"wrong gave .* \(1, 1\) pixels: expected \(4, 4\)"):
        segment_image(SegmentTask(wrong), {}, (4, 4))


def test_a_threshold_and_a_count_exclude_one_another() -> None:
    given = WatershedPartitioner(0.3)
    for partitioner in (given, PromptedPartitioner(given)):
        assert SegmentTask(partitioner, Budget(max_tokens=60))
        with pytest.raises(ConfigError, match=r"threshold=0.3 and num_tokens=60: .* leave out one"):
            SegmentTask(partitioner, Budget(num_tokens=60))
    assert SegmentTask(WatershedPartitioner(), Budget(num_tokens=60))


def test_strength_cuts_by_borders_with_and_without_prompts() -> None:
    plain = SegmentTask(WatershedPartitioner(), Budget(strength=0.3))
    cut = segment_image(pickle.loads(pickle.dumps(plain)), EVIDENCE, LEVELS.shape)
    alone = watershed_tokens(LEVELS, strength=0.3)
    assert np.array_equal(cut.token_map, alone)
    assert cut.shortfall == 0
    prompted = SegmentTask(PromptedPartitioner(WatershedPartitioner()), Budget(strength=0.3))
    assert np.array_equal(segment_image(prompted, EVIDENCE, LEVELS.shape).token_map, alone)
    y, x = 50, 40
    prompts = Prompts.of(LEVELS.shape, points=[[x, y]])
    evidence = {**EVIDENCE, **prompts.to_evidence()}
    for strength in (0.2, 0.4, 0.6):
        task = SegmentTask(PromptedPartitioner(WatershedPartitioner()), Budget(strength=strength))
        found = segment_image(task, evidence, LEVELS.shape)
        tokens = watershed_tokens(LEVELS, strength=strength)
        # A point takes the token that is there without it, and no other token merges with that.
        assert np.array_equal(found.token_map == found.prompt_tokens, tokens == tokens[y, x])
    few = segment_image(
        SegmentTask(WatershedPartitioner(), Budget(strength=0.1, max_tokens=5)),
        EVIDENCE,
        LEVELS.shape,
    )
    assert few.num_tokens == 5


def test_strength_excludes_other_controls_and_needs_a_boundary_map() -> None:
    with pytest.raises(ConfigError, match=r"threshold=0\.2 and strength=0\.3: .* leave out one"):
        SegmentTask(WatershedPartitioner(0.2), Budget(strength=0.3))
    with pytest.raises(ConfigError, match=r"num_tokens=9 and strength=0\.3: both control"):
        Budget(num_tokens=9, strength=0.3)
    for partitioner, name in (
        (GridPartitioner(patch=4), "GridPartitioner"),
        (SuperpixelPartitioner(), "SuperpixelPartitioner"),
        (MaskPartitioner(), "MaskPartitioner"),
        (PromptedPartitioner(GridPartitioner(patch=4)), "GridPartitioner"),
        (Halves(), "Halves"),
    ):
        with pytest.raises(ConfigError, match=rf"strength=0\.3: {name} gives no boundary map"):
            SegmentTask(partitioner, Budget(strength=0.3))
    filled = MaskPartitioner(rules=FillRules(fill="boundary"))
    assert SegmentTask(filled, Budget(strength=0.3)).refined() is filled


def test_tasks_are_checked_before_they_travel() -> None:
    grid = GridPartitioner(patch=4)
    with pytest.raises(ConfigError, match="order='size'"):
        SegmentTask(grid, order="size")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="shape_size=0"):
        SegmentTask(grid, shape_size=0)


def test_colours_are_needed_for_merging_without_a_cost_map_only() -> None:
    budget = Budget(max_tokens=3)
    assert SegmentTask(GridPartitioner(patch=4), budget).needs_image
    assert not SegmentTask(GridPartitioner(patch=4)).needs_image
    assert not SegmentTask(WatershedPartitioner(), budget).needs_image
    image = np.zeros((4, 4, 3), np.uint8)
    image[:, 2:] = 200
    task = SegmentTask(GridPartitioner(patch=1), Budget(num_tokens=2))
    halves = segment_image(task, {}, (4, 4), image)
    assert halves.token_map.tolist() == [[0, 0, 1, 1]] * 4
