"""``ImageFreeLoader``: batches of artificial token maps, sharded and resumable."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Sized
from typing import Any

from torch.utils.data import Sampler

from subtok_data.arguments import check_count
from subtok_data.data import (
    AccelerateState,
    LoaderState,
    ResumableDataLoader,
    SubobjectBatchSampler,
    rank_and_world_size,
)
from subtok_data.imagefree.dataset import ImageFreeDataset

__all__ = ["EndlessBatchSampler", "ImageFreeLoader"]


class EndlessBatchSampler(Sampler[list[int]]):
    """Batches 0, 1, 2, … of a stream without end: batch i belongs to rank i modulo the ranks.

    Parameters
    ----------
    batch_size : int
        Samples per batch.

    Examples
    --------
    >>> batches = iter(EndlessBatchSampler(3))
    >>> next(batches), next(batches)
    ([0, 1, 2], [3, 4, 5])
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list[int]]:
        return self.batches_from(0)

    def batches_from(self, start: int) -> Iterator[list[int]]:
        """Yield this rank's batches from number ``start`` on."""
        rank, world = rank_and_world_size()
        for number in itertools.count(start):
            first = (number * world + rank) * self.batch_size
            yield list(range(first, first + self.batch_size))


class ImageFreeLoader(AccelerateState, ResumableDataLoader):
    """Load batches of an :class:`~subtok_data.imagefree.ImageFreeDataset`.

    A plain ``DataLoader`` that knows its place: nothing here needs a model or a device, so there is
    nothing to prepare ahead beyond what DataLoader workers do. Batches are the same for any number
    of workers. Ranks share the samples out and get equally many batches; ``Accelerator.prepare``
    keeps the loader as it is.

    Parameters
    ----------
    dataset : ImageFreeDataset
        What to draw.
    batch_size : int, optional
        Samples per batch and rank.
    num_workers : int, optional
        Worker processes; 0 draws in the calling process, which is enough for most models.
    drop_last : bool, optional
        Leave out what does not fill a batch on every rank.
    **kwargs
        Further DataLoader arguments: ``pin_memory``, ``prefetch_factor`` … Workers are persistent
        unless told otherwise, and start as those of :class:`~subtok_data.SubobjectLoader`.

    Examples
    --------
    >>> loader = ImageFreeLoader(ImageFreeDataset(["cow", "road"], num_samples=5), batch_size=2)
    >>> [batch["sample_index"].tolist() for batch in loader]
    [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        dataset: ImageFreeDataset,
        batch_size: int = 16,
        *,
        num_workers: int = 0,
        drop_last: bool = False,
        **kwargs: Any,
    ) -> None:
        check_count("batch_size", batch_size, optional=False)
        sampler: SubobjectBatchSampler | EndlessBatchSampler = (
            EndlessBatchSampler(batch_size)
            if dataset.num_samples is None
            else SubobjectBatchSampler(len(dataset), batch_size, drop_last, dataset=dataset)
        )
        super().__init__(
            dataset,
            shuffle=False,
            seed=dataset.seed,
            batch_sampler=sampler,
            num_workers=num_workers,
            collate_fn=dataset.collate,
            **kwargs,
        )
        self._source = dataset
        self._places = sampler

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._stop_running()
        state = self._begin()
        left = self._batches_left(state)
        self._running = running = self._drawn()
        self._begin_epoch(self._remainder())
        try:
            for number, batch in enumerate(running, start=1):
                self.end_of_dataloader = number == left
                state.advance(None)
                yield batch
                self._refuse_ended(running)
            state.begin(state.epoch + 1)
        finally:
            self._end_epoch()
            if self._running is running:
                self._running = None

    def _drawn(self) -> Generator[Any]:
        yield from super().__iter__()

    def _batches_left(self, state: LoaderState) -> int | None:
        return None if self._source.num_samples is None else super()._batches_left(state)

    def _identity(self) -> dict[str, Any]:
        return {
            **self._source.describe(),
            "batch_size": self.batch_size,
            "world_size": rank_and_world_size()[1],
            "drop_last": self._drops_last,
        }

    def __len__(self) -> int:
        return len(self._places) if isinstance(self._places, Sized) else len(self._source)
