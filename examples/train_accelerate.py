"""Train with accelerate, gradient accumulation, and resume in the middle of an epoch.

python examples/train_accelerate.py --steps 6 --out run
torchrun --nproc_per_node 2 examples/train_accelerate.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from plain_loop import Classifier
from skimage import data

from subtok_data import SubobjectCollator, SubobjectLoader, SubobjectTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--out", type=Path, help="keeps a checkpoint here, and goes on from it")
    args = parser.parse_args()

    # Without cpu=True, accelerate on a machine without GPUs overlooks the other processes.
    cpu = not torch.accelerator.is_available()
    accelerator = Accelerator(cpu=cpu, gradient_accumulation_steps=2)
    accelerator.print(f"processes: {accelerator.num_processes}")
    photos = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    rows = [{"image": photo, "label": label} for label, photo in enumerate(photos)] * 10
    tokenizer = SubobjectTokenizer(num_tokens=16, size=args.size)
    collator = SubobjectCollator(tokenizer, shape_size=8)
    with SubobjectLoader(rows, collator=collator, batch_size=4, shuffle=True) as loader:
        torch.manual_seed(0)
        model = Classifier(classes=len(photos))
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        # The loader stays as it is: it shards by rank and tells accelerate where the epoch ends.
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        if args.out is not None and args.out.exists():
            accelerator.load_state(args.out)
            accelerator.print(f"resumed after batch {loader.state_dict()['batches']}")
        for step, batch in zip(range(args.steps), loader, strict=False):
            with accelerator.accumulate(model):
                loss = torch.nn.functional.cross_entropy(model(batch), batch["label"])
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            accelerator.print(f"step {step}: loss {loss:.3f}")
        if args.out is not None:
            accelerator.save_state(args.out)
    accelerator.end_training()


if __name__ == "__main__":
    main()
