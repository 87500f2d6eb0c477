"""Choose a segment pool by the name of its executor."""

from __future__ import annotations

import os
import re

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
    return max(1, cores // ranks_of_machine(cores) - 1)


def ranks_of_machine(cores: int) -> int:
    """Return how many ranks share the cores of this process, as their launcher says it.

    torchrun and accelerate say it; MPI, DeepSpeed and SLURM have names of their own. Lightning sets
    only ``WORLD_SIZE``, over all machines: no more of them than this one has GPUs are here.

    Parameters
    ----------
    cores : int
        That this process may use: those of its rank alone, where SLURM gives each its own.

    Examples
    --------
    >>> ranks_of_machine(8) >= 1
    True
    """
    for name in _LOCAL_SIZES:
        if (found := _count(name)) is not None:
            return found
    if (tasks := os.environ.get("SLURM_STEP_TASKS_PER_NODE")) is not None:
        bound = _count("SLURM_CPUS_PER_TASK")
        return 1 if bound is not None and cores <= bound else _tasks_of_node(tasks)
    world = _count("WORLD_SIZE")
    if world is None or "LOCAL_RANK" not in os.environ:
        return 1
    import torch  # late: whoever only names executors needs none

    return min(world, torch.cuda.device_count() or world)


_LOCAL_SIZES = (
    "LOCAL_WORLD_SIZE",  # torchrun, accelerate
    "OMPI_COMM_WORLD_LOCAL_SIZE",  # Open MPI
    "MPI_LOCALNRANKS",  # MPICH, Intel MPI
    "MV2_COMM_WORLD_LOCAL_SIZE",  # MVAPICH
    "LOCAL_SIZE",  # DeepSpeed
)


def _count(name: str) -> int | None:
    """A whole number above 0 of the environment; None where it is absent or something else."""
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() and int(value) > 0 else None


def _tasks_of_node(tasks: str) -> int:
    """Tasks of this node, of SLURM's list for all nodes.

    >>> _tasks_of_node("4(x2),3")
    4
    """
    counts: list[int] = []
    for part in tasks.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if found is None:
            return 1
        counts += [int(found[1])] * int(found[2] or 1)
    node = int(os.environ.get("SLURM_NODEID", "0"))
    return max(1, counts[node] if node < len(counts) else 1)


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
