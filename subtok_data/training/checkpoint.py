"""Checkpoints of a run: one safetensors file with weights, averages and optimiser state.

No pickle: a checkpoint can be loaded from anywhere without executing what is in it.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from subtok_data.errors import ConfigError, WeightsError

__all__ = ["Checkpoint", "read_checkpoint", "write_checkpoint"]

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """State that a run needs to go on.

    Attributes
    ----------
    step : int
        Finished optimiser steps.
    network, average : dict of str to Tensor
        Weights, and their moving average (empty without).
    optimiser : dict of int to dict of str to Tensor
        State of each parameter, by its number.
    run : dict
        What must be the same when the run goes on.
    """

    step: int
    network: Tensors
    average: Tensors
    optimiser: dict[int, Tensors]
    run: dict[str, Any]

    def require_same(self, run: dict[str, Any]) -> None:
        """Refuse to go on with other settings or samples.

        Raises
        ------
        ConfigError
            Names each setting that differs.
        """
        differing = [
            f"{key}: {self.run.get(key)!r}, now {run.get(key)!r}"
            for key in sorted({*self.run, *run})
            if self.run.get(key) != run.get(key)
        ]
        if differing:
            raise ConfigError(
                "the checkpoint belongs to another run; use another output folder, or the same "
                "settings (" + "; ".join(differing) + ")"
            )


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, whole or not at all.

    Parameters
    ----------
    path : Path
        A ``.safetensors`` file.
    checkpoint : Checkpoint
        What to write.
    """
    tensors: Tensors = {}
    for prefix, state in (("network", checkpoint.network), ("average", checkpoint.average)):
        tensors |= {f"{prefix}/{key}": value for key, value in state.items()}
    for number, state in checkpoint.optimiser.items():
        tensors |= {f"optimiser/{number}/{key}": value for key, value in state.items()}
    partial = path.with_name(path.name + ".partial")
    save_file(
        {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()},
        partial,
        metadata={"step": str(checkpoint.step), "run": json.dumps(checkpoint.run)},
    )
    os.replace(partial, path)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises
    ------
    WeightsError
        The file is damaged or something else.
    """
    network: Tensors = {}
    average: Tensors = {}
    optimiser: dict[int, Tensors] = {}
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            step, run = int(about["step"]), json.loads(about["run"])
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                kind, _, name = key.partition("/")
                if kind == "optimiser":
                    number, _, name = name.partition("/")
                    optimiser.setdefault(int(number), {})[name] = file.get_tensor(key)
                else:
                    (network if kind == "network" else average)[name] = file.get_tensor(key)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise WeightsError(f"{path} is not a training checkpoint: {error}") from error
    return Checkpoint(step, network, average, optimiser, run)
