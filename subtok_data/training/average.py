"""Moving average of weights."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["MovingAverage"]


class MovingAverage:
    """Exponential moving average of a module's parameters and float buffers.

    Parameters
    ----------
    decay : float
        Share of the old average that a step keeps, once the run is long enough.

    Attributes
    ----------
    state : dict of str to Tensor
        The averages, under the names of the module's state.

    Examples
    --------
    >>> module = nn.Linear(1, 1)
    >>> average = MovingAverage(0.9)
    >>> average.start(module)
    >>> average.update(module, step=1)
    >>> sorted(average.state)
    ['bias', 'weight']
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.state: dict[str, torch.Tensor] = {}

    def start(self, module: nn.Module) -> None:
        """Begin with the module as it is."""
        self.state = {key: value.detach().clone() for key, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take in the module after its optimiser step number `step`, which counts from 1."""
        # Early on a long memory would hold the initial weights.
        decay = min(self.decay, (1 + step) / (10 + step))
        for key, value in module.state_dict().items():
            if value.dtype.is_floating_point:
                self.state[key].lerp_(value, 1 - decay)
            else:
                self.state[key].copy_(value)
