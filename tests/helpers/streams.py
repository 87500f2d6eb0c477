"""Torch streams of coded images that shard themselves, or not; picklable for workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from helpers.faulty import coded_image
from torch.utils.data import IterableDataset, get_worker_info


class WholeStream(IterableDataset[Any]):
    """Every copy yields all rows."""

    def __init__(self, length: int = 13) -> None:
        self.length = length

    def __iter__(self) -> Iterator[Any]:
        for index in range(self.length):
            yield {"image": coded_image(index), "label": index}


class SelfSharding(WholeStream):
    """Each worker yields its own rows."""

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for index in range(number, self.length, workers):
            yield {"image": coded_image(index), "label": index}


class StatefulStream(WholeStream):
    """Every copy yields all rows, and knows where it stands."""

    def __init__(self, length: int = 13) -> None:
        super().__init__(length)
        self.at = 0

    def __iter__(self) -> Iterator[Any]:
        while self.at < self.length:
            self.at += 1
            yield {"image": coded_image(self.at - 1), "label": self.at - 1}
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]
