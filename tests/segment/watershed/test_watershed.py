"""The flood: its definition, both backends on the same pixels, exact counts, refusals."""

from __future__ import annotations

import pickle
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from helpers.boundary_maps import (
    Levels,
    drawn_maps,
    flood_by_hand,
    random_map,
    real_maps,
    smooth_noise,
)
from hypothesis import given, settings, strategies as st
from skimage.measure import label
from skimage.segmentation import watershed

from subtok_data import watershed_tokens
from subtok_data.errors import ConfigError
from subtok_data.segment import (
    MergeCost,
    Partitioner,
    TokenMap,
    WatershedPartitioner,
    region_adjacency,
)
from subtok_data.segment.watershed.flood import flood_from
from subtok_data.segment.watershed.minima import minima_seeds
from subtok_data.segment.watershed.quantization import quantize
from subtok_data.segment.watershed.seeds import threshold_seeds

THRESHOLDS = st.sampled_from([0.003, 0.05, 0.1, 0.101, 0.5, 0.9, 0.999])


@pytest.fixture(scope="session")
def photo_maps(data_dir: Path) -> list[Levels]:
    return real_maps(data_dir, 4, 384)


def assert_partition(token_map: TokenMap, count: int | None = None) -> None:
    """0..N-1, all present, each 4-connected."""
    found = int(token_map.max()) + 1
    assert count is None or found == count
    parts, regions = label(token_map, background=-1, return_num=True, connectivity=1)
    assert parts.min() == 1
    assert regions == found == len(np.unique(token_map))


@settings(deadline=None)
@given(drawn_maps(), THRESHOLDS)
def test_flood_follows_its_definition(levels: Levels, threshold: float) -> None:
    seeds = threshold_seeds(levels, threshold)
    token_map, count = flood_from(levels, seeds)
    if seeds.count == 0:
        assert count == 1
        assert not token_map.any()
    else:
        assert np.array_equal(token_map, flood_by_hand(levels, seeds.paint(levels.shape)))


@settings(deadline=None)
@given(drawn_maps(), THRESHOLDS)
def test_backends_agree_on_drawn_maps(levels: Levels, threshold: float) -> None:
    fast = watershed_tokens(levels, threshold)
    assert np.array_equal(fast, watershed_tokens(levels, threshold, backend="skimage"))
    assert_partition(fast)


@settings(max_examples=50, deadline=None)
@given(drawn_maps(), st.integers(1, 12))
@pytest.mark.filterwarnings("ignore:num_tokens")
def test_backends_agree_on_exact_counts(levels: Levels, count: int) -> None:
    fast = watershed_tokens(levels, num_tokens=count)
    slow = watershed_tokens(levels, num_tokens=count, backend="skimage")
    assert np.array_equal(fast, slow)
    assert_partition(fast)
    assert fast.max() < count


def test_backends_agree_on_thousands_of_random_maps() -> None:
    rng = np.random.default_rng(0)
    for _ in range(3000):
        levels = random_map(rng)
        seeds = threshold_seeds(levels, float(rng.choice([0.01, 0.1, 0.3, 0.7])))
        fast, count = flood_from(levels, seeds)
        slow, count_too = flood_from(levels, seeds, "skimage")
        assert count == count_too
        assert np.array_equal(fast, slow)
    for _ in range(1000):
        levels = random_map(rng)
        seeds = minima_seeds(levels, int(rng.integers(1, 50)))
        assert seeds.count >= 1
        assert np.array_equal(flood_from(levels, seeds)[0], flood_from(levels, seeds, "skimage")[0])


@pytest.mark.parametrize("scale", [1.5, 4, 12])
def test_backends_agree_on_large_smooth_maps(scale: float) -> None:
    levels = smooth_noise(np.random.default_rng(1), (300, 411), scale)
    for options in ({"threshold": 0.3}, {"num_tokens": 16}):
        fast = watershed_tokens(levels, **options)
        assert np.array_equal(fast, watershed_tokens(levels, **options, backend="skimage"))
        assert_partition(fast)


