"""``MixedDataset``: several datasets in an exact ratio."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from subtok_data.arguments import check_choice, check_type
from subtok_data.data.datasets.map_style import SubobjectDataset
from subtok_data.data.datasets.sample import Sample
from subtok_data.errors import ConfigError

__all__ = ["MIXTURE_COLUMNS", "MixedDataset", "StopRule"]

StopRule = Literal["first", "all"]
MIXTURE_COLUMNS = ("source_dataset", "source_index")
"""Columns that a :class:`MixedDataset` adds: number of the dataset, and index in it."""

_PASSES = 1
_PLACES = 2
"""What random numbers are for."""


class MixedDataset(SubobjectDataset):
    """Mix datasets in an exact ratio, epoch after epoch.

    An epoch is a row of blocks; a block has ``weights[k]`` samples of dataset k, at random places.
    So every epoch has exactly ``blocks × weights[k]`` samples of dataset k, and so has, without
    ``shuffle`` of the loader, every run of blocks. Each dataset is gone through in random order,
    without repeats, and from the beginning in a new order where it ends. The order is a function of
    (seed, epoch): equal on all ranks, the same for any number of workers, and resumed by position.

    Parameters
    ----------
    datasets : sequence of SubobjectDataset
        Region datasets and plain ones, too; a batch needs rows of the same columns, so name those
        to keep with ``SubobjectCollator(columns=…)`` where they differ.
    weights : sequence of int
        Samples of each dataset in a block; 10 and 1 for SCA's Objects365 : COCO.
    stop : {"first", "all"}, optional
        Length of an epoch. ``"first"``: as many whole blocks as no dataset has to repeat a sample
        for; ``"all"``: as many as it takes until every dataset was gone through once, while those
        that ended before begin again (the last one to end may, within its last block).
    shuffle : bool, optional
        Random order within each dataset and block; otherwise both are in order.
    seed : int, optional
        Seed of the order. Augmentation has the seeds of the datasets.

    Attributes
    ----------
    counts : tuple of int
        Samples of each dataset in an epoch.

    Notes
    -----
    Samples have the columns ``source_dataset`` and ``source_index``; their ``sample_index`` is the
    place in the mixture. A bad sample, or one without a region, is replaced by its own dataset, so
    the ratio stays exact.

    Raises
    ------
    ConfigError
        No dataset, one that is not a :class:`~subtok_data.SubobjectDataset` or is empty, weights
        that are not whole numbers above 0, or one dataset too small for a single block.

    Examples
    --------
    >>> one, two = ([{"image": np.zeros((8, 8, 3), np.uint8)}] * n for n in (7, 30))
    >>> mixture = MixedDataset([SubobjectDataset(one), SubobjectDataset(two)], [1, 3])
    >>> len(mixture), mixture.counts
    (28, (7, 21))
    """

    def __init__(
        self,
        datasets: Sequence[SubobjectDataset],
        weights: Sequence[int],
        *,
        stop: StopRule = "first",
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        _check(datasets, weights, stop)
        sizes = [len(dataset) for dataset in datasets]
        blocks = _blocks(sizes, weights, stop)
        self.datasets = list(datasets)
        self.weights = tuple(int(weight) for weight in weights)
        self.stop: StopRule = stop
        self.shuffle = shuffle
        self.counts = tuple(blocks * weight for weight in self.weights)
        # The base class asks for a dataset of this length; samples come from ours.
        super().__init__(range(sum(self.counts)), seed=seed)
        self._block = np.repeat(np.arange(len(sizes)), self.weights)
        self._orders: dict[tuple[int, int, int], NDArray[np.int64]] = {}

    def set_epoch(self, epoch: int) -> None:
        """Change the order, and the augmentation of every dataset."""
        super().set_epoch(epoch)
        for dataset in self.datasets:
            dataset.set_epoch(epoch)

    def locate(self, index: int) -> tuple[int, int]:
        """Look up the dataset, and the sample in it, at a place of the current epoch.

        Parameters
        ----------
        index : int
            0 to ``len(self) - 1``.

        Returns
        -------
        (int, int)
            Number of the dataset, and index in it.

        Examples
        --------
        >>> images = [np.zeros((8, 8, 3), np.uint8)] * 2
        >>> mixture = MixedDataset(
        ...     [SubobjectDataset(images), SubobjectDataset(images)], [2, 1], shuffle=False
        ... )
        >>> [mixture.locate(index) for index in range(len(mixture))]
        [(0, 0), (0, 1), (1, 0)]
        """
        block, slot = divmod(index, len(self._block))
        numbers = self._block
        if self.shuffle:
            random = np.random.default_rng([self.seed, self.epoch, _PLACES, block])
            numbers = random.permutation(numbers)
        number = int(numbers[slot])
        turn = block * self.weights[number] + int((numbers[:slot] == number).sum())
        passes, place = divmod(turn, len(self.datasets[number]))
        return number, int(self._order(number, passes)[place]) if self.shuffle else place

    def load(self, index: int) -> Sample:
        """Return the sample at a place of the mixture."""
        number, own = self.locate(index)
        return self._placed(self.datasets[number][own], index, number)

    def replacements(self, index: int, reason: str) -> Iterator[Sample]:
        """Yield good samples of the same dataset as a bad one, so that the ratio stays."""
        number, own = self.locate(index)
        for sample in self.datasets[number].replacements(own, reason):
            yield self._placed(sample, index, number)

    def _placed(self, sample: Sample, index: int, number: int) -> Sample:
        added = dict(zip(MIXTURE_COLUMNS, (number, sample.index), strict=True))
        taken = [name for name in added if name in sample.columns]
        if taken:
            raise ConfigError(
                f"dataset {number} has a column {taken[0]!r}, which a MixedDataset adds: rename it"
            )
        sample.columns = {**sample.columns, **added}
        sample.index, sample.dataset_key = index, self._key
        # Indices of replacements are of the dataset; elsewhere they would be read as the mixture's.
        sample.replaced = tuple(
            replace(one, index=index, used=-1, reason=f"dataset {number}: {one.reason}")
            for one in sample.replaced
        )
        return sample

    def _order(self, number: int, passes: int) -> NDArray[np.int64]:
        """Return the order of one pass through a dataset; the latest ones are kept."""
        key = (self.epoch, number, passes)
        orders = self._orders
        if key not in orders:
            # A new dict, not a changed one: replacements are looked up from another thread.
            recent = {
                old: order
                for old, order in orders.items()
                if old[0] == key[0] and (old[1] != number or abs(old[2] - passes) < 2)
            }
            random = np.random.default_rng([self.seed, *key, _PASSES])
            orders = {**recent, key: random.permutation(len(self.datasets[number]))}
            self._orders = orders
        return orders[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_orders": {}}  # workers make their own

    def __repr__(self) -> str:
        parts = ", ".join(
            f"{count} of {len(dataset)}"
            for count, dataset in zip(self.counts, self.datasets, strict=True)
        )
        return f"MixedDataset({parts}; weights={self.weights}, stop={self.stop!r})"


def _check(datasets: Sequence[Any], weights: Sequence[Any], stop: str) -> None:
    check_choice("stop", stop, get_args(StopRule))
    for name, given in (("datasets", datasets), ("weights", weights)):
        check_type(name, given, (list, tuple), "give one dataset and one weight for each part")
    if not datasets or len(datasets) != len(weights):
        raise ConfigError(
            f"{len(datasets)} datasets and {len(weights)} weights: give one of each, at least one"
        )
    for number, (dataset, weight) in enumerate(zip(datasets, weights, strict=True)):
        if not isinstance(dataset, SubobjectDataset):
            raise ConfigError(
                f"dataset {number} is a {type(dataset).__name__}: wrap it in a SubobjectDataset or "
                "a RegionDataset; streams cannot be mixed exactly, since they do not know their "
                "length"
            )
        if not len(dataset):
            raise ConfigError(f"dataset {number} is empty")
        number_given = isinstance(weight, int | float | np.number) and not isinstance(weight, bool)
        if not number_given or weight != int(weight) or weight < 1:
            raise ConfigError(
                f"weight {weight!r} of dataset {number}: give whole numbers from 1, such as 10 and "
                "1, so that the ratio can be exact"
            )


def _blocks(sizes: Sequence[int], weights: Sequence[int], stop: StopRule) -> int:
    """Blocks of an epoch."""
    if stop == "all":
        return max(math.ceil(size / weight) for size, weight in zip(sizes, weights, strict=True))
    blocks = [size // weight for size, weight in zip(sizes, weights, strict=True)]
    if min(blocks) < 1:
        number = blocks.index(min(blocks))
        raise ConfigError(
            f"dataset {number} has {sizes[number]} samples, one block takes {weights[number]}: "
            "lower the weights by a common factor, or take stop='all', which repeats it"
        )
    return min(blocks)
