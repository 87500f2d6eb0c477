"""Copies between host and device that make the host wait once, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from subtok_data.batch import Packed

__all__ = ["to_device", "to_host"]


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors on the CPU; all that lie on a device come in one copy.

    The host waits for that copy, and for what was queued before it; if all are on the CPU already,
    for nothing.

    Examples
    --------
    >>> to_host([torch.tensor([1, 2]), torch.tensor([True])])
    [tensor([1, 2]), tensor([True])]
    """
    away = [at for at, one in enumerate(tensors) if one.device.type != "cpu"]
    found = [one.detach() for one in tensors]
    if not away:
        return found
    away.sort(key=lambda at: -found[at].element_size())  # so that all are aligned
    packed = torch.cat([found[at].contiguous().flatten().view(torch.uint8) for at in away])
    pinned = packed.device.type == "cuda"
    host = torch.empty(packed.shape, dtype=torch.uint8, pin_memory=pinned).copy_(packed)
    starts = accumulate((found[at].nbytes for at in away), initial=0)
    places = {
        str(at): (found[at].dtype, found[at].shape, start)
        for at, start in zip(away, starts, strict=False)
    }
    return _replaced(found, Packed(host, places))


def to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Return the tensors on a device; all that lie on the CPU go there in one copy.

    On CUDA nothing waits: the copy is from pinned memory, on the current stream.

    Examples
    --------
    >>> to_device([torch.tensor([1, 2])], torch.device("cpu"))
    [tensor([1, 2])]
    """
    here = [at for at, one in enumerate(tensors) if one.device.type == "cpu"]
    found = list(tensors)
    if device.type == "cpu" or not here:
        return [one.to(device) for one in found]
    packed = Packed.of({str(at): found[at] for at in here}, pin=device.type == "cuda")
    return _replaced(found, packed.to(device))


def _replaced(tensors: list[Tensor], packed: Packed) -> list[Tensor]:
    """The tensors, with those that are packed under their place in the list."""
    for at, one in packed.tensors().items():
        tensors[int(at)] = one
    return tensors