@pytest.mark.data
def test_backends_agree_on_real_maps(photo_maps: list[Levels]) -> None:
    for levels in photo_maps:
        for threshold in (0.1, 0.3, 0.5):
            fast = watershed_tokens(levels, threshold)
            slow = watershed_tokens(levels, threshold, backend="skimage")
            assert np.array_equal(fast, slow)


@pytest.mark.data
def test_exact_counts_on_real_maps(photo_maps: list[Levels]) -> None:
    counts = [1, 16, 60, 150]
    for levels in photo_maps:
        maps = watershed_tokens(levels, num_tokens=counts)
        slow = watershed_tokens(levels, num_tokens=counts, backend="skimage")
        for count, token_map, other in zip(counts, maps, slow, strict=True):
            assert_partition(token_map, count)
            assert np.array_equal(token_map, other)
        for coarse, fine in pairwise(maps):
            assert_nested(coarse, fine)


@pytest.mark.data
def test_ties_differ_little_from_plain_scikit_image(photo_maps: list[Levels]) -> None:
    for levels in photo_maps:
        markers = label(levels / 255 < 0.1, connectivity=1)
        ours, _ = flood_from(levels, threshold_seeds(levels, 0.1))
        assert np.mean(watershed(levels, markers) - 1 != ours) < 5e-3


def assert_nested(coarse: TokenMap, fine: TokenMap) -> None:
    pairs = np.unique(np.stack([fine.ravel(), coarse.ravel()]), axis=1)
    assert len(np.unique(pairs[0])) == pairs.shape[1]


def test_list_of_counts_is_nested() -> None:
    levels = smooth_noise(np.random.default_rng(2), (120, 160), 3)
    maps = watershed_tokens(levels, num_tokens=[60, 1, 16])
    assert [int(m.max()) + 1 for m in maps] == [60, 1, 16]
    assert_nested(maps[2], maps[0])
    assert np.array_equal(maps[0], watershed_tokens(levels, num_tokens=60))


STRENGTHS = [0.0, 0.05, 0.2, 0.3, 0.5, 0.8, 1.0]


@settings(max_examples=60, deadline=None)
@given(
    drawn_maps(),
    st.lists(st.floats(0, 1), min_size=1, max_size=5),
    st.sampled_from(["balanced", "boundary"]),
    st.sampled_from([0, 7]),
    st.sampled_from([None, 3]),
)
def test_a_higher_strength_gives_unions(
    levels: Levels, strengths: list[float], merge: str, min_area: int, max_tokens: int | None
) -> None:
    options = {"merge": merge, "min_area": min_area, "max_tokens": max_tokens}
    maps = watershed_tokens(levels, strength=sorted(strengths), **options)
    for coarse, fine in pairwise(maps[::-1]):
        assert_nested(coarse, fine)
    for strength, token_map in zip(sorted(strengths), maps, strict=True):
        assert_partition(token_map)
        alone = watershed_tokens(levels, strength=strength, **options)
        assert np.array_equal(alone, token_map)
        slow = watershed_tokens(levels, strength=strength, **options, backend="skimage")
        assert np.array_equal(alone, slow)
        assert max_tokens is None or token_map.max() < max_tokens
        if token_map.max() > 0 and min_area:
            assert np.bincount(token_map.ravel()).min() >= min_area


@pytest.mark.data
@pytest.mark.parametrize("merge", ["balanced", "boundary"])
def test_strength_on_real_maps(photo_maps: list[Levels], merge: MergeCost) -> None:
    for levels in photo_maps:
        maps = watershed_tokens(levels, strength=STRENGTHS, merge=merge)
        counts = [int(one.max()) + 1 for one in maps]
        assert counts == sorted(counts, reverse=True)
        assert counts[0] > counts[1] > counts[-1]
        for coarse, fine in pairwise(maps[::-1]):
            assert_partition(coarse)
            assert_nested(coarse, fine)
        assert np.array_equal(
            maps[1], watershed_tokens(levels, strength=0.05, merge=merge, backend="skimage")
        )
        large = watershed_tokens(levels, strength=0.05, min_area=300, merge=merge)
        assert np.bincount(large.ravel()).min() >= 300
        few = watershed_tokens(levels, strength=0.05, max_tokens=9, merge=merge)
        assert_partition(few, min(9, counts[1]))


