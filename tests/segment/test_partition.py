"""Partitions that do not fit together; partitioners that inherit, and those that do not."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from subtok_data.segment import (
    GridPartitioner,
    Partition,
    Partitioner,
    PromptedPartitioner,
    WatershedPartitioner,
    as_partitioner,
)


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


def one_token(evidence: Any, size: tuple[int, int]) -> Partition:
    return Partition(np.zeros(size, np.int16), 1)


@dataclass(frozen=True)
class Striped:
    """Inherits nothing, and has all members of a partitioner."""

    stripes: int = 2
    has_cost_map: bool = True

    def for_num_tokens(self, num_tokens: int) -> Striped:
        return Striped(num_tokens)

    def __call__(self, evidence: Any, size: tuple[int, int]) -> Partition:
        token_map = np.tile(np.arange(self.stripes, dtype=np.int16)[:, None], (1, size[1]))
        return Partition(token_map, self.stripes, np.zeros(token_map.shape, np.uint8))


def test_partitioners_need_not_inherit() -> None:
    plain = as_partitioner(one_token)
    assert isinstance(plain, Partitioner)
    assert not plain.has_cost_map
    assert plain.for_num_tokens(7) is plain
    assert plain.name == "one_token"
    assert plain({}, (2, 3)).token_map.tolist() == [[0, 0, 0]] * 2

    striped = as_partitioner(Striped())
    assert striped.has_cost_map
    assert striped.name == "Striped"
    assert striped.for_num_tokens(3)({}, (3, 1)).num_tokens == 3
    assert striped.for_num_tokens(3) == as_partitioner(Striped(3))
    assert pickle.loads(pickle.dumps(striped)) == striped
    assert hash(striped) == hash(as_partitioner(Striped()))


def test_partitioners_of_the_library_stay_as_they_are() -> None:
    for partitioner in (WatershedPartitioner(), GridPartitioner(patch=4)):
        assert as_partitioner(partitioner) is partitioner
        prompted = PromptedPartitioner(partitioner)
        assert as_partitioner(prompted) is prompted
        assert prompted.base is partitioner
    assert PromptedPartitioner(one_token).base == as_partitioner(one_token)
