"""What the boundary model hands out before the device is done."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from subtok_data.errors import SubtokError

__all__ = ["DeviceMaps"]


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
            raise SubtokError(
                f"boundary model {self.model!r} gave NaN or infinite logits for image(s) {wrong} "
                f"of {len(flags)}: the weights are damaged, or overflow in reduced precision "
                "(try dtype='float32')"
            )
