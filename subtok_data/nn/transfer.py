"""Copies between host and device that make the host wait once, or not at all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

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
    return _unpacked(host, found, away)


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
    here.sort(key=lambda at: -found[at].element_size())
    total = sum(found[at].numel() * found[at].element_size() for at in here)
    pinned = device.type == "cuda"
    # torch hands out pinned memory again only after the copies from it are done.
    host = torch.empty(total, dtype=torch.uint8, pin_memory=pinned)
    for at, place in zip(here, _unpacked(host, found, here, only=True), strict=True):
        place.copy_(found[at])
    return _unpacked(host.to(device, non_blocking=pinned), found, here)


def _unpacked(
    packed: Tensor, like: Sequence[Tensor], order: Sequence[int], only: bool = False
) -> list[Tensor]:
    """The tensors of a packed buffer in the places of ``order``; the others, unless ``only``."""
    found = list(like)
    start = 0
    for at in order:
        end = start + like[at].numel() * like[at].element_size()
        found[at] = packed[start:end].view(like[at].dtype).view(like[at].shape)
        start = end
    return [found[at] for at in order] if only else found
