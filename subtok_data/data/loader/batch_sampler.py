"""Indices to batches: shuffled, sharded over ranks, by length if lengths are known.

The batches of all ranks follow from (seed, epoch) and the lengths alone, identically on every rank,
and each rank takes its part: so ranks agree on the number of batches by construction, and a
position in the epoch is one number. That all ranks were told the same is checked before the first
batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch.utils.data import RandomSampler, Sampler, SequentialSampler

from subtok_data.arguments import check_count
from subtok_data.data.loader.batch_plan import BatchPlan
from subtok_data.data.loader.epoch_batches import EpochBatches, RowOrder, plan_epoch
from subtok_data.data.loader.ranks import compare_with_other_ranks, rank_and_world_size
from subtok_data.errors import ConfigError

__all__ = ["SubobjectBatchSampler"]


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
        New order in each epoch. More than a million rows are shuffled in windows of shards, see
        :class:`BatchPlan`.
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
        self._planned: tuple[Any, EpochBatches] | None = None
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
        return self.plan.is_grouped

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
        if self.num_samples is not None:
            return len(self._epoch_batches(self.num_samples, rank_and_world_size()[1]))
        samples = len(self.sampler)
        if self.drop_last:
            return samples // self.batch_size
        return math.ceil(samples / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        return self.batches_from(0)

    def batches_from(self, start: int) -> Iterator[list[int]]:
        """Yield this rank's batches from number ``start`` on, without forming those before it."""
        if self.num_samples is None:
            return self._of_sampler(start)
        if not self._compared:
            compare_with_other_ranks(self._description)
            self._compared = True
        rank, world = rank_and_world_size()
        return self._epoch_batches(self.num_samples, world).of_rank(rank, start)

    def _epoch_batches(self, samples: int, world: int) -> EpochBatches:
        """Plan the epoch, once: to count batches that are filled up means to form them."""
        seed = (self.seed, self.epoch) if self.shuffle else None
        asked = (samples, world, seed, self.batch_size, self.drop_last, id(self.plan))
        if self._planned is None or self._planned[0] != asked:
            order = RowOrder(samples, self.plan.shard_rows, seed)
            planned = plan_epoch(
                order, self.plan, self.batch_size, drop_last=self.drop_last, world=world
            )
            self._planned = asked, planned
        return self._planned[1]

    def _description(self) -> dict[str, Any]:
        """Return what the plan follows from, as plain values."""
        return {
            "samples": self.num_samples,
            "batch_size": self.batch_size,
            "drop_last": self.drop_last,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "epoch": self.epoch,
            "by_length": self.plan.by_length,
            "max_batch_length": self.plan.max_batch_length,
            "shard_rows": self.plan.shard_rows,
            "lengths": self.plan.fingerprint,
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
