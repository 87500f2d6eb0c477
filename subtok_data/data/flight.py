"""One batch between DataLoader and user, and the steps that take it there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from subtok_data.data.collate import SubobjectCollator
from subtok_data.data.crashes import name_crashes
from subtok_data.data.pending import PendingBatch, RawBatch, StreamPosition
from subtok_data.data.pool import SegmentPool
from subtok_data.data.stats import StatsRecorder
from subtok_data.data.work import BatchWork
from subtok_data.errors import SubtokError
from subtok_data.segmenters import Launch

__all__ = ["Delivery", "Flight", "Stages", "raw_batches"]

_ADVICE = "If memory ran out, use fewer num_workers; num_workers=0 shows the error in this process"
_END = object()


@dataclass(frozen=True)
class Delivery:
    """A finished batch and what the loader must know about it."""

    batch: dict[str, Any]
    position: StreamPosition | None
    is_last: bool


@dataclass
class Flight:
    """A batch on its way; ``batch`` is set when it is finished without a failure."""

    work: BatchWork
    position: StreamPosition | None
    nbytes: int
    launch: Launch | None = None
    batch: dict[str, Any] | None = None

    def cancel(self) -> None:
        """Take back what waits for a segment worker."""
        for sample in self.work.samples:
            for future in sample.futures:
                future.cancel()


@dataclass(frozen=True)
class Stages:
    """The steps of a batch, each timed; the same ones with and without look-ahead."""

    collator: SubobjectCollator
    pool: SegmentPool
    device: torch.device | None
    stats: StatsRecorder

    def launch(self, raw: RawBatch) -> Flight:
        """Start inference."""
        flight = Flight(self.collator.finisher.open(raw), raw.position, raw.nbytes)
        self.stats.hold(flight.nbytes)
        with self.stats.timed("infer"):
            flight.launch = self.collator.finisher.launch(flight.work)
        return flight

    def segment(self, flight: Flight) -> None:
        """Wait for inference and hand every image to the pool."""
        if flight.launch is None:
            raise TypeError("a batch is segmented before its inference was launched")
        with self.stats.timed("infer"):
            evidence = flight.launch.result()
        flight.launch = None
        self.collator.finisher.segment(flight.work, evidence, self.pool)

    def finish(self, flight: Flight) -> None:
        """Wait for the pool and pad, unless a sample failed: that is left to the user's thread."""
        finisher = self.collator.finisher
        finisher.collect(flight.work)
        if not flight.work.has_failures:
            with self.stats.timed("finish"):
                flight.batch = finisher.build(flight.work, self.device)

    def deliver(self, flight: Flight, *, is_last: bool) -> Delivery:
        """Replace what failed, count, and hand over; runs in the user's thread."""
        work = flight.work
        if flight.batch is None:
            self.collator.finisher.replace_failures(work)
            flight.batch = self.collator.finisher.build(work, self.device)
        self.collator.replaced += work.replaced
        counts = [cut.num_tokens for sample in work.samples for cut in sample.cut]
        self.stats.count(np.array(counts, np.int64), flight.batch, work.replaced)
        self.stats.hold(-flight.nbytes)
        return Delivery(flight.batch, flight.position, is_last)


def raw_batches(
    source: Iterator[Any], collator: SubobjectCollator, stats: StatsRecorder
) -> Iterator[RawBatch]:
    """Pull pending batches in the calling thread; placeholders of a resumed stream are left out."""
    while True:
        with stats.timed("decode"), collator.deferred(), name_crashes(_ADVICE):
            pending = next(source, _END)
        if pending is _END:
            return
        if not isinstance(pending, PendingBatch):
            raise SubtokError(
                f"the loader's collate_fn gave a {type(pending).__name__}; SubobjectLoader needs "
                "its own SubobjectCollator: give options to SubobjectLoader, not collate_fn="
            )
        if pending.raw is not None:
            yield pending.raw
