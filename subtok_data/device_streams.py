"""Streams of work on a CUDA device beside that of the training loop."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch

__all__ = ["DeviceStream", "move_to", "send_to", "set_thread_device"]


def set_thread_device(device: torch.device) -> None:
    """Make a CUDA device the current one of the calling thread; others have no such thing.

    A new thread starts on device 0, whichever the thread that started it is on.

    Examples
    --------
    >>> set_thread_device(torch.device("cpu"))
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)


def move_to(
    tensor: torch.Tensor, device: torch.device, *, non_blocking: bool = True
) -> torch.Tensor:
    """Copy a tensor to a device, without waiting where that is safe.

    Only from pinned memory to CUDA: MPS copies later from memory that the host may have changed or
    given back by then (pytorch#139550, pytorch#189690), CUDA would wait before it copies.

    Examples
    --------
    >>> move_to(torch.ones(2), torch.device("cpu"))
    tensor([1., 1.])
    """
    safe = non_blocking and device.type == "cuda" and tensor.is_pinned()
    return tensor.to(device, non_blocking=safe)


def send_to(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor of the host to a device; to CUDA through pinned memory, without waiting.

    Examples
    --------
    >>> send_to(torch.ones(2), torch.device("cpu"))
    tensor([1., 1.])
    """
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return move_to(tensor, device)


class DeviceStream:
    """A stream of its own on a CUDA device; on other devices it does nothing.

    Parameters
    ----------
    device : torch.device
        With its index, on CUDA.
    priority : int, optional
        −1 goes before what streams of priority 0 have queued, training's among them.

    Examples
    --------
    >>> stream = DeviceStream(torch.device("cpu"))
    >>> with stream.entered():
    ...     torch.ones(2)
    tensor([1., 1.])
    """

    def __init__(self, device: torch.device, *, priority: int = 0) -> None:
        self.device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device, priority=priority)

    def follow_caller(self) -> None:
        """Begin only after all that the calling thread has queued: weights it loaded or trained."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self.device))

    @contextmanager
    def entered(self) -> Generator[None]:
        """Queue the work of this thread on the stream."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield

    def record(self) -> torch.cuda.Event | None:
        """Return an event at the end of what is queued; None on other devices."""
        if self._stream is None:
            return None
        event = torch.cuda.Event()
        event.record(self._stream)
        return event
