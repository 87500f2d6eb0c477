"""``ImageFreeLoader``: batches of artificial token maps, sharded and resumable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from typing import Any

from torch.utils.data import DataLoader, Sampler

from subtok_data.data.accelerate_state import AccelerateState
from subtok_data.data.sampler import SubobjectBatchSampler, rank_and_world_size
from subtok_data.data.state import LoaderState
from subtok_data.errors import ConfigError
from subtok_data.imagefree.dataset import ImageFreeDataset
from subtok_data.segment.budget import check_count

__all__ = ["EndlessBatchSampler", "ImageFreeLoader"]


class EndlessBatchSampler(Sampler[list[int]]):
    """Batches 0, 1, 2, … of a stream without end: batch i belongs to rank i modulo the ranks.

    Parameters
    ----------
    batch_size : int
        Samples per batch.

    Attributes
    ----------
    start : int
        Batches of this rank that the next iteration leaves out.

    Examples
    --------
    >>> batches = iter(EndlessBatchSampler(3))
    >>> next(batches), next(batches)
    ([0, 1, 2], [3, 4, 5])
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.start = 0

    def __iter__(self) -> Iterator[list[int]]:
        number, self.start = self.start, 0
        rank, world = rank_and_world_size()
        while True:
            first = (number * world + rank) * self.batch_size
            yield list(range(first, first + self.batch_size))
            number += 1


class ImageFreeLoader(AccelerateState, DataLoader[Any]):
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
        Further DataLoader arguments: ``pin_memory``, ``prefetch_factor`` … Workers start by
        forkserver and are persistent unless told otherwise.

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
        if num_workers > 0:
            kwargs.setdefault("multiprocessing_context", "forkserver")
            kwargs.setdefault("persistent_workers", True)
        endless = dataset.num_samples is None
        sampler: SubobjectBatchSampler | EndlessBatchSampler = (
            EndlessBatchSampler(batch_size)
            if endless
            else SubobjectBatchSampler(len(dataset), batch_size, drop_last, dataset=dataset)
        )
        super().__init__(
            dataset,
            batch_sampler=sampler,
            num_workers=num_workers,
            collate_fn=dataset.collate,
            **kwargs,
        )
        self._source = dataset
        self._places = sampler
        self._is_running = False
        self._next_epoch = 0
        self._state = LoaderState()
        self._resume: LoaderState | None = None

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        state = self._resume or LoaderState(epoch=self._next_epoch)
        self._resume = None
        self._state, self._next_epoch = state, state.epoch + 1
        self._source.set_epoch(state.epoch)
        self._places.start = state.batches
        total = None if self._source.num_samples is None else len(self)
        self._begin_epoch(self._remainder())
        self._is_running = True
        try:
            for batch in super().__iter__():
                state.batches += 1
                self.end_of_dataloader = state.batches == total
                yield batch
            state.begin(state.epoch + 1)
        finally:
            self._is_running = False
            self._end_epoch()

    def __len__(self) -> int:
        return len(self._places) if isinstance(self._places, Sized) else len(self._source)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; by default each iteration is the next epoch.

        A position that was just loaded is kept if it is in this epoch.
        """
        if self._resume is not None and self._resume.epoch != epoch:
            self._resume = None
        if not self._is_running:
            self._state.begin(epoch)
        self._next_epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """Position after the last batch that was yielded, as plain values.

        What workers have drawn ahead is not counted.
        """
        state = self._resume or self._state
        state.identity = self._identity()
        return state.as_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Let the next iteration go on from a position, exactly and at once.

        Raises
        ------
        ConfigError
            If the state belongs to other samples, another batch size or number of ranks.
        """
        state = LoaderState.from_dict(state_dict, self._identity())
        if self._source.num_samples is not None and state.batches >= len(self):
            state.begin(state.epoch + 1)
        self._resume = state

    def skip(self, num_batches: int) -> None:
        """Leave out the first batches of the next iteration, without drawing them."""
        if num_batches < 0:
            raise ConfigError(f"num_batches={num_batches}: give 0 or more")
        self._resume = LoaderState(epoch=self._next_epoch, batches=num_batches)

    def _identity(self) -> dict[str, Any]:
        return {
            **self._source.describe(),
            "batch_size": self._places.batch_size,
            "world_size": rank_and_world_size()[1],
            "drop_last": bool(getattr(self._places, "drop_last", False)),
        }

    def _remainder(self) -> int:
        """Samples of the last step of all ranks that are no repeats, as accelerate counts them."""
        samples = self._source.num_samples
        if samples is None or getattr(self._places, "drop_last", False):
            return -1
        return samples % (self._places.batch_size * rank_and_world_size()[1])

    @property
    def total_dataset_length(self) -> int:
        """Samples of all ranks."""
        return len(self._source)
