"""COCO's masks: polygons, run lengths, label maps."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as library
from pycocotools.coco import COCO

from subtok_data.errors import ConfigError
from subtok_data.segment import RLEMasks, label_runs, segmentation_runs
from subtok_data.segment.masks.coco import decode_counts
from subtok_data.segment.masks.rle import encode_mask

# What it decodes to is of a class that NumPy 2 wants more of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
planes = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9))


def ann_to_mask(segmentation, size):
    """What pycocotools makes of an annotation."""
    coco = COCO()
    coco.imgs[0] = {"height": size[0], "width": size[1]}
    return coco.annToMask({"image_id": 0, "segmentation": segmentation}) > 0


@given(
    hnp.arrays(
        np.int16, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 4)
    )
)
def test_label_runs_are_those_of_each_mask(labels):
    for label, runs in zip(range(6), label_runs(labels, range(6)), strict=True):
        assert runs.tolist() == encode_mask(labels == label).tolist()


@given(planes)
def test_masks_given_as_arrays_runs_or_strings_are_one(mask):
    size = mask.shape
    expected = encode_mask(mask).tolist()
    assert segmentation_runs(mask, size).tolist() == expected
    coded = {"size": list(size), "counts": expected}
    assert segmentation_runs(coded, size).tolist() == expected
    packed = library.encode(np.asfortranarray(mask, np.uint8))
    assert segmentation_runs(packed, size).tolist() == expected
    text = {"size": list(size), "counts": packed["counts"].decode()}
    assert segmentation_runs(text, size).tolist() == expected


def coco_string(runs: list[int]) -> str:
    """Encode as COCO does: differences to the run two before, 5 bits a character."""
    text = ""
    for index, run in enumerate(runs):
        value = run - runs[index - 2] if index > 2 else run
        more = True
        while more:
            code = value & 31
            value >>= 5
            more = value != (-1 if code & 16 else 0)
            text += chr((code | 32 if more else code) + 48)
    return text


@given(st.lists(st.integers(0, 2**31 - 1), max_size=20))
def test_compressed_counts_are_decoded(runs):
    assert decode_counts(coco_string(runs)).tolist() == runs
    assert decode_counts(coco_string(runs).encode()).tolist() == runs


corners = st.tuples(st.floats(-5, 25, width=32), st.floats(-5, 25, width=32))


@given(st.lists(st.lists(corners, min_size=3, max_size=9), min_size=1, max_size=3))
def test_polygons_are_filled_as_the_benchmark_fills_them(polygons):
    flat = [[v for point in one for v in point] for one in polygons]
    runs = segmentation_runs(flat, (17, 21))
    assert runs.tolist() == encode_mask(ann_to_mask(flat, (17, 21))).tolist()


def test_polygons_without_the_outer_list_and_as_arrays_are_read():
    box = [2, 1, 6, 1, 6, 4, 2, 4]
    expected = np.zeros((8, 9), bool)
    expected[1:4, 2:6] = True
    for polygons in (box, [box], [np.array(box)]):
        assert segmentation_runs(polygons, (8, 9)).tolist() == encode_mask(expected).tolist()
    assert segmentation_runs([], (8, 9)).tolist() == [72]


@pytest.mark.data
def test_real_annotations_are_the_benchmarks_masks(data_dir):
    coco = COCO(str(data_dir / "coco" / "instances.json"))
    sizes = {one["id"]: (one["height"], one["width"]) for one in coco.dataset["images"]}
    assert len(sizes) == 252
    for annotation in coco.dataset["annotations"]:
        size = sizes[annotation["image_id"]]
        runs = segmentation_runs(annotation["segmentation"], size)
        assert np.array_equal(RLEMasks.from_runs([runs], size).mask(0), coco.annToMask(annotation))


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[0, 0, 4, 4]], "polygon 0 has 4 numbers"),
        ([[0, 0, 4, 4, 1, 1, 5]], "polygon 0 has 7 numbers"),
        ([[0, 0, 4, 0, 4, 4], [0, 0, 4, 4]], "polygon 1 has 4 numbers"),
        ([[0, 0, 4, None, 2, 2]], "polygon 0"),
        ([[0, 0, 4, "x", 2, 2]], "polygon 0 is not a list of numbers"),
        ([[[0, 0]] * 6], "polygon 0 is not a list of numbers"),
        ([None, [0, 0, 4, 0, 4, 4]], "polygon 0 is not a list of numbers: None"),
        (["abcdef"], "polygon 0 is not a list of numbers: 'abcdef'"),
        ([[0, 0, 4, float("nan"), 2, 2]], "NaN"),
        ([[0, 0, 4, 10**400, 2, 2]], "polygon 0 is not a list of numbers"),
        ([[0, 0, 1e9, 0, 1e9, 1e9]], r"reaches the coordinate 1e\+09: at most 4194304"),
        ([[1e9, 1e9, 1e9, 1e9, 1e9, 1e9]], "reaches the coordinate"),
        ([[0, 0, 3e6, 0] * 2], "outline of polygon 0 passes 12000004 pixels"),
        ({"size": [8, 9], "counts": [72]}, r"\(8, 9\), the image \(9, 8\)"),
        ({"size": 9, "counts": [72]}, "'size' is 9"),
        ({"size": [9, 8], "counts": [3]}, "add up to 3 pixels"),
        ({"size": [9, 8], "counts": [80, -8]}, "below 0"),
        ({"size": [9, 8], "counts": [0.5]}, "whole numbers"),
        ({"size": [9, 8], "counts": [[1, 2], [3]]}, "whole numbers"),
        ({"size": [9, 8], "counts": "~~"}, "'~' does not occur"),
        ({"size": [9, 8], "counts": "é"}, "does not occur"),
        ({"size": [9, 8], "counts": "Q"}, "within a number"),
        ({"size": [9, 8], "counts": "o" * 13 + "0"}, "beyond any image"),
        ({"size": [9, 8], "counts": ""}, "add up to 0 pixels"),
        ({"counts": "~~"}, "'size' and 'counts'"),
        (np.full((9, 8), 3), "other than 0 and 1"),
        (np.zeros((3, 8), bool), r"\(3, 8\)"),
        (7, "a mask given as int"),
        ("021", "a mask given as str"),
    ],
)
def test_masks_that_cannot_be_read_are_refused(segmentation, message):
    with pytest.raises(ConfigError, match=message):
        segmentation_runs(segmentation, (9, 8))


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-3, 5), (1 << 16, 1 << 16)])
@pytest.mark.parametrize("segmentation", [[[0, 0, 4, 0, 4, 4]], {"size": [9, 8], "counts": "0"}])
def test_sizes_that_no_image_has_are_refused(size, segmentation):
    with pytest.raises(ConfigError, match=rf"image of {size[0]} × {size[1]} pixels"):
        segmentation_runs(segmentation, size)


def test_polygons_of_images_beyond_the_librarys_limit_are_refused():
    with pytest.raises(ConfigError, match="polygons in an image of 8192 × 8192 pixels"):
        segmentation_runs([[0, 0, 4, 0, 4, 4]], (8192, 8192))
    size = (8191, 8192)
    assert segmentation_runs([[0, 0, 4, 0, 4, 4]], size).sum() == size[0] * size[1]
    # Run lengths of larger images are read.
    size = (40_000, 40_000)
    coded = {"size": list(size), "counts": [1_600_000_000]}
    assert segmentation_runs(coded, size).tolist() == [1_600_000_000]


@settings(max_examples=300)
@given(
    st.binary(max_size=40) | st.text(max_size=40),
    st.tuples(st.integers(-2, 9), st.integers(-2, 9)),
)
def test_random_counts_are_a_mask_or_an_error(counts, size):
    try:
        runs = segmentation_runs({"size": list(size), "counts": counts}, size)
    except ConfigError:
        return
    assert runs.min() >= 0
    assert runs.sum() == size[0] * size[1]


FUZZ = """
import json, random, sys
import numpy as np
from subtok_data.errors import ConfigError
from subtok_data.segment import RLEMasks, segmentation_runs
random.seed(0)
sides = [-1, 0, 1, 2, 7, 640, 4000, 8191, 8192, 65536, 2**31, 2**40]
numbers = [0, -1, 0.5, 3, 3.1, 7.9, 640.4, -40.3, 4e3, -4e6, 4.1e6, 2.1e8, -5e8, 1e9, 1e18, 1e308]
filled = refused = 0
for _ in range(1500):
    size = (random.choice(sides), random.choice(sides))
    near = random.choice([numbers, numbers[:8], numbers[:11]])
    polygons = [
        [random.choice(near) for _ in range(random.choice([5, 6, 6, 8, 8, 30]))]
        for _ in range(random.choice([1, 1, 2, 4]))
    ]
    try:
        runs = segmentation_runs(polygons, size)
    except ConfigError:
        refused += 1
    else:
        filled += 1
        RLEMasks.from_runs([runs], size)
print(filled, refused)
"""


def test_no_crafted_polygon_ends_the_process():
    """The library fills what it is given in C, and trusts it."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FUZZ], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    filled, refused = (int(word) for word in done.stdout.split())
    assert min(filled, refused) > 100


def test_masks_that_came_through_json_are_read():
    mask = np.eye(4, 5, dtype=bool)
    coded = json.loads(
        json.dumps({"size": [4, 5], "counts": coco_string(encode_mask(mask).tolist())})
    )
    assert segmentation_runs(coded, (4, 5)).tolist() == encode_mask(mask).tolist()
