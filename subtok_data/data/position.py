"""Positions of loaders and streams: what ``state_dict`` holds and is checked against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from subtok_data.arguments import check_count, check_type
from subtok_data.errors import ConfigError

__all__ = ["STREAM_PLACEHOLDER", "LoaderState", "StreamPosition"]

_VERSION = 1


@dataclass
class LoaderState:
    """Position after the last batch that was yielded.

    Attributes
    ----------
    epoch : int
        Current epoch.
    batches : int
        Batches of it that were yielded.
    identity : dict
        What must be the same for the position to mean the same: samples, batch size, ranks, seed …
    positions : dict of int to object
        For streams: position of the stream of each DataLoader worker.
    last_worker : int
        For streams: the worker that made the last batch.
    """

    epoch: int = 0
    batches: int = 0
    identity: dict[str, Any] = field(default_factory=dict[str, Any])
    positions: dict[int, Any] = field(default_factory=dict[int, Any])
    last_worker: int = -1

    def advance(self, position: StreamPosition | None) -> None:
        """Count one yielded batch."""
        self.batches += 1
        if position is not None:
            self.positions[position.worker] = position.state
            self.last_worker = position.worker

    def begin(self, epoch: int) -> None:
        """Move to the beginning of an epoch."""
        self.epoch, self.batches = epoch, 0
        self.positions, self.last_worker = {}, -1

    def as_dict(self) -> dict[str, Any]:
        """Return plain values that json and torch.save take."""
        state = {"version": _VERSION, **asdict(self)}
        state["positions"] = {str(worker): value for worker, value in self.positions.items()}
        return state

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], identity: Mapping[str, Any]) -> LoaderState:
        """Read :meth:`as_dict`, refusing a state of another dataset or configuration.

        Raises
        ------
        ConfigError
            What is no such state, has a position below 0, or belongs to another run: then every
            difference is named.
        """
        state = check_type("state_dict", state, Mapping, "give what state_dict() returned")
        if state.get("version") != _VERSION:
            raise ConfigError(
                f"loader state of version {state.get('version')!r}: this version of subtok_data "
                f"reads {_VERSION}"
            )
        missing = [field.name for field in fields(cls) if field.name not in state]
        if missing:
            raise ConfigError(
                f"the loader state lacks {missing}: give what state_dict() returned, unchanged"
            )
        for name in ("epoch", "batches", "last_worker"):
            least = -1 if name == "last_worker" else 0
            check_count(f"{name} of the loader state", state[name], least=least, optional=False)
        for name in ("identity", "positions"):
            check_type(f"{name} of the loader state", state[name], Mapping, "give it unchanged")
        saved: Mapping[str, Any] = state["identity"]
        different = [
            f"{name} was {saved.get(name)!r}, is {identity[name]!r}"
            for name in identity
            if saved.get(name) != identity[name]
        ]
        if different:
            raise ConfigError(
                f"the loader state belongs to another run: {'; '.join(different)}. Resuming would "
                "give other batches; use the same settings, or start the epoch anew"
            )
        return cls(
            epoch=int(state["epoch"]),
            batches=int(state["batches"]),
            identity=dict(identity),
            positions={int(worker): value for worker, value in state["positions"].items()},
            last_worker=int(state["last_worker"]),
        )


STREAM_PLACEHOLDER = "subtok: no sample"
"""Row of a batch without samples: it keeps the workers of a resumed stream in their turn."""


@dataclass(frozen=True)
class StreamPosition:
    """Position of a worker's stream after a batch.

    Attributes
    ----------
    worker : int
        DataLoader worker, 0 in the main process.
    state : object
        What the stream needs to go on from here.
    """

    worker: int
    state: Any
