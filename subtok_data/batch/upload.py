"""Finished batches to a device: one packed copy for all that is small, pixels apart as bytes."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from subtok_data.device_streams import DeviceStream, move_to

__all__ = ["BatchUpload", "Packed"]

_ALIGNMENT = 256
"""In bytes, of each tensor of a packed buffer: views of any dtype begin where they may."""


@dataclass(frozen=True)
class Packed:
    """Tensors one after the other in a buffer of bytes.

    Parameters
    ----------
    buffer : (bytes,) uint8 tensor
        On any device.
    places : dict of str to (dtype, shape, first byte)
        Where each tensor is.

    Examples
    --------
    >>> packed = Packed.of({"a": torch.tensor(7), "b": torch.tensor([True, False])})
    >>> packed.tensors()
    {'a': tensor(7), 'b': tensor([ True, False])}
    """

    buffer: Tensor
    places: dict[str, tuple[torch.dtype, torch.Size, int]]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], *, pin: bool = False) -> Packed:
        """Copy tensors of the host into one buffer, in pinned memory if asked."""
        sizes = [math.ceil(one.nbytes / _ALIGNMENT) * _ALIGNMENT for one in tensors.values()]
        starts = list(accumulate(sizes, initial=0))
        # Of torch's pinned memory: it hands a block out again when the copies from it are done.
        buffer = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=pin)
        places = {
            name: (tensor.dtype, tensor.shape, start)
            for (name, tensor), start in zip(tensors.items(), starts, strict=False)
        }
        packed = cls(buffer, places)
        for name, view in packed.tensors().items():
            view.copy_(tensors[name])
        return packed

    def to(self, device: torch.device) -> Packed:
        """Copy the buffer to a device."""
        return Packed(move_to(self.buffer, device), self.places)

    def tensors(self) -> dict[str, Tensor]:
        """Views of the buffer."""
        return {
            name: self.buffer[start : start + shape.numel() * dtype.itemsize]
            .view(dtype)
            .view(shape)
            for name, (dtype, shape, start) in self.places.items()
        }


class BatchUpload:
    """Bring finished batches to a device, on a stream of its own where there are streams.

    On CUDA nothing waits: what is copied and made inside :meth:`entered` is queued, and the thread
    that takes the batch calls :meth:`receive`, after which its own stream sees it whole.

    Parameters
    ----------
    device : torch.device
        With its index, on CUDA.
    own_stream : bool, optional
        Whether to queue beside the work of the calling thread, on CUDA; else in order with it.

    Examples
    --------
    >>> upload = BatchUpload(torch.device("meta"))
    >>> with upload.entered():
    ...     batch = upload.send({"a": torch.zeros(2), "b": "text"})
    >>> upload.receive(batch, upload.sent())
    >>> batch
    {'a': tensor(..., device='meta', size=(2,)), 'b': 'text'}
    """

    def __init__(self, device: torch.device, *, own_stream: bool = False) -> None:
        self.device = device
        self._stream = DeviceStream(device) if own_stream and device.type == "cuda" else None

    @contextmanager
    def entered(self) -> Generator[None]:
        """Queue what this thread copies and computes on the stream."""
        if self._stream is None:
            yield
            return
        with self._stream.entered():
            yield

    def send(
        self, batch: Mapping[str, Any], *, made_there: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Copy the tensors of a batch to the device; inside :meth:`entered`.

        On CUDA as one buffer, of which the tensors are views.

        Parameters
        ----------
        batch : mapping
            Tensors of the host, and other values, which stay as they are.
        made_there : mapping, optional
            Tensors that are on the device already, by their keys in ``batch``.

        Returns
        -------
        dict
            In the order of ``batch``.
        """
        there = dict(made_there or {})
        tensors = {
            name: value
            for name, value in batch.items()
            if isinstance(value, Tensor) and name not in there
        }
        if self.device.type == "cuda":
            plain = {name: one for name, one in tensors.items() if _is_plain(one)}
            if plain:
                there.update(Packed.of(plain, pin=True).to(self.device).tensors())
        for name, one in tensors.items():
            if name not in there:
                there[name] = move_to(one, self.device)
        return {name: there.get(name, value) for name, value in batch.items()}

    def sent(self) -> torch.cuda.Event | None:
        """Return an event after all that was queued so far; None without a stream of its own."""
        return None if self._stream is None else self._stream.record()

    def receive(self, batch: Mapping[str, Any], sent: torch.cuda.Event | None) -> None:
        """Let the stream of this thread wait for a batch, and keep its memory until it is used.

        The host waits for nothing.
        """
        if sent is None:
            return
        current = torch.cuda.current_stream(self.device)
        current.wait_event(sent)
        for value in batch.values():
            if isinstance(value, Tensor):
                # Else the memory of a batch that is dropped would be filled with the next one while
                # kernels that read it are still to run.
                value.record_stream(current)


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is nothing but its bytes on the host."""
    return (
        type(tensor) is Tensor
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and not tensor.is_quantized
        and not tensor.requires_grad
        and not tensor.is_conj()
        and not tensor.is_neg()
    )
