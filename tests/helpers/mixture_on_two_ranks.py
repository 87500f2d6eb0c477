"""What each of two ranks sees of a mixture; run by torchrun from tests/data/datasets."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from helpers.mixtures import loader, mixture
from helpers.workers import preload_worker_imports

if __name__ == "__main__":
    preload_worker_imports()
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    epochs = []
    with loader(mixture(40, 10, weights=(4, 1)), batch_size=5, num_workers=1) as batches:
        for _ in range(2):
            found = [
                [batch["source_dataset"].tolist(), batch["source_index"].tolist()]
                for batch in batches
            ]
            epochs.append(found)
    Path(sys.argv[1], f"rank{rank}.json").write_text(json.dumps(epochs))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
