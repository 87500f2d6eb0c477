"""What each of two processes does with finished batches; run by tests/batch/test_collectives.py."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from helpers.main_paths import MAIN_PATHS
from torch import Tensor
from torch.utils.data import DataLoader

from subtok_data import (
    PatchSegmenter,
    SubobjectCollator,
    SubobjectDataset,
    SubobjectTokenizer,
    validate_batch,
)


def move_every_tensor(rank: int) -> None:
    """Broadcast each tensor of each padded batch from rank 0, then gather it there again."""
    for path, make in MAIN_PATHS.items():
        batch = make()
        if "cu_seq_lens_q" in batch:
            continue
        for name, value in batch.items():
            if not isinstance(value, Tensor) or not value.numel():
                continue
            moved = value.clone() if rank == 0 else torch.zeros_like(value)
            dist.broadcast(moved, src=0)
            assert torch.equal(moved, value), (path, name)
            gathered = [torch.zeros_like(value) for _ in range(2)]
            dist.all_gather(gathered, value)
            assert all(torch.equal(one, value) for one in gathered), (path, name)


def dispatch() -> list[int]:
    """Take batches that accelerate's dispatcher reads on rank 0 and hands out."""
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    rng = np.random.default_rng(0)
    rows = [
        {"image": rng.integers(0, 256, (48, 64, 3), dtype=np.uint8), "label": i} for i in range(8)
    ]
    collator = SubobjectCollator(
        SubobjectTokenizer(PatchSegmenter(16), size=64), shape_size=4, columns=["label"]
    )
    config = DataLoaderConfiguration(dispatch_batches=True)
    accelerator = Accelerator(cpu=True, dataloader_config=config)
    loader = DataLoader(SubobjectDataset(rows), batch_size=2, collate_fn=collator)
    seen: list[int] = []
    for batch in accelerator.prepare(loader):
        given: dict[str, Any] = dict(batch)
        validate_batch(given)
        assert torch.equal(given["label"], given["sample_index"])
        seen += given["sample_index"].tolist()
    return seen


if __name__ == "__main__":
    rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    move_every_tensor(rank)
    (folder / f"rank{rank}.json").write_text(json.dumps(dispatch()))
    dist.barrier()  # a rank that leaves early takes the other's connection with it
    dist.destroy_process_group()
