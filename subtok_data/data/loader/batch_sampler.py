"""Indices to batches: shuffled, sharded over ranks, by length if lengths are known.

A plan for all ranks is made from (seed, epoch) alone, identically on every rank, and each rank
takes its part: so ranks agree on the number of batches by construction, and a position in the epoch
is one number. That all ranks were told the same is checked before the first batch.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import RandomSampler, Sampler, SequentialSampler

from subtok_data.arguments import check_count, check_flag, describe
from subtok_data.errors import ConfigError

__all__ = ["BatchPlan", "SubobjectBatchSampler", "rank_and_world_size"]

_WINDOW = 50
"""Batches of each rank sorted by length together: long enough to help, short enough to mix."""


def rank_and_world_size() -> tuple[int, int]:
    """Return rank and number of processes of torch.distributed; (0, 1) without it."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


_plans = itertools.count()
"""Numbers the plans of this process in the order in which they are first used."""


def _compare_with_other_ranks(plan: dict[str, Any]) -> None:
    """Refuse a plan that another rank has otherwise.

    The first rank to come leaves its plan in the store of the process group, the others compare:
    nobody waits, so that a loader that only some ranks read is no deadlock here.
    """
    rank, world = rank_and_world_size()
    if world == 1 or not torch.distributed.is_initialized():
        return
    # Private in torch, which has no public way to the store that the ranks met at; without one
    # (MPI) there is nothing to compare in.
    find_store: Any = getattr(torch.distributed.distributed_c10d, "_get_default_store", None)
    store = None if find_store is None else find_store()
    if store is None:
        return
    own = json.dumps([rank, plan])
    key = f"subtok_data/plan/{next(_plans)}"
    other, others = json.loads(store.compare_set(key, "", own))
    different = [
        f"{name}={plan[name]!r} here, {others.get(name)!r} on rank {other}"
        for name in plan
        if plan[name] != others.get(name)
    ]
    if different:
        raise ConfigError(
            f"rank {rank} has another plan of batches than rank {other}, so samples would come "
            f"twice or never: {'; '.join(different)}. Give every rank the same dataset and "
            f"options, and let all ranks iterate the same loaders in the same order; the loader "
            f"takes each rank's part by itself"
        )


@dataclass(frozen=True)
class BatchPlan:
    """Group samples by length, where their lengths are known.

    Token counts are known only after segmentation, so grouping by length needs a column from an
    earlier pass: ``StoredTokens(folder).lengths()``, or a column of your own.

    Parameters
    ----------
    lengths : sequence of int, optional
        Length of each sample, in any unit.
    by_length : bool, optional
        Put samples of similar length in one batch, to save padding.
    max_batch_length : int, optional
        Give batches as many samples as fit: number of samples × longest, padding counted. Then
        ``batch_size`` is only an upper bound.

    Raises
    ------
    ConfigError
        If a grouping is requested without lengths.
    """

    lengths: Sequence[int] | NDArray[Any] | None = None
    by_length: bool = False
    max_batch_length: int | None = None

    def __post_init__(self) -> None:
        check_flag("by_length", self.by_length)
        grouped = self.by_length or self.max_batch_length is not None
        if grouped and self.lengths is None:
            raise ConfigError(
                "batches by length need lengths: token counts are known only after segmentation. "
                "Store tokens once (`subtok tokenize`) and give "
                "lengths=StoredTokens(folder).lengths(), or give a length column of your own"
            )
        check_count("max_batch_length", self.max_batch_length)
        lengths = np.asarray([] if self.lengths is None else self.lengths)
        if lengths.ndim != 1 or (lengths.size and lengths.dtype.kind not in "iu"):
            raise ConfigError(
                f"lengths is {describe(self.lengths)}: give one whole number per sample"
            )
        if self.max_batch_length is not None and self.lengths is not None:
            longest = int(np.max(np.asarray(self.lengths), initial=0))
            if longest > self.max_batch_length:
                raise ConfigError(
                    f"max_batch_length={self.max_batch_length} is below the longest sample "
                    f"({longest}): raise it, or tokenize with max_tokens"
                )


