"""``SubobjectLoader``: a DataLoader whose batches are tokenized ahead of the training loop."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import torch

from subtok_data.arguments import check_choice
from subtok_data.batch import Batch, BatchUpload
from subtok_data.data.collation import SubobjectCollator
from subtok_data.data.datasets import SubobjectIterableDataset
from subtok_data.data.loader.accelerate import AccelerateState, accelerate_device
from subtok_data.data.loader.batch_plan import BatchPlan
from subtok_data.data.loader.defaults import (
    batch_options,
    check_options,
    check_shared_memory,
    choose_collator,
    make_cache,
    refuse_other_tokens,
    stored_tokenizer,
    wrap_dataset,
)
from subtok_data.data.loader.look_ahead import (
    IN_STAGES,
    LoadedBatch,
    LookAhead,
    RawBatches,
    run_ahead,
    run_in_step,
)
from subtok_data.data.loader.ranks import rank_and_world_size
from subtok_data.data.loader.resumable import ResumableDataLoader
from subtok_data.data.loader.stage_threads import LastingThread
from subtok_data.data.loader.stats import LoaderStats, StatsRecorder
from subtok_data.data.pool import EXECUTORS, SegmentPool, make_pool
from subtok_data.data.position import LoaderState
from subtok_data.device_streams import DeviceStream
from subtok_data.devices import check_device, resolve_device
from subtok_data.errors import ConfigError, WorkerCrashError
from subtok_data.segment import warn_of_shortfall
from subtok_data.text import TextConfig
from subtok_data.tokenizer import SubobjectTokenizer

__all__ = ["SubobjectLoader"]


class SubobjectLoader(AccelerateState, ResumableDataLoader):
    """Load batches of subobject tokens, prepared ahead of the training loop.

    Decoding runs in DataLoader workers, the boundary model in the main process beside the training
    step, segmentation in segment workers, and batches come out in order: the same ones for any
    number of workers, executor and look-ahead. Iterate it like any DataLoader;
    ``Accelerator.prepare`` keeps it as it is.

    Parameters
    ----------
    dataset : dataset, str or Path
        A folder of images, or anything that :class:`~subtok_data.SubobjectDataset` or
        :class:`~subtok_data.SubobjectIterableDataset` wraps, or one of these.
    tokenizer : SubobjectTokenizer, optional
        How images become tokens. If neither this nor ``collator`` is given, it is that of the
        dataset's stored tokens, else the default tokenizer.
    collator : SubobjectCollator, optional
        For options beyond ``tokenizer`` and ``text``: encoder size, columns, packing, shapes … It
        then decides ``text``, ``on_error`` and ``image_column`` too, also for a dataset that is
        wrapped here.
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
        Images segmented at once; by default the cores of this rank, less one.
    executor : {"process", "thread", "inline"}, optional
        Where images are segmented.
    prefetch_batches : int, optional
        Finished batches that may wait for you; two more are under way, one at the device and one
        in the segment pool. 0 does everything in step, in the calling thread.
    device : torch.device or str, optional
        Where finished batches shall be; by default accelerate's device where accelerate is in
        use, else the CPU.
    seed : int, optional
        Seed of order, augmentation and replacement.
    on_error : {"raise", "replace"}, optional
        What a bad sample does, "raise" by default. The number of batches never changes.
    image_column : str, optional
        Key of the image in dict rows; "image" by default.
    timeout_s : float, optional
        Seconds that the segmentation of an image, and the answer of a DataLoader worker, may take
        before the worker counts as dead.
    max_restarts : int, optional
        Segment workers replaced before the loader gives up.
    cache : str or Path, optional
        Folder that keeps the tokens of each image, by its content and the tokenizer's
        configuration, for all epochs, ranks and runs: what is in it needs no model. A
        ``transform`` of the dataset then comes after tokenization, as with stored tokens.
    cache_gb : float, optional
        Nothing more is written to the cache once its folder takes so many GB; no limit by default.
    **kwargs
        Further DataLoader arguments: ``pin_memory`` (of finished batches, where CUDA is and they
        stay on the CPU), ``prefetch_factor``, ``worker_init_fn`` …
        Workers are persistent unless told otherwise. They are forked on Linux while no accelerator
        is in use, else started by forkserver or spawn, unless ``multiprocessing_context`` is given.

    Raises
    ------
    ConfigError
        If an option is out of range, or contradicts another or the collator.

    Warns
    -----
    UserWarning
        At the end of an epoch in which images had fewer tokens than ``num_tokens``, with their
        number; a stream that cannot resume exactly; once for each file of the cache that cannot be
        read, when it is full or cannot be written to, and when a whole epoch found nothing in it:
        loading goes on.

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
        on_error: str | None = None,
        image_column: str | None = None,
        timeout_s: float = 120.0,
        max_restarts: int = 3,
        cache: str | Path | None = None,
        cache_gb: float | None = None,
        **kwargs: Any,
    ) -> None:
        check_choice("executor", executor, EXECUTORS)
        check_options(
            dataset=dataset,
            segment_workers=segment_workers,
            prefetch_batches=prefetch_batches,
            num_workers=num_workers,
            batch_size=batch_size,
            seed=seed,
            timeout_s=timeout_s,
            max_restarts=max_restarts,
            plan=plan,
            unknown=kwargs,
        )
        if not kwargs.get("in_order", True):
            raise ConfigError("in_order=False would give other batches in each run: leave it out")
        collate_fn = kwargs.pop("collate_fn", None)
        if tokenizer is None and collator is None and collate_fn is None:
            tokenizer = stored_tokenizer(dataset)
        collator = choose_collator(
            tokenizer,
            collator,
            collate_fn,
            text=text,
            image_column=image_column,
            on_error=on_error,
        )
        dataset = wrap_dataset(
            dataset, image_column=collator.image_column, on_error=collator.on_error, seed=seed
        )
        refuse_other_tokens(dataset, collator.tokenizer)
        dataset, tokens = make_cache(cache, cache_gb, dataset, collator.tokenizer)
        if tokens is not None:
            collator = collator.with_cache(tokens)
        super().__init__(
            dataset,
            shuffle=shuffle,
            seed=seed,
            num_workers=num_workers,
            collate_fn=collator,
            **kwargs,
            **batch_options(
                dataset,
                sampler,
                batch_sampler,
                batch_size,
                drop_last=drop_last,
                shuffle=shuffle,
                seed=seed,
                plan=plan,
            ),
        )
        # Frameworks build the loader anew from attributes that are named like the parameters.
        self.tokenizer = collator.tokenizer
        self.collator = collator
        self.text = collator.text
        self.plan = plan
        self.segment_workers = segment_workers
        self.executor = executor
        self.prefetch_batches = prefetch_batches
        self.device = None if device is None else check_device(device)
        self.on_error = collator.on_error
        self.image_column = collator.image_column
        self.timeout_s = timeout_s
        self.max_restarts = max_restarts
        self.cache = cache
        self.cache_gb = cache_gb
        self._cache = tokens
        if tokens is not None:
            weakref.finalize(self, tokens.close)
        self._recorder = StatsRecorder()
        self._start_anew()

    def _start_anew(self) -> None:
        """Have nothing of what iterations start: no thread, pool or stream."""
        self._model_stream: DeviceStream | None = None
        self._upload: BatchUpload | None = None
        self._feeder = LastingThread("subtok-feeder")
        self._feeder_closer = weakref.finalize(self, self._feeder.close)
        self._feeder_closer.atexit = False  # then it may still feed
        self._pool: SegmentPool | None = None
        self._pool_closer: weakref.finalize[Any, Any] | None = None

    # --- iteration ----------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Batch]:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._stop_running()
        state = self._begin()
        total = self._batches_left(state)
        if total == 0:
            return
        running = self._load(total)
        self._running = running
        self._begin_epoch(self._remainder())
        stats = self._recorder
        before = stats.short, stats.images
        looked_up = stats.cache_hits, stats.cache_misses
        try:
            with self._recorder.timed("elapsed"), closing(running):
                for batch, position, is_last in running:
                    if is_last:
                        self.end_of_dataloader = True
                        self._flush_cache()  # before other ranks can begin their next epoch
                    self._tell_of_cache()
                    state.advance(position)
                    yield cast("Batch", batch)
                    self._refuse_ended(running)
            state.begin(state.epoch + 1)
            short, images = (
                now - then for now, then in zip((stats.short, stats.images), before, strict=True)
            )
            warn_of_shortfall(short, images, self.tokenizer.budget.num_tokens)
            if self._cache is not None:
                hits, misses = looked_up
                self._cache.end_epoch(stats.cache_hits - hits, stats.cache_misses - misses)
                self._tell_of_cache()
        except WorkerCrashError:
            self._end_dataloader_workers()  # torch cannot go on with some of them dead
            raise
        finally:
            self._flush_cache()
            self._end_epoch()
            if self._running is running:
                self._running = None

    def _go_to(self, state: LoaderState) -> None:
        if not isinstance(self.dataset, SubobjectIterableDataset):
            super()._go_to(state)
            return
        self.dataset.prepare(
            self.batch_size or 1, rank_and_world_size(), state, workers=self.num_workers
        )
        if state.batches and self.num_workers:
            self._end_dataloader_workers()  # they must learn where to go on

    def _load(self, total: int | None) -> Generator[LoadedBatch]:
        self._check_shared_memory()
        if self._cache is not None:
            _, ranks = rank_and_world_size()
            self._cache.begin(ranks=ranks, share=self.num_workers > 0)
        stats = self._recorder
        stats.bytes_in_flight = 0  # what an iteration that was left had prepared is gone
        # Made here and not in the feeder: torch watches for dead workers only from the main thread.
        raws = RawBatches(super().__iter__(), self.collator, stats)
        # In this thread: "cuda" alone is the device of the thread that asks, 0 in a new one. And
        # after the workers have started, who cannot be forked once a device is in use.
        device = accelerate_device() if self.device is None else resolve_device(self.device)
        self.tokenizer.segmenter.load()
        stats.infers_on = self.tokenizer.device.type
        stages = self.collator.stages(
            pool=self._segment_pool(),
            upload=self._upload_to(device),
            pin=self.pin_memory and torch.cuda.is_available(),
            timed=stats.timed,
            logs=(stats.replaced,),
        )
        if self.prefetch_batches == 0:
            return run_in_step(raws, stages, stats, total)
        ahead = LookAhead(
            depth=self.prefetch_batches,
            total=total,
            timeout_s=self.timeout_s,
            decode_in_caller=self.num_workers == 0,
            model_stream=self._stream_of_model(),
            feeder=self._feeder,
        )
        return run_ahead(raws, stages, stats, ahead)

    def _upload_to(self, device: torch.device | None) -> BatchUpload | None:
        """What brings batches to a device, for all epochs; None for the CPU."""
        if device is None or device.type == "cpu":
            return None
        if self._upload is None or self._upload.device != device:
            self._upload = BatchUpload(device, own_stream=self.prefetch_batches > 0)
        return self._upload

    def _stream_of_model(self) -> DeviceStream:
        """The stream on which models run beside training, ready for what they are by now."""
        device = self.tokenizer.device
        if self._model_stream is None or self._model_stream.device != device:
            # One for all epochs: torch keeps the memory of each stream apart.
            self._model_stream = DeviceStream(device, priority=-1)
        self._model_stream.follow_caller()
        return self._model_stream

    def _flush_cache(self) -> None:
        if self._cache is not None:
            self._cache.flush()

    def _tell_of_cache(self) -> None:
        for notice in [] if self._cache is None else self._cache.take_notices():
            warnings.warn(notice, UserWarning, stacklevel=3)

    def _check_shared_memory(self) -> None:
        side = self.tokenizer.canvas.size
        if self.num_workers == 0 or side is None:
            return
        decoded = self.num_workers * (self.prefetch_factor or 2)
        batches = decoded + self.prefetch_batches + IN_STAGES
        check_shared_memory(batches, self.batch_size or 1, side)

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

    def _leave_to_parent(self) -> None:
        super()._leave_to_parent()
        if self._pool_closer is not None:
            self._pool_closer.detach()
        self._feeder_closer.detach()
        self._start_anew()
        self._recorder = StatsRecorder()

    def __repr__(self) -> str:
        return (
            f"SubobjectLoader({self.dataset!r}, {self.tokenizer!r}, batch_size={self.batch_size}, "
            f"num_workers={self.num_workers}, executor={self.executor!r})"
        )

    # --- end ----------------------------------------------------------------------------------

    def stats(self) -> LoaderStats:
        """Return counts and times so far; ``stats().report()`` describes them in words."""
        pool = self._pool
        return self._recorder.stats(
            segment_s=0.0 if pool is None else pool.busy_s,
            segment_workers=1 if pool is None else pool.workers,
            restarts=0 if pool is None else pool.restarts,
        )

    def close(self) -> None:
        """End all workers and threads; the loader may be iterated again, which starts them anew."""
        self._stop_running()
        self._feeder.close()
        self._end_dataloader_workers()
        if self._pool_closer is not None:
            self._pool_closer()
        self._pool = self._pool_closer = None
        if self._cache is not None:
            self._cache.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
