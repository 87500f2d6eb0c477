"""Train with transformers' Trainer: batches are prepared ahead, checkpoints resume mid-epoch.

python examples/train_trainer.py --steps 10 --out run
python examples/train_trainer.py --steps 20 --out run --resume
"""

from __future__ import annotations

import argparse

import torch
from plain_loop import Classifier
from skimage import data
from transformers import Trainer, TrainingArguments

from subtok_data import SubobjectCollator, SubobjectTokenizer
from subtok_data.integrations import SubobjectTrainerMixin


class PhotoModel(Classifier):
    def forward(self, label: torch.Tensor, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = super().forward(batch)
        return {"loss": torch.nn.functional.cross_entropy(logits, label), "logits": logits}


class SubobjectTrainer(SubobjectTrainerMixin, Trainer): ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--out", default="run")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()

    photos = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    rows = [{"image": photo, "label": label} for label, photo in enumerate(photos)] * 10
    tokenizer = SubobjectTokenizer(num_tokens=16, size=args.size)
    arguments = TrainingArguments(
        args.out,
        per_device_train_batch_size=4,
        max_steps=args.steps,
        save_steps=5,
        remove_unused_columns=False,  # the image column is not one of model.forward
        report_to="none",
    )
    trainer = SubobjectTrainer(
        PhotoModel(classes=len(photos)),
        arguments,
        train_dataset=rows,
        data_collator=SubobjectCollator(tokenizer, shape_size=8),
    )
    trainer.train(resume_from_checkpoint=args.resume or None)
    print(f"trained {trainer.state.global_step} steps")


if __name__ == "__main__":
    main()
