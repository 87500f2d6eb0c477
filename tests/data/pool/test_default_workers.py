"""How many segment workers a rank starts, by what its launcher says."""

from __future__ import annotations

import os

import pytest
import torch

from subtok_data.data.pool.executors import default_segment_workers

LAUNCHERS = {
    "none": ({}, 16),
    "torchrun": ({"LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8", "LOCAL_RANK": "0"}, 4),
    "lightning, one machine": ({"WORLD_SIZE": "4", "LOCAL_RANK": "1", "NODE_RANK": "0"}, 4),
    "lightning, four machines": ({"WORLD_SIZE": "32", "LOCAL_RANK": "1", "NODE_RANK": "2"}, 2),
    "open mpi": ({"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_SIZE": "8"}, 8),
    "mpich": ({"MPI_LOCALNRANKS": "8", "PMI_SIZE": "16"}, 2),
    "mvapich": ({"MV2_COMM_WORLD_LOCAL_SIZE": "4"}, 4),
    "deepspeed": ({"LOCAL_SIZE": "8", "LOCAL_RANK": "3", "WORLD_SIZE": "8"}, 2),
    "srun": ({"SLURM_STEP_TASKS_PER_NODE": "4(x2),2", "SLURM_NODEID": "1"}, 4),
    "srun, the last node": ({"SLURM_STEP_TASKS_PER_NODE": "4(x2),2", "SLURM_NODEID": "2"}, 8),
    "srun with cores of its own": (
        {"SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_CPUS_PER_TASK": "16"},
        16,
    ),
    "sbatch alone": ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, 16),
    "nonsense": ({"LOCAL_WORLD_SIZE": "many"}, 16),
    "nonsense of slurm": ({"SLURM_STEP_TASKS_PER_NODE": "4(y2)"}, 16),
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ranks_share_the_cores_of_their_machine(monkeypatch, launcher):
    environment, cores = LAUNCHERS[launcher]
    for name in list(os.environ):
        if name.startswith(("SLURM", "OMPI", "MPI", "MV2", "LOCAL", "WORLD")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16), raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert default_segment_workers() == cores - 1
