"""A DataLoader that counts epochs, and whose position can be saved and resumed.

Knows nothing of images: loaders of artificial samples start without an image library.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping
from itertools import islice
from typing import Any

from torch.utils.data import IterableDataset

from subtok_data.data.dataloader_workers import WorkerDataLoader
from subtok_data.data.loader.batch_sampler import SubobjectBatchSampler
from subtok_data.data.loader.ranks import rank_and_world_size
from subtok_data.data.position import LoaderState
from subtok_data.errors import ConfigError, SubtokError

__all__ = ["ResumableDataLoader"]

_OF_PARENTS: list[Any] = []
"""In a forked child: what belongs to the process it was forked from."""


class _BatchesFrom:
    """Batches of a sampler; the next iteration leaves out the first ``start``.

    A sampler with ``batches_from(start)`` begins there by itself; others are drawn from in vain.
    """

    def __init__(self, batches: Any) -> None:
        self.batches = batches
        self.start = 0

    def __iter__(self) -> Iterator[Any]:
        # A generator: where torch starts workers it asks for two iterators and draws from one.
        start, self.start = self.start, 0
        begin: Any = getattr(self.batches, "batches_from", None)
        yield from islice(self.batches, start, None) if begin is None else begin(start)

    def __len__(self) -> int:
        return len(self.batches)


class ResumableDataLoader(WorkerDataLoader):
    """Base of the loaders: epochs, positions and sizes.

    One iteration at a time: ``_running`` is its generator, and a new one ends it.
    """

    def __init__(
        self, dataset: Any, *, num_workers: int, shuffle: bool, seed: int, **options: Any
    ) -> None:
        if num_workers > 0:
            options.setdefault("persistent_workers", True)
        self._batches_from: _BatchesFrom | None = None
        super().__init__(dataset, num_workers=num_workers, **options)
        self.shuffle = shuffle
        self.seed = seed
        self._running: Generator[Any] | None = None
        self._owner = os.getpid()
        self._next_epoch = 0
        self._state = LoaderState()
        self._resume: LoaderState | None = None

    # --- position -----------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; by default each iteration is the next epoch.

        A position that was just loaded is kept if it is in this epoch.
        """
        if self._resume is not None and self._resume.epoch != epoch:
            self._resume = None
        if self._running is None:
            self._state.begin(epoch)
        self._next_epoch = epoch
        self._forward_epoch(epoch)

    def _forward_epoch(self, epoch: int) -> None:
        for part in (self.batch_sampler, self.dataset):
            forward: Any = getattr(part, "set_epoch", None)
            if forward is not None:
                forward(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Position after the last batch that was yielded, as plain values.

        What is prepared ahead is not counted. After the last batch of an epoch it is the beginning
        of the next one.
        """
        if self._resume is not None:
            return self._resume.as_dict()
        self._state.identity = self._identity()
        return self._state.as_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Let the next iteration go on from a position.

        Exact for map-style datasets: batches are skipped by index, without decoding or inference.
        For streams see :class:`~subtok_data.SubobjectIterableDataset`.

        Raises
        ------
        ConfigError
            If the state belongs to another dataset, batch size, number of ranks or seed.
        """
        self._stop_running()
        state = LoaderState.from_dict(state_dict, self._identity())
        if self._batches_left(state) == 0:
            state.begin(state.epoch + 1)
        elif state.batches:
            warn_if_inexact: Any = getattr(self.dataset, "warn_if_inexact", None)
            if warn_if_inexact is not None:
                warn_if_inexact()
        self._resume = state

    def skip(self, num_batches: int) -> None:
        """Leave out the first batches of the next iteration, without decoding them."""
        if num_batches < 0:
            raise ConfigError(f"num_batches={num_batches}: give 0 or more")
        if isinstance(self.dataset, IterableDataset):
            raise ConfigError("a stream cannot skip by index: resume it with load_state_dict")
        self._resume = LoaderState(epoch=self._next_epoch, batches=num_batches)

    def _identity(self) -> dict[str, Any]:
        rank, world = rank_and_world_size()
        streaming = isinstance(self.dataset, IterableDataset)
        return {
            "samples": None if streaming else self.total_dataset_length,
            "batch_size": self.batch_size,
            "world_size": world,
            "rank": rank if streaming else None,
            "num_workers": self.num_workers if streaming else None,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "drop_last": self._drops_last,
        }

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise SubtokError(
            f"a {type(self).__name__} is neither pickled nor copied, since its workers cannot be: "
            "build one from its dataset and collator in each process, or for each copy"
        )

    # --- one iteration ------------------------------------------------------------------------

    def _begin(self) -> LoaderState:
        """Fix epoch and position of the coming iteration."""
        state = self._resume
        self._resume = None
        if state is None:
            state = LoaderState(epoch=self._next_epoch)
        state.identity = self._identity()
        self._state = state
        self._next_epoch = state.epoch + 1
        self._forward_epoch(state.epoch)
        self._go_to(state)
        return state

    def _go_to(self, state: LoaderState) -> None:
        """Skip the samples before the position."""
        batches = self._index_sampler
        if isinstance(batches, _BatchesFrom):
            batches.start = state.batches

    @property
    def _index_sampler(self) -> Any:
        """What torch draws indices from: the batch sampler, from the position on."""
        given = self.batch_sampler
        if given is None:
            return super()._index_sampler
        if self._batches_from is None or self._batches_from.batches is not given:
            self._batches_from = _BatchesFrom(given)
        return self._batches_from

    def _batches_left(self, state: LoaderState) -> int | None:
        """Batches from a position to the end of its epoch; None where nobody knows."""
        if isinstance(self.dataset, IterableDataset):
            return None
        try:
            total = len(self)
        except (TypeError, NotImplementedError):
            return None  # a batch sampler without length, or without end
        return max(0, total - state.batches)

    def _stop_running(self) -> None:
        if self._owner != os.getpid():
            self._leave_to_parent()
        running, self._running = self._running, None
        if running is not None:
            running.close()

    def _leave_to_parent(self) -> None:
        """Start anew in a forked child; what runs in the parent goes on there, undisturbed."""
        # Kept, since to collect them would end workers that are not ours.
        _OF_PARENTS.append((self._running, self._iterator))
        self._owner = os.getpid()
        self._running = self._iterator = None

    def _refuse_ended(self, running: Generator[Any]) -> None:
        """Raise if another iteration took the place of this one, or the process is another."""
        if self._owner != os.getpid():
            raise RuntimeError(
                "this iterator belongs to the process that this one was forked from: iterate the "
                "loader anew here"
            )
        if self._running is not running:
            raise RuntimeError(
                "this iterator ended because the loader was iterated again or closed; use one "
                "loader for each iteration that goes on at the same time"
            )

    def _end_dataloader_workers(self) -> None:
        iterator: Any = self._iterator
        self._iterator = None
        shut_down = getattr(iterator, "_shutdown_workers", None)
        if shut_down is not None:
            shut_down()

    # --- sizes --------------------------------------------------------------------------------

    @property
    def batch_size(  # pyright: ignore[reportIncompatibleVariableOverride]
        self,
    ) -> int | None:
        """Samples per batch and rank."""
        # DataLoader sets None when it is given a batch sampler; frameworks need the number.
        sampler = self.__dict__.get("batch_sampler")
        return getattr(sampler, "batch_size", self.__dict__.get("_batch_size"))

    @batch_size.setter
    def batch_size(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, value: int | None
    ) -> None:
        self.__dict__["_batch_size"] = value

    @property
    def total_batch_size(self) -> int:
        """Samples of one step of all ranks."""
        return (self.batch_size or 1) * rank_and_world_size()[1]

    @property
    def total_dataset_length(self) -> int:
        """Samples of all ranks."""
        dataset: Any = self.dataset
        return len(dataset)

    @property
    def _drops_last(self) -> bool:
        return bool(getattr(self.batch_sampler, "drop_last", self.drop_last))

    def _remainder(self) -> int:
        """Samples of the last step of all ranks that are no repeats, as accelerate counts them."""
        sampler = self.batch_sampler
        if self._drops_last or isinstance(self.dataset, IterableDataset):
            return -1
        if not isinstance(sampler, SubobjectBatchSampler) or sampler.is_grouped:
            return -1
        return self.total_dataset_length % self.total_batch_size
