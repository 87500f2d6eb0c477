"""Shards made by Ray in several ways; run in a process of its own, since Ray leaves threads behind.

Writes what each way left and said to ``ways.json`` of the folder that it is given.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
from helpers.faulty import KILL, CodedImages, FaultyPartitioner, FaultySegmenter

from subtok_data import PatchSegmenter, SubobjectTokenizer
from subtok_data.data import RayEngine, TokenWriter, tokenize_dataset
from subtok_data.data.store import shard_name
from subtok_data.errors import SubtokError

ROWS = 46


class Images:
    """Images of many sizes, some bad; ``kill_at`` ends the process, once if there is a ``flag``."""

    def __init__(self, kill_at: int = -1, flag: str | None = None) -> None:
        self.kill_at = kill_at
        self.flag = flag

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int):
        if index == self.kill_at and self._now():
            os.kill(os.getpid(), signal.SIGKILL)
        if index % 11 == 7:
            return {"image": b"no image"}
        random = np.random.default_rng(index)
        return {"image": random.integers(0, 256, (20 + index % 7, 30, 3), np.uint8)}

    def _now(self) -> bool:
        if self.flag is None:
            return True
        try:
            Path(self.flag).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def patches() -> SubobjectTokenizer:
    return SubobjectTokenizer(PatchSegmenter(8), size=32)


def run(images, out, tokenizer=None, **options):
    options = {"executor": "inline", "batch_size": 3, "shard_rows": 10, **options}
    return tokenize_dataset(images, tokenizer or patches(), out, **options)


def files_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but the provenance, which has times."""
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "provenance.jsonl"
    }


def main(folder: Path) -> None:
    import ray

    ray.init(include_dashboard=False)
    os.chdir(folder)  # folders of tokens are named relative to it
    ways = {}

    def keep(name, images, **options):
        """Run one way, and note what it left and said."""
        engine = options.pop("engine", None) or RayEngine((1, 2))
        progress = []
        said = {"error": "", "kind": ""}
        try:
            report = run(
                images,
                name,
                engine=engine,
                on_progress=lambda rows, failed: progress.append((rows, failed)),
                **options,
            )
            said["failed"] = [(row.index, row.reason) for row in report.failed]
        except SubtokError as error:
            said.update(error=str(error), kind=type(error).__name__)
        ways[name] = {**said, "files": files_of(folder / name), "progress": progress}

    run(Images(), "local")
    ways["local"] = {"files": files_of(folder / "local")}
    keep("one", Images(), engine=RayEngine((1, 1)))
    keep("two", Images(), engine=RayEngine((2, 2)))
    keep("killed", Images(13, str(folder / "killed-once")))
    TokenWriter.open("killed").delete(2)
    (folder / "killed" / shard_name(4)).write_bytes(b"half of a")
    keep("killed", Images(13, str(folder / "killed-once")))
    keep("decoding", Images(13))
    keep("decoded elsewhere", Images(13), num_workers=1)
    segmenter = FaultySegmenter(FaultyPartitioner(), fail_on=-1)
    faulty = SubobjectTokenizer(segmenter, size=None, min_area=0)
    options = {"tokenizer": faulty, "executor": "process", "segment_workers": 1, "shard_rows": 6}
    keep("image", CodedImages(12, {4: KILL}), **options)
    keep("always", CodedImages(12, {4: KILL}), **{**options, "executor": "inline"})

    class Broken(FaultySegmenter):
        def infer(self, images, sizes, prompts=None):
            raise RuntimeError("no such model")

    broken = SubobjectTokenizer(Broken(FaultyPartitioner()), size=32)
    keep("model", Images(), tokenizer=broken)
    (folder / "ways.json").write_text(json.dumps(ways))
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
