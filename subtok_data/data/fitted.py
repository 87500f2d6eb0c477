"""Rows of a dataset at the size that is cut, decoded in DataLoader workers; bad ones are values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch.utils.data import DataLoader, Dataset

from subtok_data.data.crashes import name_crashes
from subtok_data.data.dataset import SubobjectDataset
from subtok_data.data.work import SampleWork
from subtok_data.errors import SampleError
from subtok_data.tokenizer import Canvas

__all__ = ["FittedRows", "decode_ahead"]

_ADVICE = (
    "What is stored is kept; run again to go on, with fewer workers if memory ran out, or with "
    "none to see the error"
)


class FittedRows(Dataset[SampleWork]):
    """Decodes and resizes; a bad sample is a value with an error, since it must not stop others."""

    def __init__(self, samples: SubobjectDataset, canvas: Canvas) -> None:
        self.samples = samples
        self.canvas = canvas

    def __getitem__(self, index: int) -> SampleWork:
        try:
            sample = self.samples.load(index)
        except SampleError as error:
            return SampleWork(index=index, path=error.path, images=[], error=error)
        images = [self.canvas.fit(image) for image in sample.images]
        return SampleWork(index=index, path=sample.path, images=images)


def decode_ahead(
    rows: FittedRows, shards: Sequence[range], batch_size: int, num_workers: int
) -> Iterator[list[SampleWork]]:
    """Decode the rows of some shards, batch by batch; no batch reaches over the end of a shard.

    Raises
    ------
    WorkerCrashError
        If a worker dies.
    """
    batches = [
        list(shard[start : start + batch_size])
        for shard in shards
        for start in range(0, len(shard), batch_size)
    ]
    # As in the loader: a fork after CUDA and threads exist is unsafe.
    context = "forkserver" if num_workers else None
    loader = DataLoader(
        rows,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=list,
        multiprocessing_context=context,
    )
    with name_crashes(_ADVICE):
        yield from loader
