"""CUDA devices that are none: what is asked of them is recorded, and computed on the CPU.

Streams, events, copies and threads are recorded in the order in which they were asked for; work is
done at once. So which stream a copy is on, and whether the consumer waits for it and keeps its
memory, is seen without a device; what a device would do meanwhile is not.
"""

from __future__ import annotations

import itertools
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

COUNT = 4
CURRENT = 2
"""Device of the main thread; new threads begin on 0."""


class FakeStream:
    def __init__(self, cuda: FakeCuda, device: Any, name: str, priority: int = 0) -> None:
        self.cuda, self.device, self.name, self.priority = (
            cuda,
            torch.device(device),
            name,
            priority,
        )

    def wait_event(self, event: Any) -> None:
        self.cuda.note("wait_event", stream=self.name, event=event.number)

    def wait_stream(self, other: FakeStream) -> None:
        self.cuda.note("wait_stream", stream=self.name, other=other.name)


@dataclass
class Note:
    """One thing that was asked of the devices."""

    what: str
    thread: str
    stream: str
    details: dict[str, Any] = field(default_factory=dict[str, Any])

    def __getattr__(self, name: str) -> Any:
        try:
            return self.details[name]
        except KeyError:
            raise AttributeError(name) from None


class FakeCuda:
    """Install on torch with ``monkeypatch``, and read ``notes``."""

    def __init__(self, monkeypatch: Any) -> None:
        self.notes: list[Note] = []
        self.pinned: dict[int, Any] = {}
        self._here = threading.local()
        self._here.device = CURRENT
        self._streams, self._events = itertools.count(1), itertools.count(1)
        self._to, self._empty = torch.Tensor.to, torch.empty
        self._is_pinned, self._copy = torch.Tensor.is_pinned, torch.Tensor.copy_
        cuda = torch.cuda
        for name, value in {
            "is_available": lambda: True,
            "device_count": lambda: COUNT,
            "current_device": self.current_device,
            "set_device": self.set_device,
            "Stream": self.make_stream,
            "stream": self.entered,
            "current_stream": self.current_stream,
            "Event": self.make_event,
        }.items():
            monkeypatch.setattr(cuda, name, value)
        fake = self
        monkeypatch.setattr(torch, "empty", self.empty)
        monkeypatch.setattr(torch.Tensor, "to", lambda one, *a, **k: fake.to(one, *a, **k))
        monkeypatch.setattr(torch.Tensor, "copy_", lambda one, *a, **k: fake.copy(one, *a, **k))
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda one: fake.pin(one.clone()))
        monkeypatch.setattr(torch.Tensor, "is_pinned", lambda one, *_: fake.is_pinned(one))
        monkeypatch.setattr(
            torch.Tensor,
            "record_stream",
            lambda one, stream: fake.note("record_stream", of=one.data_ptr(), for_=stream.name),
        )

    def note(self, what: str, **details: Any) -> None:
        thread = threading.current_thread().name
        self.notes.append(Note(what, thread, self.current_stream().name, details))

    def of(self, *what: str) -> list[Note]:
        """Return what was noted of some kinds, in order."""
        return [note for note in self.notes if note.what in what]

    # --- devices, streams, events -------------------------------------------------------------

    def current_device(self) -> int:
        self.note("current_device")
        return getattr(self._here, "device", 0)

    def set_device(self, device: Any) -> None:
        self._here.device = torch.device(device).index
        self.note("set_device", device=torch.device(device))

    def make_stream(self, device: Any = None, priority: int = 0) -> FakeStream:
        return FakeStream(self, device, f"stream {next(self._streams)}", priority)

    def current_stream(self, device: Any = None) -> FakeStream:
        del device
        found = getattr(self._here, "stream", None)
        return found or FakeStream(self, "cuda:0", "default")

    @contextmanager
    def entered(self, stream: FakeStream):
        before = getattr(self._here, "stream", None)
        self._here.stream = stream
        try:
            yield
        finally:
            self._here.stream = before

    def make_event(self, **options: Any) -> Any:
        cuda, number = self, next(self._events)

        class Event:
            def __init__(self) -> None:
                self.number, self.options = number, options

            def record(self, stream: FakeStream) -> None:
                cuda.note("record", event=number, on=stream.name)

            def synchronize(self) -> None:
                cuda.note("synchronize", event=number)

        return Event()

    # --- memory and copies --------------------------------------------------------------------

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        self.pinned[tensor.untyped_storage().data_ptr()] = tensor  # kept: no address comes again
        return tensor

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        if tensor.layout != torch.strided:
            return False
        return tensor.untyped_storage().data_ptr() in self.pinned

    def empty(
        self, *size: Any, pin_memory: bool = False, device: Any = None, **options: Any
    ) -> Any:
        on_device = device is not None and torch.device(device).type == "cuda"
        made = self._empty(*size, device=None if on_device else device, **options)
        return self.pin(made) if pin_memory else made

    def to(self, tensor: torch.Tensor, *args: Any, non_blocking: bool = False, **options: Any):
        first = args[0] if args else options.get("device")
        named = isinstance(first, str | torch.device)
        if not named or torch.device(first).type != "cuda":
            return self._to(tensor, *args, **options)
        self.note(
            "upload",
            pinned=self.is_pinned(tensor),
            non_blocking=non_blocking,
            device=torch.device(first),
        )
        dtypes = [one for one in (*args, *options.values()) if isinstance(one, torch.dtype)]
        return self._to(tensor.clone(), *dtypes)

    def copy(self, target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> Any:
        if non_blocking:
            pinned = self.is_pinned(source) or self.is_pinned(target)
            self.note("copy", pinned=pinned, non_blocking=True)
        return self._copy(target, source)
