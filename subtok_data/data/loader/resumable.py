"""A DataLoader that counts epochs, and whose position can be saved and resumed.

Knows nothing of images: loaders of artificial samples start without an image library.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from subtok_data.data.loader.batch_sampler import SubobjectBatchSampler, rank_and_world_size
from subtok_data.data.position import LoaderState
from subtok_data.errors import ConfigError

__all__ = ["ResumableDataLoader"]


class ResumableDataLoader(DataLoader[Any]):
    """Base of the loaders: epochs, positions and sizes.

    One iteration at a time: ``_running`` is its generator, and a new one ends it.
    """

    def __init__(
        self, dataset: Any, *, num_workers: int, shuffle: bool, seed: int, **options: Any
    ) -> None:
        if num_workers > 0:
            # A fork after CUDA and threads exist is unsafe, and both may exist here.
            options.setdefault("multiprocessing_context", "forkserver")
            options.setdefault("persistent_workers", True)
        super().__init__(dataset, num_workers=num_workers, **options)
        self.shuffle = shuffle
        self.seed = seed
        self._running: Generator[Any] | None = None
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
        if isinstance(self.batch_sampler, SubobjectBatchSampler):
            self.batch_sampler.start = state.batches

    def _batches_left(self, state: LoaderState) -> int | None:
        """Batches from a position to the end of its epoch; None where no length is known."""
        if isinstance(self.dataset, IterableDataset):
            return None
        try:
            whole = len(self)
        except TypeError:  # a sampler of the user's own, which may have no end
            return None
        return max(0, whole - state.batches)

    def _stop_running(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.close()

    def _refuse_ended(self, running: Generator[Any]) -> None:
        """Raise if another iteration took the place of this one."""
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
