"""What each of two plain processes sees that only have the environment of a process group.

Ray Train, SLURM and Kubernetes operators start workers like this, without torchrun.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from helpers.batches import faulty_tokenizer
from helpers.faulty import CodedImages
from helpers.tiny_trainee import TinyModel
from torch.utils.data import DataLoader

from subtok_data import (
    BatchPlan,
    SubobjectCollator,
    SubobjectDataset,
    SubobjectIterableDataset,
    SubobjectLoader,
)
from subtok_data.errors import ConfigError

OPTIONS = {"batch_size": 4, "executor": "thread", "segment_workers": 1}
_FORWARD = ("pixel_values", "visual_token_areas", "visual_token_mask", "sample_index", "label")


def train() -> dict[str, Any]:
    """The training function of docs/frameworks.md, as Ray Train calls it in each worker."""
    model = torch.nn.parallel.DistributedDataParallel(TinyModel())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    epochs = []
    with SubobjectLoader(CodedImages(18), faulty_tokenizer(), shuffle=True, **OPTIONS) as loader:
        for _ in range(2):
            seen = []
            for batch in loader:
                model(**{name: batch[name] for name in _FORWARD})["loss"].backward()
                optimizer.step()
                optimizer.zero_grad()
                seen += batch["sample_index"].tolist()
            epochs.append(seen)
    return {"epochs": epochs, "weights": model.module.head.weight.flatten().tolist()}


def different_plans(rank: int) -> dict[str, str]:
    """What the loader says when the ranks were not told the same; empty when it says nothing."""
    lengths = [1 + i % 5 for i in range(18)]
    differences = {
        "nothing": {"seed": 3, "plan": BatchPlan(lengths, by_length=True)},
        "seed": {"seed": 7 + rank},
        "batch_size": {"batch_size": 2 + rank},
        "lengths": {"plan": BatchPlan([*lengths[:-1], 9 + rank], by_length=True)},
    }
    said = {}
    for name, options in differences.items():
        loader = SubobjectLoader(
            CodedImages(18), faulty_tokenizer(), shuffle=True, **{**OPTIONS, **options}
        )
        with loader:
            try:
                said[name] = "" if len(list(loader)) else "no batches"
            except ConfigError as error:
                said[name] = str(error)
        dist.barrier()
    return said


def with_accelerate() -> dict[str, list[int]]:
    """Samples of a stream and of a dispatched dataset.

    accelerate dispatches batches of one shape only: hence the canvas, and as many places for
    tokens as an image may have.
    """
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    rows = [CodedImages(16)[i] for i in range(16)]
    found = {}
    for name, dataset, options in (
        ("stream", SubobjectIterableDataset(rows), {}),
        ("dispatched", SubobjectDataset(rows), {"dispatch_batches": True}),
        ("loader", SubobjectIterableDataset(rows), {}),
    ):
        tokenizer = faulty_tokenizer(size=96)
        collator = SubobjectCollator(tokenizer, columns=["label"], pad_to_multiple_of=8)
        config = DataLoaderConfiguration(**options)
        accelerator = Accelerator(cpu=True, dataloader_config=config)
        if name == "loader":
            loader = SubobjectLoader(dataset, collator=collator, **OPTIONS)
        else:
            loader = DataLoader(dataset, batch_size=4, collate_fn=collator)
        prepared = accelerator.prepare(loader)
        found[name] = [i for batch in prepared for i in batch["sample_index"].tolist()]
    return found


if __name__ == "__main__":
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo")  # as Ray's TorchConfig(backend="gloo") does
    out = {"train": train(), "said": different_plans(rank), "accelerate": with_accelerate()}
    (Path(sys.argv[1]) / f"rank{rank}.json").write_text(json.dumps(out))
    dist.barrier()
    dist.destroy_process_group()