def test_no_border_of_the_tokens_is_weaker_than_the_strength() -> None:
    levels = smooth_noise(np.random.default_rng(6), (90, 120), 2)
    for strength in (0.2, 0.4):
        token_map = watershed_tokens(levels, strength=strength, merge="boundary")
        assert token_map.max() > 1
        assert (region_adjacency(token_map, levels).mean / 255 > strength).all()
    # Flat ground has no border at all, however low the strength.
    assert watershed_tokens(levels * 0 + 200, strength=0).max() == 0


def test_an_enlarged_map_has_about_as_many_tokens() -> None:
    levels = smooth_noise(np.random.default_rng(7), (240, 320), 8)
    counts = [
        int(watershed_tokens(np.kron(levels, np.ones((k, k), np.uint8)), strength=0.3).max()) + 1
        for k in (1, 2, 4)
    ]
    assert min(counts) > 20
    assert max(counts) <= 1.25 * min(counts)


def test_shortfall_warns_with_both_numbers() -> None:
    with pytest.warns(UserWarning, match=r"num_tokens=7, .* only 2 tokens"):
        token_map = watershed_tokens(np.array([[0, 90, 0]], np.uint8), num_tokens=7)
    assert_partition(token_map, 2)
    with pytest.warns(UserWarning, match=r"num_tokens=3, .* only 1 token"):
        watershed_tokens(np.zeros((9, 9), np.uint8), num_tokens=[1, 3])


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (2, 2), (32, 32), (3, 64)])
@pytest.mark.parametrize("level", [0, 25, 26, 255])
def test_flat_maps_are_one_token(shape: tuple[int, int], level: int) -> None:
    levels = np.full(shape, level, np.uint8)
    for backend in ("numba", "skimage"):
        token_map = watershed_tokens(levels, backend=backend)
        assert token_map.shape == shape
        assert token_map.dtype == np.int16
        assert not token_map.any()
        assert not watershed_tokens(levels, num_tokens=1, backend=backend).any()
        assert not watershed_tokens(levels, strength=0.3, backend=backend).any()


def test_more_tokens_than_int16_holds() -> None:
    y, x = np.indices((400, 400))
    levels = np.where((x % 2 == 0) & (y % 2 == 0), 0, 255).astype(np.uint8)
    token_map = watershed_tokens(levels)
    assert token_map.dtype == np.int32
    assert_partition(token_map, 40_000)
    assert np.array_equal(token_map, watershed_tokens(levels, backend="skimage"))
    assert watershed_tokens(levels, max_tokens=32_767).dtype == np.int16
    assert_partition(watershed_tokens(levels, num_tokens=36_000), 36_000)


def test_threshold_is_strict_on_the_probability() -> None:
    levels = np.array([[50, 51, 50]], np.uint8)  # 51 / 255 = 0.2
    assert watershed_tokens(levels, 0.2).max() == 1
    assert watershed_tokens(levels, 0.2001).max() == 0


def test_float_maps_are_rounded() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for dtype in (np.float16, np.float32, np.float64):
        assert np.array_equal(quantize((levels / 255).astype(dtype)), levels)
    assert quantize(np.array([[0.5 / 255 + 1e-6]])) == 1
    assert quantize(levels) is levels


def test_maps_in_any_memory_layout() -> None:
    levels = smooth_noise(np.random.default_rng(3), (40, 50), 2)
    expected = watershed_tokens(levels)
    frozen = levels.copy()
    frozen.flags.writeable = False
    for same in (np.asfortranarray(levels), levels[::-1][::-1], frozen, levels.tolist()):
        if isinstance(same, list):
            same = np.array(same, np.uint8)
        assert np.array_equal(watershed_tokens(same), expected)
    assert np.array_equal(frozen, levels)


