"""Partitioners and images for tests of the loader: no torch, importable by segment workers."""

from __future__ import annotations

import io
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from subtok_data.segment import Evidence, Partition

KILL, KILL_ONCE, HANG, RAISE, SLOW, NO_MEMORY = 250, 251, 252, 253, 254, 255


def coded_image(index: int, height: int = 64, width: int = 64, code: int = 0) -> np.ndarray:
    """An image whose pixels tell its index, and what its partitioner shall do."""
    image = np.random.default_rng(index).integers(0, 200, (height, width, 3), dtype=np.uint8)
    image[0, 0] = (index % 250, code, 0)
    return image


@dataclass(frozen=True)
class FaultyPartitioner:
    """Cuts an image into columns; does what the pixel at (0, 0) says before.

    ``folder`` remembers across processes what was done once.
    """

    folder: str = ""
    random_sleep_s: float = 0.0

    def __call__(self, evidence: Evidence, size: tuple[int, int]) -> Partition:
        index, code = (int(value) for value in evidence["image"][0, 0, :2])
        if self.random_sleep_s:
            time.sleep(np.random.default_rng(time.perf_counter_ns()).random() * self.random_sleep_s)
        if code == KILL or (code == KILL_ONCE and self._first_time(index)):
            os.kill(os.getpid(), signal.SIGKILL)
        if code == HANG and self._first_time(index):
            time.sleep(1000)
        if code == NO_MEMORY:
            raise MemoryError("no 99 GB for the merge costs")
        if code == RAISE:
            raise ValueError(f"image {index} cannot be cut")
        count = min(1 + index % 5, size[1])
        columns = np.arange(size[1]) * count // size[1]
        token_map = np.broadcast_to(columns.astype(np.int16), size)
        return Partition(np.ascontiguousarray(token_map), count)

    def _first_time(self, index: int) -> bool:
        try:
            (Path(self.folder) / f"seen-{index}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


@dataclass
class FaultySegmenter:
    """Gives the image as evidence; raises for images whose red value is ``fail_on``."""

    partitioner: FaultyPartitioner
    fail_on: int = -1

    def infer(self, images, sizes, prompts=None):
        for image in images:
            if image[0, 0, 0] == self.fail_on:
                raise RuntimeError(f"no evidence for image {self.fail_on}")
        return [{"image": image} for image in images]

    def config(self):
        return {"segmenter": "faulty"}


class CodedImages:
    """A map-style dataset of coded images; picklable, with a count of accesses in this process."""

    def __init__(self, length: int, codes: dict[int, int] | None = None, corrupt=()) -> None:
        self.length = length
        self.codes = codes or {}
        self.corrupt = frozenset(corrupt)
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int):
        self.loaded.append(index)
        if index in self.corrupt:
            return {"image": b"not an image", "label": index, "caption": f"caption {index}"}
        image = coded_image(index, 64 + 32 * (index % 2), 96, self.codes.get(index, 0))
        return {"image": image, "label": index, "caption": f"caption {index}"}


class KillsDecoder(CodedImages):
    """Kills the DataLoader worker that decodes one index."""

    def __getitem__(self, index: int):
        if index == 5:
            import torch

            if torch.utils.data.get_worker_info() is not None:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


class BreaksDecoder(CodedImages):
    """Raises an error that is about no sample."""

    def __getitem__(self, index: int):
        if index == 5:
            raise RuntimeError("no such disk")
        return super().__getitem__(index)


class HangsDecoder(CodedImages):
    """Never answers for one index."""

    def __getitem__(self, index: int):
        if index == 5:
            time.sleep(1000)
        return super().__getitem__(index)


def png(image: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def shard_rows(shards):
    """Rows of a Hugging Face stream: seven per shard."""
    for shard in shards:
        for index in range(7 * shard, 7 * shard + 7):
            yield {"image": {"bytes": png(coded_image(index)), "path": None}, "label": index}


class Rows:
    """A re-iterable stream of 21 rows, three of them bad, without a state of its own."""

    def __iter__(self):
        for index in range(21):
            bad = index in (3, 4, 11)
            yield {"image": b"bad" if bad else coded_image(index), "label": index}
