"""Comparing batches, and a tokenizer for tests that need no model."""

from __future__ import annotations

from typing import Any

import torch
from helpers.faulty import FaultyPartitioner, FaultySegmenter

from subtok_data import SubobjectTokenizer


def faulty_tokenizer(folder: Any = "", *, sleep_s: float = 0.0, fail_on: int = -1, **options: Any):
    segmenter = FaultySegmenter(FaultyPartitioner(str(folder), sleep_s), fail_on)
    return SubobjectTokenizer(segmenter, **{"size": None, **options})


def assert_same(first: Any, second: Any) -> None:
    """The same keys in the same order, the same dtypes, the same bits."""
    assert list(first) == list(second)
    for key in first:
        a, b = first[key], second[key]
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype, key
            assert torch.equal(a, b), key
        else:
            assert a == b, key


def assert_same_batches(first: list[Any], second: list[Any]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert_same(a, b)
