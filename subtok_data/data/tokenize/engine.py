"""Who makes shards: a protocol of one method, and this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from subtok_data.data.store import ShardReport
from subtok_data.data.tokenize.shards import OnRows, ShardJob, make_shards

__all__ = ["Engine", "LocalEngine"]


class Engine(Protocol):
    """Makes shards somewhere: in this process, in actors on many machines."""

    def map_shards(self, job: ShardJob, shards: Sequence[int]) -> Iterator[ShardReport]:
        """Make shards, in any order, and yield the report of each that is stored.

        Parameters
        ----------
        job : ShardJob
            What to make; :func:`make_shards` does it, for one shard or several.
        shards : sequence of int
            Numbers of the shards. One that is made twice is harmless; one without a report is an
            error of :func:`~subtok_data.data.tokenize_dataset`.
        """
        ...


class LocalEngine:
    """Make shards in this process, with its workers.

    Parameters
    ----------
    on_rows : callable, optional
        Called as ``on_rows(rows, failed)`` whenever rows are done.
    """

    def __init__(self, on_rows: OnRows | None = None) -> None:
        self.on_rows = on_rows

    def map_shards(self, job: ShardJob, shards: Sequence[int]) -> Iterator[ShardReport]:
        """Make shards one after the other."""
        return make_shards(job, shards, self.on_rows)
