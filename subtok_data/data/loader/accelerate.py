"""Tells accelerate about a loader that it does not rebuild.

``Accelerator.prepare`` rebuilds every DataLoader, which would lose look-ahead, unless it is marked
as prepared; then the loader itself must tell ``GradientState`` where the epoch ends, on the batch
that the training loop has, not on one that is prepared ahead. Both are private enough in accelerate
to live in one place.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.data_loader import DataLoaderStateMixin
from accelerate.state import GradientState, PartialState

from subtok_data.devices import resolve_device

__all__ = ["AccelerateState", "accelerate_device"]


def accelerate_device() -> torch.device | None:
    """Return the device of this process if an ``Accelerator`` (or a Trainer) exists, else None.

    With its index on CUDA; call it in the user's thread.
    """
    if not PartialState._shared_state:  # pyright: ignore[reportPrivateUsage]
        return None
    device: Any = PartialState().device
    # A single process of accelerate has a bare "cuda", which is another device in another thread.
    return None if device.type == "cpu" else resolve_device(device)


class AccelerateState(DataLoaderStateMixin):
    """Makes ``Accelerator.prepare`` keep the loader, and tells it where the epoch ends."""

    _is_accelerate_prepared = True
    use_stateful_dataloader = True  # Accelerator.save_state asks for state_dict
    end_of_dataloader: bool
    remainder: int

    @property
    def gradient_state(self) -> GradientState:
        """Accelerate's shared state; the same object everywhere."""
        return GradientState()

    def _begin_epoch(self, remainder: int) -> None:
        """Register with accelerate at the start of an epoch.

        Parameters
        ----------
        remainder : int
            Samples of the last step of all ranks that are not repeats; −1 for unknown.
        """
        self.reset()
        self.remainder = remainder
        self.gradient_state._add_dataloader(self)  # pyright: ignore[reportPrivateUsage]

    def _end_epoch(self) -> None:
        """Unregister."""
        state: Any = self.gradient_state
        if any(one is self for one in state.dataloader_references if one is not None):
            self.end()
