"""``SubobjectIterableDataset``: streams of images to decoded samples, sharded and resumable."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset

from subtok_data.data.dataloader_workers import shared_epoch
from subtok_data.data.datasets.augmentation import augment, keyed_randomness
from subtok_data.data.datasets.map_style import Transform, own_decoding
from subtok_data.data.datasets.prompt_columns import PromptColumns
from subtok_data.data.datasets.sample import Sample, decode_row
from subtok_data.data.datasets.sources import as_stream, check_options, name_dataset, open_options
from subtok_data.data.position import STREAM_PLACEHOLDER, LoaderState, StreamPosition
from subtok_data.data.replacement import Replacement, advise_replacement
from subtok_data.data.store import Storage, StoredTokens, TokenCursor
from subtok_data.errors import ConfigError, SampleError
from subtok_data.images import DEFAULT_MAX_PIXELS

__all__ = ["SubobjectIterableDataset"]


@dataclass(frozen=True)
class _Place:
    """Position of one worker's stream.

    ``state`` is the wrapped dataset's own after ``base`` rows, ``rows`` the number of rows read
    since, and ``given`` the number of samples already yielded for the rows after these (a bad row
    and its replacement share one good row, and a batch may end between them). ``stored`` is the
    row of the stored tokens that is expected behind these rows.
    """

    state: Any = None
    base: int = 0
    rows: int = 0
    given: int = 0
    stored: int | None = None


class SubobjectIterableDataset(IterableDataset[Sample]):
    """Wrap a streaming dataset: decoded, optionally augmented samples; never tokens.

    Parameters
    ----------
    dataset : iterable of rows
        Hugging Face ``IterableDataset``, torch ``IterableDataset``, or any re-iterable object.
    shards_itself : bool, optional
        Whether the dataset gives each worker of each rank its own rows, as WebDataset does with
        ``split_by_node`` and ``split_by_worker``. If not, it is shared out by position: of n
        workers on all ranks each takes every n-th row. Known for Hugging Face streams (they do) and
        for what is no torch ``IterableDataset`` (it does not); for a torch one it must be said
        where there are several workers or ranks.
    tokens : str, Path, Storage or StoredTokens, optional
        Folder or URI that ``subtok tokenize`` wrote to: samples then bring their token maps, and
        need no model. Rows of the stream take the tokens that were made from their image, wherever
        these lie; streams in the order of the store, or of its shards, read it in long stretches.
    tokens_column : str, optional
        Column that :meth:`SubobjectTokenizer.as_column` made, instead of ``tokens``.
    image_column, transform, prompts, on_error, max_pixels, seed
        As in :class:`~subtok_data.SubobjectDataset`. Under ``on_error="replace"`` the next good
        sample of the stream stands in for a bad one.

    Raises
    ------
    ConfigError
        If the dataset cannot be iterated, or it is to be shared out and cannot be; when iterated by
        several workers or ranks, if ``shards_itself`` is unknown.

    Notes
    -----
    Under :class:`~subtok_data.SubobjectLoader` every sample comes once over all ranks and workers,
    and a resumed stream goes on exactly where it stood if the source is not shuffled through a
    buffer and the number of workers is the same. Ranks may get different numbers of batches: a
    stream does not know its length.

    Examples
    --------
    >>> import numpy as np
    >>> stream = SubobjectIterableDataset([np.zeros((8, 8), np.uint8)])
    >>> next(iter(stream)).image.shape
    (8, 8, 3)
    """

    with_keys: bool = False
    """Whether samples bring the key of their images."""

    def __init__(
        self,
        dataset: Iterable[Any],
        *,
        shards_itself: bool | None = None,
        tokens: str | Path | Storage | StoredTokens | None = None,
        tokens_column: str | None = None,
        image_column: str = "image",
        transform: Transform | None = None,
        prompts: PromptColumns | None = None,
        on_error: str = "raise",
        max_pixels: int = DEFAULT_MAX_PIXELS,
        seed: int = 0,
    ) -> None:
        check_options(
            image_column=image_column,
            transform=transform,
            prompts=prompts,
            on_error=on_error,
            max_pixels=max_pixels,
            seed=seed,
        )
        stream = as_stream(dataset)
        if shards_itself is False and _is_hugging_face(stream):
            raise ConfigError(
                "shards_itself=False for a Hugging Face stream: in DataLoader workers it always "
                "gives each its own shards, and shared out once more it would lose rows. Leave "
                "shards_itself out"
            )
        self.shards_itself = _shards_itself(stream) if shards_itself is None else shards_itself
        self.dataset: Any = own_decoding(stream, image_column)
        self.image_column = image_column
        self.transform = transform
        self.prompts = prompts
        self.tokens = open_options(tokens, tokens_column)
        self.tokens_column = tokens_column
        self.with_keys = tokens is not None or tokens_column is not None
        self.on_error = on_error
        self.max_pixels = max_pixels
        self.seed = seed
        self._epoch = shared_epoch()
        self._was_read = False
        self._split = False
        self._rank, self._world = 0, 1
        self._batch_size = 1
        self._resume: LoaderState | None = None

    def __repr__(self) -> str:
        return f"SubobjectIterableDataset({name_dataset(self.dataset)})"

    @property
    def epoch(self) -> int:
        """Epoch that keys shuffling and augmentation."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Change augmentation and, where the stream can, its order, in living workers too."""
        self._epoch.fill_(epoch)
        forward = getattr(self.dataset, "set_epoch", None)
        if forward is not None:
            forward(epoch)

    def prepare(
        self, batch_size: int, ranks: tuple[int, int], state: LoaderState, *, workers: int = 0
    ) -> None:
        """Tell the stream its rank, and where to go on, before workers start."""
        self._refuse_unknown_sharding(ranks[1], workers)
        if workers:  # each will have a copy of its own: only here it is known that one was read
            self._refuse_second_reading()
        self._batch_size = batch_size
        self._resume = replace(state) if state.batches else None
        if self._split:
            return
        self._split = True
        self._rank, self._world = ranks
        if self._world > 1 and _is_hugging_face(self.dataset):
            if getattr(self.dataset, "_distributed", None) is not None:
                return  # the user split it by rank; a second split would lose data
            from datasets.distributed import split_dataset_by_node

            self.dataset = split_dataset_by_node(self.dataset, self._rank, self._world)

    def _refuse_unknown_sharding(self, world: int, workers: int) -> None:
        if self.shards_itself is None and world * max(1, workers) > 1:
            name = type(self.dataset).__name__
            raise ConfigError(
                f"{name} is a torch IterableDataset, read by {world} rank(s) × {max(1, workers)} "
                f"worker(s), and nothing tells whether it gives each its own rows. If it does "
                f"(it looks at get_worker_info() and at the rank): "
                f"SubobjectIterableDataset(dataset, shards_itself=True). If every copy yields all "
                f"rows: shards_itself=False, which shares them out by position"
            )

    def _refuse_second_reading(self) -> None:
        """Raise for an iterator that was read: it would give nothing, and no epoch would tell."""
        if not isinstance(self.dataset, Iterator):
            return
        if self._was_read:
            raise ConfigError(
                f"the dataset is a {type(self.dataset).__name__}, an iterator, which can be read "
                "once, and was: give list(rows), or an object whose __iter__ starts anew, such as "
                "datasets.IterableDataset.from_generator(function)"
            )
        self._was_read = True

    def warn_if_inexact(self) -> None:
        """Warn when a resumed stream cannot give what it would have given."""
        examples = getattr(self.dataset, "_ex_iterable", None)
        while examples is not None:
            if "BufferShuffled" in type(examples).__name__:
                warnings.warn(
                    "the stream is shuffled through a buffer, whose content is lost at resume: "
                    "samples that were in it are left out, and the order differs from the "
                    "uninterrupted run",
                    stacklevel=3,
                )
                return
            examples = getattr(examples, "ex_iterable", None)

    def __iter__(self) -> Iterator[Any]:
        worker = torch.utils.data.get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        self._refuse_unknown_sharding(self._world, workers)  # also under a plain DataLoader
        if worker is None:
            self._refuse_second_reading()
        place = _Place()
        resume = self._resume
        if resume is not None and resume.epoch == self.epoch:
            if number <= resume.last_worker < workers - 1:
                # The turn is at a later worker: torch asks worker 0 first, so earlier ones pass.
                yield from [STREAM_PLACEHOLDER] * self._batch_size
            place = _Place(*resume.positions.get(number, ()))
        for sample, at in self._samples(number, workers, place):
            sample.position = StreamPosition(
                number, (at.state, at.base, at.rows, at.given, at.stored)
            )
            yield sample

    def _samples(self, number: int, workers: int, start: _Place) -> Iterator[tuple[Sample, _Place]]:
        """Samples with the place after each."""
        state, base, rows, since = start.state, start.base, start.rows, 0
        skip_given = start.given
        last: Sample | None = None
        bad: list[SampleError] = []
        read = 0
        cursor = self._cursor(number, workers, start)
        stored = start.stored
        for index, row in self._rows(number, workers, start):
            read += 1
            try:
                sample = self._load(row, index, cursor)
            except SampleError as error:
                if self.on_error == "raise":
                    advise_replacement(error)
                    raise
                bad.append(error)
                continue
            last = sample
            group = [sample, *(_stand_in(sample, error) for error in bad)]
            bad = []
            for given, one in enumerate(group, start=1):
                since += 1
                whole = given == len(group)
                if whole:
                    rows, read = rows + read, 0
                    stored = None if cursor is None else cursor.row
                    if since >= self._batch_size and hasattr(self.dataset, "state_dict"):
                        state, base = self.dataset.state_dict(), base + rows
                        rows, since = 0, 0
                if skip_given:
                    skip_given -= 1
                    continue
                yield one, _Place(state, base, rows, 0 if whole else given, stored)
        for given, error in enumerate(bad, start=1):  # bad rows at the very end
            if last is None:
                raise SampleError(f"the stream has no good sample; the first: {error}")
            yield _stand_in(last, error), _Place(state, base, rows, given, stored)

    def _cursor(self, number: int, workers: int, start: _Place) -> TokenCursor | None:
        """What finds the stored tokens of this worker's rows, from a place on."""
        if self.tokens is None:
            return None
        row, step = 0, 1
        if not self.shards_itself:
            row, step = self._rank * workers + number, self._world * workers
        return TokenCursor(self.tokens, row if start.stored is None else start.stored, step)

    def _rows(self, number: int, workers: int, start: _Place) -> Iterator[tuple[int, Any]]:
        """Rows of this rank and worker, from a place on, with a number that no other row has."""
        if start.state is not None:
            self.dataset.load_state_dict(start.state)
        shard, shards = self._rank * workers + number, self._world * workers
        if self.shards_itself:
            own = ((at * shards + shard, row) for at, row in enumerate(self.dataset, start.base))
        elif start.state is None:
            own = islice(enumerate(self.dataset), shard, None, shards)
        else:
            # The dataset goes on right behind the last row of this shard.
            behind = shard + (start.base - 1) * shards + 1
            own = islice(enumerate(self.dataset, behind), shards - 1, None, shards)
        return islice(own, start.rows, None)

    def _load(self, row: Any, index: int, cursor: TokenCursor | None) -> Sample:
        try:
            sample = decode_row(
                row,
                image_column=self.image_column,
                index=index,
                max_pixels=self.max_pixels,
                prompts=self.prompts,
                with_key=self.with_keys,
            )
        except SampleError:
            if cursor is not None:
                cursor.skip()
            raise
        if cursor is not None:
            sample.attach(cursor.tokens, cursor.next)
        elif self.tokens_column is not None:
            sample.attach_column(self.tokens_column)
        if self.transform is not None:
            with keyed_randomness(self.seed, self.epoch, index):
                augment(sample, self.transform)
        if self.on_error == "replace":
            sample.check()
        return sample


def _is_hugging_face(dataset: Any) -> bool:
    datasets = sys.modules.get("datasets")
    return datasets is not None and isinstance(dataset, datasets.IterableDataset)


def _shards_itself(dataset: Any) -> bool | None:
    """Whether each DataLoader worker already sees its own part of a stream; None if unknown."""
    if _is_hugging_face(dataset):
        return True
    return None if isinstance(dataset, IterableDataset) else False


def _stand_in(sample: Sample, error: SampleError) -> Sample:
    return replace(sample, replaced=(Replacement.of(error, sample.index),))
