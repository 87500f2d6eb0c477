"""Small mixtures, in a module that DataLoader workers and other processes can import."""

from __future__ import annotations

import numpy as np

from subtok_data import PatchSegmenter, SubobjectDataset, SubobjectLoader, SubobjectTokenizer
from subtok_data.data import MixedDataset

SMALL = np.zeros((16, 16, 3), np.uint8)


class Numbered:
    """Rows that know their dataset and place; some are broken."""

    def __init__(self, name: int, length: int, bad: frozenset[int] = frozenset()) -> None:
        self.name, self.length, self.bad = name, length, bad

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        image = b"no image" if index in self.bad else SMALL
        return {"image": image, "name": self.name, "place": index}


def mixture(*sizes: int, weights, bad: frozenset[int] = frozenset(), **options) -> MixedDataset:
    datasets = [
        SubobjectDataset(Numbered(k, size, bad), on_error="replace") for k, size in enumerate(sizes)
    ]
    return MixedDataset(datasets, weights, **options)


def loader(dataset: MixedDataset, **options) -> SubobjectLoader:
    tokenizer = SubobjectTokenizer(PatchSegmenter(16), size=32)
    return SubobjectLoader(dataset, tokenizer, executor="inline", **{"batch_size": 3, **options})
