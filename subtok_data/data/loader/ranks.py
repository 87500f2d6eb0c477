"""Ranks of torch.distributed: which one this process is, and whether all were told the same."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import torch

from subtok_data.errors import ConfigError

__all__ = ["compare_with_other_ranks", "rank_and_world_size"]

_comparisons = itertools.count()
"""Numbers the plans of this process in the order in which they are first used."""


def rank_and_world_size() -> tuple[int, int]:
    """Return rank and number of processes of torch.distributed; (0, 1) without it."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def compare_with_other_ranks(describe: Callable[[], dict[str, Any]]) -> None:
    """Refuse a plan of batches that another rank has otherwise.

    The first rank to come leaves its plan in the store of the process group, the others compare:
    nobody waits, so that a loader that only some ranks read is no deadlock here.

    Parameters
    ----------
    describe : callable
        Gives what the plan follows from, as plain values; called where there are other ranks.

    Raises
    ------
    ConfigError
        Naming every value that differs.
    """
    rank, world = rank_and_world_size()
    if world == 1 or not torch.distributed.is_initialized():
        return
    # Private in torch, which has no public way to the store that the ranks met at; without one
    # (MPI) there is nothing to compare in.
    find_store: Any = getattr(torch.distributed.distributed_c10d, "_get_default_store", None)
    store = None if find_store is None else find_store()
    if store is None:
        return
    plan = describe()
    own = json.dumps([rank, plan])
    key = f"subtok_data/plan/{next(_comparisons)}"
    other, others = json.loads(store.compare_set(key, "", own))
    different = [
        f"{name}={plan[name]!r} here, {others.get(name)!r} on rank {other}"
        for name in plan
        if plan[name] != others.get(name)
    ]
    if different:
        raise ConfigError(
            f"rank {rank} has another plan of batches than rank {other}, so samples would come "
            f"twice or never: {'; '.join(different)}. Give every rank the same dataset and "
            f"options, and let all ranks iterate the same loaders in the same order; the loader "
            f"takes each rank's part by itself"
        )