class SubobjectBatchSampler(Sampler[list[int]]):
    """Batches of dataset indices for this rank.

    Parameters
    ----------
    sampler : int or sampler
        Number of samples, which are then shuffled and sharded here; or a sampler that a framework
        made, which is taken as it is: it shards for itself.
    batch_size : int
        Samples per batch and rank.
    drop_last : bool, optional
        Leave out what does not fill a batch on every rank. What that is changes with each epoch
        under ``shuffle``.
    shuffle : bool, optional
        New order in each epoch.
    seed : int, optional
        Seed of the order.
    plan : BatchPlan, optional
        Grouping by length.
    dataset : dataset, optional
        Told about epochs too, also by frameworks that reach only the batch sampler.

    Attributes
    ----------
    epoch : int
        See :meth:`set_epoch`.
    start : int
        Batches of the next iteration that are left out, without touching the dataset.

    Notes
    -----
    Without ``drop_last``, several ranks get equally many full batches: indices from the beginning
    of the order fill the last ones, as accelerate's ``BatchSamplerShard`` does, whose
    ``gather_for_metrics`` removes them again. A single process gets a short last batch. Under
    ``max_batch_length`` whole batches are repeated instead, and a batch is full when no further
    sample would fit. Plans by length come in any order, so that a short batch need not be the last.

    Raises
    ------
    ConfigError
        If an option is out of range. When first iterated, if another rank of the process group has
        another plan: other options, seed, epoch, lengths or number of samples.

    Examples
    --------
    >>> list(SubobjectBatchSampler(5, 2))
    [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        sampler: Any,
        batch_size: int = 1,
        drop_last: bool = False,
        *,
        shuffle: bool = False,
        seed: int = 0,
        plan: BatchPlan | None = None,
        dataset: Any = None,
    ) -> None:
        check_count("batch_size", batch_size, optional=False)
        # The number of samples, or None under a framework's sampler, which decides on its own.
        self.num_samples = sampler if isinstance(sampler, int) else None
        # Lightning looks here to learn whether the loader shuffles.
        self.sampler: Any = sampler
        if self.num_samples is not None:
            described = RandomSampler if shuffle and sampler else SequentialSampler
            self.sampler = described(range(self.num_samples))
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.shuffle = shuffle
        self.seed = seed
        self.plan = plan or BatchPlan()
        self.dataset = dataset
        self.epoch = 0
        self.start = 0
        self._compared = False
        self.even_batches = True  # accelerate's join_uneven_inputs sets it
        lengths = self.plan.lengths
        if self.num_samples is not None and lengths is not None and len(lengths) != sampler:
            raise ConfigError(f"{len(lengths)} lengths for {sampler} samples: give one per sample")
        if self.num_samples is None and self.is_grouped:
            raise ConfigError(
                "batches by length are planned for all ranks at once: leave the sampler to the "
                "loader"
            )

    @property
    def is_grouped(self) -> bool:
        """Whether batches are formed by length."""
        return self.plan.by_length or self.plan.max_batch_length is not None

    @property
    def has_fixed_size(self) -> bool:
        """Whether all batches but the last have ``batch_size`` samples."""
        return self.plan.max_batch_length is None

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.epoch = epoch
        for part in (self.sampler, self.dataset):
            forward = getattr(part, "set_epoch", None)
            if forward is not None:
                forward(epoch)

    def __len__(self) -> int:
        if self.num_samples is None:
            return self._count(len(self.sampler), 1)
        _, world = rank_and_world_size()
        if not self.has_fixed_size:
            return len(self._all_batches(self.num_samples)) // world
        return self._count(self.num_samples, world)

    def _count(self, samples: int, world: int) -> int:
        if self.drop_last:
            return samples // (self.batch_size * world)
        return math.ceil(math.ceil(samples / world) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        # Not in the generator: the ranks are compared in the thread that begins to iterate.
        if self.num_samples is not None and not self._compared:
            _compare_with_other_ranks(self._description(self.num_samples))
            self._compared = True
        return self._from_start()

    def _from_start(self) -> Iterator[list[int]]:
        # In the generator: where torch starts workers it asks for two iterators and draws from one.
        start, self.start = self.start, 0
        if self.num_samples is None:
            yield from self._of_sampler(start)
            return
        rank, world = rank_and_world_size()
        for batch in self._all_batches(self.num_samples)[rank::world][start:]:
            yield batch.tolist()

    def _description(self, samples: int) -> dict[str, Any]:
        """Return what the plan follows from, as plain values."""
        lengths = None
        if self.is_grouped:
            lengths = hashlib.sha256(np.asarray(self.plan.lengths, np.float64).tobytes())
        return {
            "samples": samples,
            "batch_size": self.batch_size,
            "drop_last": self.drop_last,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "epoch": self.epoch,
            "by_length": self.plan.by_length,
            "max_batch_length": self.plan.max_batch_length,
            "lengths": None if lengths is None else f"sha256 {lengths.hexdigest()[:12]}",
        }

    def _of_sampler(self, start: int) -> Iterator[list[int]]:
        batch: list[int] = []
        number = 0
        for index in self.sampler:
            batch.append(int(index))
            if len(batch) == self.batch_size:
                if number >= start:
                    yield batch
                batch, number = [], number + 1
        if batch and not self.drop_last and number >= start:
            yield batch

    def _all_batches(self, samples: int) -> list[NDArray[np.int64]]:
        """Batches of all ranks: batch i belongs to rank i modulo the number of ranks."""
        _, world = rank_and_world_size()
        order = np.arange(samples)
        random = np.random.default_rng([self.seed, self.epoch])
        if self.shuffle:
            random.shuffle(order)
        if self.has_fixed_size:
            step = self.batch_size * world
            if self.drop_last:
                order = order[: samples // step * step]
            elif world > 1 and samples:
                # Repeats from the beginning.
                order = np.resize(order, math.ceil(samples / step) * step)
        if self.is_grouped:
            return self._grouped(order, world, random)
        return [order[at : at + self.batch_size] for at in range(0, len(order), self.batch_size)]

    def _grouped(
        self, order: NDArray[np.int64], world: int, random: np.random.Generator
    ) -> list[NDArray[np.int64]]:
        lengths = np.asarray(self.plan.lengths)
        window = _WINDOW * self.batch_size * world
        batches: list[NDArray[np.int64]] = []
        rest = order[:0]
        for at in range(0, len(order), window):
            part = np.concatenate([rest, order[at : at + window]])
            if self.plan.by_length:
                part = part[np.argsort(-lengths[part], kind="stable")]
            found = self._split(part, lengths)
            # A batch that ended with the window, though more would fit, goes on with the next one:
            # only the last batch of all may be short.
            rest = order[:0] if self._is_full(found[-1], lengths) else found.pop()
            batches += found
        if len(rest) and not self.drop_last:
            batches.append(rest)
        whole = len(batches) // world * world
        if whole < len(batches) and self.drop_last:
            batches = batches[:whole]
        elif whole < len(batches):
            missing = -len(batches) % world
            batches += [batches[place % len(batches)] for place in range(missing)]
        # Ranks work on similar lengths at a time, so steps of ranks stay together; only their order
        # mixes.
        steps = [batches[at : at + world] for at in range(0, len(batches), world)]
        if self.shuffle:
            random.shuffle(steps)  # pyright: ignore[reportArgumentType]
        return [batch for step in steps for batch in step]

    def _split(self, part: NDArray[np.int64], lengths: NDArray[Any]) -> list[NDArray[np.int64]]:
        limit = self.plan.max_batch_length
        batches: list[NDArray[np.int64]] = []
        begin, longest = 0, 0
        for place, index in enumerate(part.tolist()):
            longest = max(longest, int(lengths[index]))
            size = place - begin + 1
            if size > self.batch_size or (limit is not None and size * longest > limit):
                batches.append(part[begin:place])
                begin, longest = place, int(lengths[index])
        if begin < len(part):
            batches.append(part[begin:])
        return batches

    def _is_full(self, batch: NDArray[np.int64], lengths: NDArray[Any]) -> bool:
        """Whether no sample could join a batch, however short."""
        limit = self.plan.max_batch_length
        if len(batch) == self.batch_size:
            return True
        return limit is not None and (len(batch) + 1) * int(lengths[batch].max()) > limit
