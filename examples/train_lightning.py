"""Train with Lightning: the position in the epoch is part of its checkpoints.

python examples/train_lightning.py --steps 10
"""

from __future__ import annotations

import argparse

import lightning.pytorch as pl
import torch
from plain_loop import Classifier
from skimage import data

from subtok_data import SubobjectCollator, SubobjectLoader, SubobjectTokenizer


class PhotoModule(pl.LightningModule):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.model = Classifier(classes)

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(self.model(batch), batch["label"])
        print(f"step {index}: loss {loss:.3f}")
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--size", type=int, default=128)
    args = parser.parse_args()

    photos = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    rows = [{"image": photo, "label": label} for label, photo in enumerate(photos)] * 10
    tokenizer = SubobjectTokenizer(num_tokens=16, size=args.size)
    collator = SubobjectCollator(tokenizer, shape_size=8)
    trainer = pl.Trainer(
        max_steps=args.steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # num_workers=0 is no bottleneck: tokens are made beside the training step, decoding is cheap.
    with SubobjectLoader(rows, collator=collator, batch_size=4, shuffle=True) as loader:
        trainer.fit(PhotoModule(len(photos)), loader)


if __name__ == "__main__":
    main()
