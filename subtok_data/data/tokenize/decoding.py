"""Rows of a dataset, decoded in DataLoader workers; a failed row is returned with its error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch.utils.data import Dataset

from subtok_data.data.collation import RawSample, SampleInProgress
from subtok_data.data.dataloader_workers import WorkerDataLoader, name_crashes
from subtok_data.data.datasets import SubobjectDataset, row_key
from subtok_data.errors import SampleError
from subtok_data.images import Canvas

__all__ = ["ResizedRows", "RowGuard", "decode_ahead"]

_ADVICE = (
    "What is stored is kept; run again to go on, with num_workers=0 to see the error in this "
    "process"
)


@dataclass(frozen=True)
class RowGuard:
    """Keeps the row that is being decoded in a place that outlives the process.

    Attributes
    ----------
    note : callable
        Called with a row before it is decoded, and with None after.
    deadly : frozenset of int
        Rows that ended their process twice: they are not decoded again.
    """

    note: Callable[[int | None], object]
    deadly: frozenset[int]


class ResizedRows(Dataset[SampleInProgress]):
    """Decode and resize rows in workers; a failed row is returned with its error as a value."""

    def __init__(
        self, samples: SubobjectDataset, canvas: Canvas, guard: RowGuard | None = None
    ) -> None:
        self.samples = samples
        self.canvas = canvas
        self.guard = guard

    def __getitem__(self, index: int) -> SampleInProgress:
        if self.guard is None:
            return self._decode(index)
        if index in self.guard.deadly:
            error = SampleError(
                "reading or decoding it ended its process twice", index=index, stage="decode"
            )
            return SampleInProgress(raw=RawSample(index=index, path=None), images=[], error=error)
        self.guard.note(index)
        decoded = self._decode(index)
        self.guard.note(None)
        return decoded

    def _decode(self, index: int) -> SampleInProgress:
        try:
            sample = self.samples.load(index)
            images = sample.decoded(self.canvas.fit)
        except SampleError as error:
            key = row_key(self.samples, index)  # a file that is mended later has another one
            return SampleInProgress(
                raw=RawSample(index=index, path=error.path, key=key), images=[], error=error
            )
        return SampleInProgress(
            raw=RawSample(
                index=index, path=sample.path, key=sample.key, source_sizes=sample.source_sizes
            ),
            images=images,
        )


def decode_ahead(
    rows: ResizedRows, ranges: Sequence[range], batch_size: int, num_workers: int
) -> Iterator[list[SampleInProgress]]:
    """Decode ranges of rows, batch by batch; no batch reaches over the end of a range.

    Raises
    ------
    WorkerCrashError
        If a worker dies.
    """
    batches = [
        list(rows_of_one[start : start + batch_size])
        for rows_of_one in ranges
        for start in range(0, len(rows_of_one), batch_size)
    ]
    loader = WorkerDataLoader(rows, batch_sampler=batches, num_workers=num_workers, collate_fn=list)
    decoded = iter(loader)
    with name_crashes(decoded, _ADVICE):
        yield from decoded
