"""Two ranks that share a cache under accelerate; run by torchrun from tests/data/cache."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from helpers.boundary_networks import pictures
from helpers.tiny_trainee import TinyModel
from helpers.workers import preload_worker_imports

from subtok_data import EPOCSegmenter, SubobjectLoader, SubobjectTokenizer

FORWARD = ("pixel_values", "visual_token_areas", "visual_token_mask", "sample_index", "label")


class Counting(EPOCSegmenter):
    inferred = 0

    def infer(self, images, sizes, prompts=None):
        self.inferred += len(images)
        # One by one: rounding depends on the batch, which is another one where some are hits.
        return [one for image in images for one in super(Counting, self).infer([image], sizes)]


def digest(batch) -> str:
    hashed = hashlib.sha256()
    for name in sorted(batch):
        hashed.update(f"{name} {batch[name].dtype} {tuple(batch[name].shape)}".encode())
        hashed.update(batch[name].numpy().tobytes())
    return hashed.hexdigest()


def main(folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    images = pictures(*[(64, 64 + 8 * (place % 3)) for place in range(21)])
    rows = [{"image": image, "label": place} for place, image in enumerate(images)]
    out = {}
    for name, options in {
        "plain": {},
        "cached": {"cache": folder / "cache"},
        "workers": {"cache": folder / "with-workers", "num_workers": 1},
    }.items():
        segmenter = Counting()
        loader = SubobjectLoader(
            rows,
            SubobjectTokenizer(segmenter, size=64),
            batch_size=4,
            shuffle=True,
            executor="thread",
            segment_workers=1,
            **options,
        )
        model = TinyModel()
        model, optimizer, loader = accelerator.prepare(
            model, torch.optim.SGD(model.parameters(), 0.1), loader
        )
        epochs = []
        for _ in range(3):
            before = loader.stats()
            batches = []
            for batch in loader:
                batches.append(digest(batch))
                accelerator.backward(model(**{key: batch[key] for key in FORWARD})["loss"])
                optimizer.step()
            after = loader.stats()
            hits = after.cache_hits - before.cache_hits
            epochs.append([batches, hits, after.images - before.images, segmenter.inferred])
        out[name] = epochs
        loader.close()
    (folder / f"rank{accelerator.process_index}.json").write_text(json.dumps(out))
    accelerator.wait_for_everyone()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    preload_worker_imports()
    main(Path(sys.argv[1]))
