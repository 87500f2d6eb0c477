"""Choose a segment pool by the name of its executor."""

from __future__ import annotations

import os

from subtok_data.arguments import check_choice
from subtok_data.data.pool.base import SegmentPool
from subtok_data.data.pool.local import InlineSegmentPool, ThreadSegmentPool
from subtok_data.data.pool.process import ProcessSegmentPool
from subtok_data.errors import ConfigError

__all__ = ["EXECUTORS", "default_segment_workers", "make_pool"]

EXECUTORS = ("process", "thread", "inline")


def default_segment_workers() -> int:
    """Divide the cores of this process by the ranks of the machine, less one to train on."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, cores // max(1, sharing) - 1)


def make_pool(
    executor: str,
    workers: int | None = None,
    *,
    timeout_s: float = 120.0,
    max_restarts: int = 3,
) -> SegmentPool:
    """Build a pool.

    Parameters
    ----------
    executor : {"process", "thread", "inline"}
        Where images are partitioned.
    workers : int, optional
        Threads or processes; :func:`default_segment_workers` by default.
    timeout_s : float, optional
        A worker process that has not answered for so long is killed and replaced.
    max_restarts : int, optional
        Worker processes replaced before the pool gives up.

    Raises
    ------
    ConfigError
        If the executor is unknown, or an option out of range.

    Examples
    --------
    >>> with make_pool("thread", 2) as pool:
    ...     pool.workers
    2
    """
    check_choice("executor", executor, EXECUTORS)
    if workers is not None and workers < 1:
        raise ConfigError(
            f"segment_workers={workers}: give at least 1, or executor='inline' for none"
        )
    count = default_segment_workers() if workers is None else workers
    if executor == "inline":
        return InlineSegmentPool()
    if executor == "thread":
        return ThreadSegmentPool(count)
    return ProcessSegmentPool(count, timeout_s=timeout_s, max_restarts=max_restarts)
