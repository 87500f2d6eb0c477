"""COCO's masks: polygons, run lengths, label maps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from subtok_data.errors import ConfigError
from subtok_data.segment import RLEMasks, label_runs, segmentation_runs
from subtok_data.segment.masks.rle import encode_mask


@given(
    hnp.arrays(
        np.int16, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 4)
    )
)
def test_label_runs_are_those_of_each_mask(labels):
    for label, runs in zip(range(6), label_runs(labels, range(6)), strict=True):
        assert runs.tolist() == encode_mask(labels == label).tolist()


@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_masks_given_as_arrays_or_runs_are_one(mask):
    size = mask.shape
    expected = encode_mask(mask).tolist()
    assert segmentation_runs(mask, size).tolist() == expected
    coded = {"size": list(size), "counts": expected}
    assert segmentation_runs(coded, size).tolist() == expected


@given(
    st.lists(
        st.lists(
            st.tuples(st.floats(-5, 25, width=32), st.floats(-5, 25, width=32)),
            min_size=3,
            max_size=9,
        ),
        max_size=3,
    )
)
def test_polygons_cover_the_pixels_whose_centre_they_hold(polygons):
    """Against a plain even-odd count along the column of each pixel, away from the outline."""
    height, width = 17, 21
    runs = segmentation_runs([[v for point in one for v in point] for one in polygons], (17, 21))
    found = RLEMasks.from_runs([runs], (height, width)).mask(0)
    for row in range(height):
        for column in range(width):
            x, y = column + 0.5, row + 0.5
            inside, near = False, False
            for one in polygons:
                odd = False
                for (ax, ay), (bx, by) in zip(one, one[1:] + one[:1], strict=True):
                    if (ax < x) != (bx < x):
                        cut = ay + (x - ax) / (bx - ax) * (by - ay)
                        odd ^= cut < y
                        near |= abs(cut - y) < 1e-6
                    near |= ax == x
                inside |= odd
            assert near or found[row, column] == inside


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[0, 0, 4, 4]], "polygon 0 has 4 numbers"),
        ([[0, 0, 4, 4, 1, 1, 5]], "polygon 0 has 7 numbers"),
        ([[0, 0, 4, None, 2, 2]], "polygon 0"),
        ([[0, 0, 4, float("nan"), 2, 2]], "NaN"),
        ({"size": [8, 9], "counts": [72]}, r"\(8, 9\), the image \(9, 8\)"),
        ({"size": [9, 8], "counts": [3]}, "add up to 3 pixels"),
        ({"size": [9, 8], "counts": [80, -8]}, "below 0"),
        ({"size": [9, 8], "counts": [0.5]}, "whole numbers"),
        ({"size": [9, 8], "counts": "~~"}, "does not occur"),
        ({"counts": "~~"}, "'size' and 'counts'"),
        (np.full((9, 8), 3), "other than 0 and 1"),
        (np.zeros((3, 8), bool), r"\(3, 8\)"),
    ],
)
def test_masks_that_cannot_be_read_are_refused(segmentation, message):
    with pytest.raises(ConfigError, match=message):
        segmentation_runs(segmentation, (9, 8))