@pytest.mark.parametrize(
    ("boundary_map", "message"),
    [
        (np.zeros((2, 2, 1), np.uint8), r"shape \(2, 2, 1\): expected \(H, W\)"),
        (np.zeros((0, 4), np.uint8), r"shape \(0, 4\)"),
        (np.zeros((2, 2), np.int64), "dtype int64: expected uint8"),
        (np.zeros((2, 2), bool), "dtype bool"),
        (np.zeros((2, 2), complex), "dtype complex128"),
        (np.array([["a"]]), "dtype <U1"),
        (np.array([[0.1, np.nan]]), "NaN at 1 pixels"),
        (np.array([[0.1, 1.5]]), r"from 0.1 to 1.5: expected floats in \[0, 1\]"),
        (np.array([[-np.inf, 0.5]]), "from -inf to 0.5"),
    ],
)
def test_unusable_maps_are_refused(boundary_map: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        watershed_tokens(boundary_map)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0}, "threshold=0: expected a number above 0 and below 1"),
        ({"threshold": 1}, "threshold=1: expected"),
        ({"threshold": float("nan")}, "threshold=nan"),
        ({"threshold": "0.1"}, "threshold='0.1'"),
        ({"threshold": True}, "threshold=True"),
        ({"threshold": 0.1, "num_tokens": 3}, "threshold=0.1 and num_tokens=3"),
        ({"threshold": 0.1, "num_tokens": [3]}, "threshold=0.1 and num_tokens=3"),
        ({"strength": -0.1}, r"strength=-0\.1: expected a number from 0 to 1"),
        ({"strength": 1.5}, r"strength=1\.5: expected"),
        ({"strength": float("nan")}, "strength=nan: expected"),
        ({"strength": float("inf")}, "strength=inf: expected"),
        ({"strength": True}, "strength=True: expected"),
        ({"strength": []}, r"strength=\[\]"),
        ({"strength": [0.1, 2]}, "strength=2: expected"),
        ({"strength": 0.3, "num_tokens": 3}, r"num_tokens=3 and strength=0\.3: both control"),
        ({"strength": [0.3], "num_tokens": [3]}, r"num_tokens=3 and strength=0\.3"),
        (
            {"strength": 0.3, "threshold": 0.1},
            r"threshold=0\.1 and strength=0\.3: .* leave out one",
        ),
        ({"num_tokens": 0}, "num_tokens=0: expected a whole number of at least 1"),
        ({"num_tokens": 2.5}, "num_tokens=2.5"),
        ({"num_tokens": []}, r"num_tokens=\[\]"),
        ({"num_tokens": [4, -1]}, "num_tokens=-1"),
        ({"max_tokens": 0}, "max_tokens=0: expected a whole number of at least 1"),
        ({"num_tokens": 9, "max_tokens": 3}, "num_tokens=9 is above max_tokens=3"),
        ({"min_area": -1}, "min_area=-1"),
        ({"merge": "saddle"}, "merge='saddle': expected one of"),
        ({"order": "size"}, "order='size': expected one of"),
        ({"backend": "cv2"}, "backend='cv2': expected one of"),
    ],
)
def test_unusable_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        watershed_tokens(np.zeros((4, 4), np.uint8), **options)


def test_partitioner_reads_its_evidence() -> None:
    levels = smooth_noise(np.random.default_rng(4), (30, 40), 2)
    partitioner = WatershedPartitioner(0.3)
    assert isinstance(partitioner, Partitioner)
    again = pickle.loads(pickle.dumps(partitioner))
    assert again == partitioner
    assert hash(again) == hash(partitioner)
    partition = again({"boundary_map": levels}, (30, 40))
    assert partition.cost_map is levels
    with pytest.raises(ValueError, match='no "boundary_map"'):
        partitioner({}, (30, 40))
    with pytest.raises(ValueError, match="resize the map"):
        partitioner({"boundary_map": levels}, (40, 30))


def test_max_tokens_and_min_area() -> None:
    levels = smooth_noise(np.random.default_rng(5), (80, 90), 2)
    free = watershed_tokens(levels, 0.4)
    assert free.max() > 30
    assert_partition(watershed_tokens(levels, 0.4, max_tokens=30), 30)
    assert np.array_equal(watershed_tokens(levels, 0.4, max_tokens=10_000), free)
    large = watershed_tokens(levels, 0.4, min_area=60)
    assert_partition(large)
    assert np.bincount(large.ravel()).min() >= 60
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_partition(watershed_tokens(levels, num_tokens=8, min_area=20), 8)
