"""Boundary maps between a device and the host: still being computed, on their way down, arrived."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from subtok_data.errors import SubtokError

__all__ = ["DeviceMaps", "PendingMaps"]


class DeviceMaps(list[torch.Tensor]):
    """Boundary maps on the model's device, possibly still being computed: uint8 tensors (H, W).

    Attributes
    ----------
    finite : bool tensor (N,)
        On the same device; False where the logits of an image held NaN or infinity, and its map
        therefore means nothing. Copy it down with the maps and give it to ``raise_unless_finite``.
    model : str
        Name of the model, for messages.

    Examples
    --------
    >>> maps = DeviceMaps([torch.zeros(2, 2, dtype=torch.uint8)], torch.tensor([True]), "nano")
    >>> maps.raise_unless_finite()
    >>> len(maps)
    1
    """

    def __init__(self, maps: Iterable[torch.Tensor], finite: torch.Tensor, model: str) -> None:
        super().__init__(maps)
        self.finite = finite
        self.model = model

    def raise_unless_finite(self, finite: torch.Tensor | None = None) -> None:
        """Raise for maps that mean nothing; waits for the device unless a host copy is given.

        Parameters
        ----------
        finite : bool tensor (N,), optional
            A copy of the attribute that has arrived on the host.

        Raises
        ------
        SubtokError
            Naming the model and the images.
        """
        flags = (self.finite if finite is None else finite).tolist()
        wrong = [index for index, good in enumerate(flags) if not good]
        if wrong:
            where = f" for image(s) {wrong} of {len(flags)}" if len(flags) > 1 else ""
            raise _not_finite(self.model, where)


class PendingMaps:
    """Boundary maps on their way from a device into host memory, in one copy.

    Parameters
    ----------
    maps : DeviceMaps
        Computed on the current stream, on which the copy follows them.

    Examples
    --------
    >>> maps = DeviceMaps(torch.ones(1, 2, 3, dtype=torch.uint8), torch.tensor([True]), "nano")
    >>> PendingMaps(maps).result()
    [array([[1, 1, 1],
           [1, 1, 1]], dtype=uint8)]
    """

    def __init__(self, maps: DeviceMaps) -> None:
        self._model = maps.model
        self._shapes = [(int(one.shape[0]), int(one.shape[1])) for one in maps]
        flat = torch.cat([maps.finite.to(torch.uint8), *(one.flatten() for one in maps)])
        self._event: torch.cuda.Event | None = None
        self._host = flat
        if flat.device.type == "cuda":
            # torch keeps pinned blocks for reuse: after a few batches this allocates nothing. The
            # device's block goes back to the stream that made it, behind the copy.
            self._host = torch.empty(flat.shape, dtype=torch.uint8, pin_memory=True)
            self._host.copy_(flat, non_blocking=True)
            self._event = torch.cuda.Event(blocking=True)  # else waiting takes a core
            self._event.record()

    def result(self) -> list[NDArray[np.uint8] | SubtokError]:
        """Wait for the copy.

        Returns
        -------
        list of (H, W) uint8 array or SubtokError
            One entry per image: its map, or why it has none: NaN or infinite logits.
        """
        if self._event is not None:
            self._event.synchronize()
        flat: NDArray[np.uint8] = self._host.numpy()
        found: list[NDArray[np.uint8] | SubtokError] = []
        at = len(self._shapes)
        for index, (height, width) in enumerate(self._shapes):
            boundary = flat[at : at + height * width].reshape(height, width)
            at += height * width
            found.append(boundary if flat[index] else _not_finite(self._model))
        return found


def _not_finite(model: str, where: str = "") -> SubtokError:
    return SubtokError(
        f"boundary model {model!r} gave NaN or infinite logits{where}: the weights are damaged, or "
        "overflow in reduced precision (try dtype='float32')"
    )
