"""``SubobjectLoader``: a DataLoader whose batches are tokenized ahead of the training loop."""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from types import TracebackType
from typing import Any, Self

import torch
from torch.utils.data import DataLoader, IterableDataset

from subtok_data.data.accelerate_state import AccelerateState, accelerate_device
from subtok_data.data.collate import SubobjectCollator
from subtok_data.data.dataset import SubobjectDataset
from subtok_data.data.flight import Delivery, Stages
from subtok_data.data.pipeline import IN_STAGES, LookAhead, run_ahead, run_in_step
from subtok_data.data.pool import EXECUTORS, SegmentPool, make_pool
from subtok_data.data.sampler import BatchPlan, SubobjectBatchSampler, rank_and_world_size
from subtok_data.data.state import LoaderState
from subtok_data.data.stats import LoaderStats, StatsRecorder
from subtok_data.data.stream import SubobjectIterableDataset
from subtok_data.errors import ConfigError, WorkerCrashError
from subtok_data.text import TextConfig
from subtok_data.tokenizer import SubobjectTokenizer

__all__ = ["SubobjectLoader"]


class SubobjectLoader(AccelerateState, DataLoader[Any]):
    """Load batches of subobject tokens, prepared ahead of the training loop.

    Decoding runs in DataLoader workers, the boundary model in the main process beside the training
    step, cutting in segment workers, and batches come out in order: the same ones for any number of
    workers, executor and look-ahead. Iterate it like any DataLoader; ``Accelerator.prepare`` keeps
    it as it is.

    Parameters
    ----------
    dataset : dataset
        Anything that :class:`~subtok_data.SubobjectDataset` or
        :class:`~subtok_data.SubobjectIterableDataset` wraps, or one of these.
    tokenizer : SubobjectTokenizer, optional
        How images are cut; the default tokenizer if neither this nor ``collator`` is given.
    collator : SubobjectCollator, optional
        For options beyond ``tokenizer`` and ``text``: encoder size, columns, packing, shapes …
    text : TextConfig, optional
        Makes ``input_ids`` and ``labels``.
    batch_size : int, optional
        Samples per batch and rank.
    shuffle : bool, optional
        New order in each epoch, from ``seed``.
    sampler, batch_sampler : optional
        Set by frameworks that shard on their own; leave them out otherwise.
    drop_last : bool, optional
        Leave out what does not fill a batch on every rank.
    plan : BatchPlan, optional
        Batches by length, where lengths are known.
    num_workers : int, optional
        DataLoader workers that decode; 0 decodes in the thread that iterates.
    segment_workers : int, optional
        Images cut at once; by default the cores of this rank, less one.
    executor : {"process", "thread", "inline"}, optional
        Where images are cut.
    prefetch_batches : int, optional
        Finished batches that may wait for you; two more are under way, one at the device and one
        being cut. 0 does everything in step, in the calling thread.
    device : torch.device or str, optional
        Where finished batches shall be; by default accelerate's device where accelerate is in
        use, else the CPU.
    seed : int, optional
        Seed of order, augmentation and replacement.
    on_error : {"raise", "replace"}, optional
        What a bad sample does. The number of batches never changes.
    image_column : str, optional
        Key of the image in dict rows.
    timeout_s : float, optional
        Seconds an image may take to be cut, and a DataLoader worker to answer, before the worker
        counts as dead.
    max_restarts : int, optional
        Segment workers replaced before the loader gives up.
    **kwargs
        Further DataLoader arguments: ``pin_memory``, ``prefetch_factor``, ``worker_init_fn`` …
        Workers start by forkserver and are persistent unless told otherwise.

    Notes
    -----
    At most ``prefetch_batches + 2`` batches are between decoding and the user (one more for
    streams, whose end is not known), plus ``num_workers × prefetch_factor`` decoded ones in shared
    memory.

    Examples
    --------
    >>> import numpy as np
    >>> from subtok_data import PatchSegmenter, SubobjectLoader, SubobjectTokenizer
    >>> images = [np.full((64, 64, 3), 40 * i, np.uint8) for i in range(5)]
    >>> tokenizer = SubobjectTokenizer(PatchSegmenter(32), size=64)
    >>> with SubobjectLoader(images, tokenizer, batch_size=2, executor="inline") as loader:
    ...     [batch["sample_index"].tolist() for batch in loader]
    [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        dataset: Any,
        tokenizer: SubobjectTokenizer | None = None,
        *,
        collator: SubobjectCollator | None = None,
        text: TextConfig | None = None,
        batch_size: int | None = 1,
        shuffle: bool = False,
        sampler: Any = None,
        batch_sampler: Any = None,
        drop_last: bool = False,
        plan: BatchPlan | None = None,
        num_workers: int = 0,
        segment_workers: int | None = None,
        executor: str = "process",
        prefetch_batches: int = 3,
        device: torch.device | str | None = None,
        seed: int = 0,
        on_error: str = "raise",
        image_column: str = "image",
        timeout_s: float = 120.0,
        max_restarts: int = 3,
        **kwargs: Any,
    ) -> None:
        if executor not in EXECUTORS:
            raise ConfigError(f"executor must be one of {EXECUTORS}, got {executor!r}")
        if prefetch_batches < 0:
            raise ConfigError(f"prefetch_batches={prefetch_batches}: give 0 or more")
        if not kwargs.get("in_order", True):
            raise ConfigError("in_order=False would give other batches in each run: leave it out")
        collator = _make_collator(
            kwargs.pop("collate_fn", None) or collator, tokenizer, text, image_column, on_error
        )
        dataset = _wrap(dataset, image_column=image_column, on_error=on_error, seed=seed)
        # Frameworks build the loader anew from attributes that are named like the parameters.
        self.tokenizer = collator.tokenizer
        self.collator = collator
        self.text = text
        self.shuffle = shuffle
        self.plan = plan
        self.segment_workers = segment_workers
        self.executor = executor
        self.prefetch_batches = prefetch_batches
        self.device = None if device is None else torch.device(device)
        self.seed = seed
        self.on_error = on_error
        self.image_column = image_column
        self.timeout_s = timeout_s
        self.max_restarts = max_restarts
        options = _worker_options(num_workers, kwargs)
        options |= _batching(
            dataset, sampler, batch_sampler, batch_size, shuffle, drop_last, seed, plan
        )
        super().__init__(dataset, num_workers=num_workers, collate_fn=collator, **options)
        if isinstance(dataset, SubobjectDataset):
            collator.finisher.source = dataset
        self._recorder = StatsRecorder()
        self._pool: SegmentPool | None = None
        self._pool_closer: weakref.finalize[Any, Any] | None = None
        self._running: Generator[Delivery] | None = None
        self._next_epoch = 0
        self._state = LoaderState()
        self._resume: LoaderState | None = None

    # --- iteration ----------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._stop_running()
        state = self._begin()
        total = self._batches_left(state)
        if total == 0:
            return
        running = self._deliveries(total)
        self._running = running
        self.begin_epoch(self._remainder())
        try:
            with self._recorder.timed("elapsed"), closing(running):
                for delivery in running:
                    if delivery.is_last:
                        self.end_of_dataloader = True
                    state.advance(delivery.position)
                    yield delivery.batch
                    if self._running is not running:
                        raise RuntimeError(
                            "this iterator ended because the loader was iterated again or "
                            "closed; use "
                            "one loader for each iteration that goes on at the same time"
                        )
            state.begin(state.epoch + 1)
        except WorkerCrashError:
            self._end_dataloader_workers()  # torch cannot go on with some of them dead
            raise
        finally:
            self.end_epoch()
            if self._running is running:
                self._running = None

    def _begin(self) -> LoaderState:
        """Settle epoch and position of the coming iteration."""
        state = self._resume
        self._resume = None
        if state is None:
            state = LoaderState(epoch=self._next_epoch)
        state.identity = self._identity()
        self._state = state
        self._next_epoch = state.epoch + 1
        self._forward_epoch(state.epoch)
        if isinstance(self.dataset, SubobjectIterableDataset):
            self.dataset.prepare(self.batch_size or 1, rank_and_world_size(), state)
            if state.batches and self.num_workers:
                self._end_dataloader_workers()  # they must learn where to go on
        elif isinstance(self.batch_sampler, SubobjectBatchSampler):
            self.batch_sampler.start = state.batches
        return state

    def _deliveries(self, total: int | None) -> Generator[Delivery]:
        self._check_shared_memory()
        # Made here and not in the feeder: torch watches for dead workers only from the main thread.
        source = super().__iter__()
        pool = self._segment_pool()
        device = self.device or accelerate_device()
        stages = Stages(self.collator, pool, device, self._recorder)
        if self.prefetch_batches == 0:
            return run_in_step(source, stages, total)
        ahead = LookAhead(
            depth=self.prefetch_batches,
            total=total,
            timeout_s=self.timeout_s,
            decode_in_caller=self.num_workers == 0,
        )
        return run_ahead(source, stages, ahead)

    def _batches_left(self, state: LoaderState) -> int | None:
        if isinstance(self.dataset, IterableDataset):
            return None
        return max(0, len(self) - state.batches)

    def _segment_pool(self) -> SegmentPool:
        if self._pool is None:
            self._pool = make_pool(
                self.executor,
                self.segment_workers,
                timeout_s=self.timeout_s,
                max_restarts=self.max_restarts,
            )
            self._pool_closer = weakref.finalize(self, self._pool.close)
        return self._pool

    def _check_shared_memory(self) -> None:
        size = self.tokenizer.canvas.size
        if self.num_workers == 0 or size is None or not os.path.isdir("/dev/shm"):
            return
        batches = self.num_workers * (self.prefetch_factor or 2)
        batches += self.prefetch_batches + IN_STAGES
        needed = batches * (self.batch_size or 1) * size * size * 3
        free = shutil.disk_usage("/dev/shm").free
        if needed > free:
            raise ConfigError(
                f"/dev/shm has {free / 1e6:.0f} MB free, but {batches} batches of "
                f"{self.batch_size} "
                f"images of up to {size}×{size} pixels may need {needed / 1e6:.0f} MB on their "
                "way from "
                "the workers: enlarge it (docker run --shm-size=…), or lower num_workers, "
                "prefetch_factor or batch_size"
            )

    # --- epochs and state ---------------------------------------------------------------------

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
        elif state.batches and isinstance(self.dataset, SubobjectIterableDataset):
            self.dataset.warn_if_inexact()
        self._resume = state

    def skip(self, num_batches: int) -> None:
        """Leave out the first batches of the next iteration, without decoding them."""
        if num_batches < 0:
            raise ValueError(f"num_batches={num_batches}: give 0 or more")
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

    def _remainder(self) -> int:
        """Samples of the last step of all ranks that are no repeats, as accelerate counts them."""
        sampler = self.batch_sampler
        if self._drops_last or isinstance(self.dataset, IterableDataset):
            return -1
        if not isinstance(sampler, SubobjectBatchSampler) or sampler.is_grouped:
            return -1
        return self.total_dataset_length % self.total_batch_size

    @property
    def _drops_last(self) -> bool:
        return bool(getattr(self.batch_sampler, "drop_last", self.drop_last))

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

    # --- end ----------------------------------------------------------------------------------

    def stats(self) -> LoaderStats:
        """What was done so far, and which stage limits; ``stats().report()`` says it in words."""
        pool = self._pool
        return self._recorder.stats(
            segment_s=0.0 if pool is None else pool.busy_s,
            segment_workers=1 if pool is None else pool.workers,
            restarts=0 if pool is None else pool.restarts,
        )

    def close(self) -> None:
        """End all workers and threads; the loader may be iterated again, which starts them anew."""
        self._stop_running()
        self._end_dataloader_workers()
        if self._pool_closer is not None:
            self._pool_closer()
        self._pool = self._pool_closer = None

    def _stop_running(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.close()

    def _end_dataloader_workers(self) -> None:
        iterator: Any = self._iterator
        self._iterator = None
        shut_down = getattr(iterator, "_shutdown_workers", None)
        if shut_down is not None:
            shut_down()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _make_collator(
    collator: Any,
    tokenizer: SubobjectTokenizer | None,
    text: TextConfig | None,
    image_column: str,
    on_error: str,
) -> SubobjectCollator:
    if collator is None:
        return SubobjectCollator(
            tokenizer or SubobjectTokenizer(),
            image_column=image_column,
            text=text,
            on_error=on_error,
        )
    if not isinstance(collator, SubobjectCollator):
        raise ConfigError(
            f"collate_fn is a {type(collator).__name__}: SubobjectLoader works with a "
            "SubobjectCollator; "
            "use a plain DataLoader for other collate functions"
        )
    if tokenizer is not None and tokenizer is not collator.tokenizer:
        raise ConfigError("tokenizer= and collator= name two tokenizers: give only the collator")
    return collator


def _wrap(dataset: Any, *, image_column: str, on_error: str, seed: int) -> Any:
    if isinstance(dataset, (SubobjectDataset, SubobjectIterableDataset)):
        return dataset
    streaming = isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__")
    wrapper = SubobjectIterableDataset if streaming else SubobjectDataset
    return wrapper(dataset, image_column=image_column, on_error=on_error, seed=seed)


def _worker_options(num_workers: int, kwargs: dict[str, Any]) -> dict[str, Any]:
    options = dict(kwargs)
    if num_workers > 0:
        # A fork after CUDA and threads exist is unsafe, and both do exist here.
        options.setdefault("multiprocessing_context", "forkserver")
        options.setdefault("persistent_workers", True)
    return options


def _batching(
    dataset: Any,
    sampler: Any,
    batch_sampler: Any,
    batch_size: int | None,
    shuffle: bool,
    drop_last: bool,
    seed: int,
    plan: BatchPlan | None,
) -> dict[str, Any]:
    if isinstance(dataset, IterableDataset):
        if plan is not None and (plan.by_length or plan.max_batch_length is not None):
            raise ConfigError("a stream cannot be grouped by length: its samples come as they come")
        if shuffle:
            raise ConfigError("a stream is shuffled by itself: dataset.shuffle(seed, buffer_size)")
        return {"batch_size": batch_size or 1, "drop_last": drop_last}
    if batch_sampler is not None:
        return {"batch_sampler": batch_sampler}
    return {
        "batch_sampler": SubobjectBatchSampler(
            len(dataset) if sampler is None else sampler,
            1 if batch_size is None else batch_size,
            drop_last,
            shuffle=shuffle,
            seed=seed,
            plan=plan,
            dataset=dataset,
        )
    }
