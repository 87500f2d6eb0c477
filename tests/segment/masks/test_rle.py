"""Boxes and spans of masks that are run lengths."""

from __future__ import annotations

import numpy as np
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from subtok_data.segment import RLEMasks, mask_box
from subtok_data.segment.masks.rle import encode_mask
from subtok_data.segment.masks.spans import unite_spans

stacks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=3, max_dims=3, max_side=7))


@given(stacks)
def test_runs_give_the_mask_and_its_box(masks):
    coded = RLEMasks.from_masks(masks)
    for index, mask in enumerate(masks):
        assert np.array_equal(coded.mask(index), mask)
        rows, columns = np.nonzero(mask)
        expected = (0, 0, 0, 0)
        if len(rows):
            expected = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert tuple(coded.boxes[index].tolist()) == mask_box(mask) == expected


def test_there_is_no_box_of_no_mask():
    assert RLEMasks.from_masks([], size=(3, 4)).boxes.shape == (0, 4)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), max_size=8))
def test_united_spans_cover_what_any_of_them_covers(spans):
    covered = np.zeros((40, 1), bool)
    for start, length in spans:
        covered[start : start + length] = True
    starts = np.array([start for start, _ in spans], np.int64)
    ends = np.array([start + length for start, length in spans], np.int64)
    united = unite_spans(starts, ends)
    found = RLEMasks.from_masks([covered])
    turns = np.cumsum(found.counts)
    assert united.starts.tolist() == turns[:-1:2].tolist() if covered.any() else not len(united[1])
    assert (united.ends - united.starts).tolist() == encode_mask(covered)[1::2].tolist()
