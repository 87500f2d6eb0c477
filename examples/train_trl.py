"""Train a LLaVA with visual subobject tokens by TRL's SFTTrainer, as it is.

    python examples/train_trl.py --data FOLDER --out out/trl --stop-after 45   # COCO or Flickr8k
    python examples/train_trl.py --data FOLDER --out out/trl --resume          # on in mid-epoch
    python examples/train_trl.py --demo --out out/demo                         # no data needed
    python examples/train_trl.py --demo --out out/demo --trainer               # transformers' own

The model is small, with random weights; ``--data`` is a folder of photos with captions.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from captions import caption_rows, data_folder
from datasets import Dataset, Image
from PIL.Image import fromarray
from skimage import data
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from vlm import train_tokenizer

from subtok_data import PixelConfig, SubobjectProcessor, SubobjectTokenizer
from subtok_data.integrations import use_subobject_tokens

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with captions and images")
    parser.add_argument("--demo", action="store_true", help="photos of scikit-image instead")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--trainer", action="store_true", help="transformers' Trainer, not TRL's")
    parser.add_argument("--captions", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--stop-after", type=int, help="stop early at this step, as if interrupted")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--save-every", type=int, default=15, help="steps between checkpoints")
    parser.add_argument("--workers", type=int, default=0, help="DataLoader workers")
    parser.add_argument("--num-tokens", type=int, default=36, help="visual tokens per image")
    parser.add_argument("--size", type=int, default=224, help="longest side of the image, pixels")
    return parser.parse_args()


def read_captions(args: argparse.Namespace) -> list[dict[str, Any]]:
    if not args.demo:
        return caption_rows(data_folder(args.data))[0][: args.captions]
    photos = {
        "a woman in an orange suit": data.astronaut,
        "a cat looks at us": data.chelsea,
        "a cup of coffee": data.coffee,
        "a rocket at night": data.rocket,
    }
    rows = [{"image": fromarray(photo()), "caption": words} for words, photo in photos.items()]
    return [rows[i % len(rows)] for i in range(args.captions)]


def small_llava(vocabulary: int, side: int) -> LlavaForConditionalGeneration:
    tower = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=side,
        patch_size=16,
    )
    language = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=tower, text_config=language))


class StopAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        del args, kwargs
        control.should_training_stop = state.global_step >= self.step
        return control


def as_conversation(row: dict[str, Any]) -> dict[str, Any]:
    """Row of TRL's kind "prompt-completion": the completion alone is supervised."""
    return {
        "image": row["image"],
        "prompt": [{"role": "user", "content": "Describe the image."}],
        "completion": [{"role": "assistant", "content": row["caption"]}],
    }


class CaptionCollator:
    """What transformers' Trainer needs besides a processor: which columns are the text."""

    def __init__(self, processor: SubobjectProcessor) -> None:
        self.processor = processor

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        batch = self.processor.apply_chat_template(
            [in_chat(row) for row in rows],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "add_special_tokens": False},
        )
        ignored = (batch["attention_mask"] == 0) | (
            batch["input_ids"] == self.processor.image_token_id
        )
        batch["labels"] = batch["input_ids"].masked_fill(ignored, -100)
        return batch


def in_chat(row: dict[str, Any]) -> list[dict[str, Any]]:
    question = {"type": "text", "text": row["prompt"][0]["content"]}
    image = {"type": "image", "image": row["image"]}
    return [{"role": "user", "content": [image, question]}, *row["completion"]]


def check_labels(trainer: Trainer, processor: SubobjectProcessor) -> None:
    """Stop if a visual token of the first batch is supervised."""
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(2)])
    visual = batch["input_ids"] == processor.image_token_id
    assert visual.sum() == batch["num_visual_tokens"].sum()
    supervised = batch["labels"] != -100
    assert not (visual & supervised).any()
    print(f"{int(visual.sum())} visual tokens in 2 rows, {int(supervised.sum())} labels")


def main() -> None:
    args = parse_args()
    rows = [as_conversation(row) for row in read_captions(args)]
    tokenizer = train_tokenizer((row["completion"][0]["content"] for row in rows), vocabulary=1000)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    side = args.size
    processor = SubobjectProcessor(
        SubobjectTokenizer(num_tokens=args.num_tokens, size=side),
        tokenizer,
        pixels=PixelConfig(size=(side, side)),  # CLIP's tower takes one size
    )
    torch.manual_seed(0)
    model = small_llava(len(tokenizer), side)
    use_subobject_tokens(model, processor.image_token_id)
    options: dict[str, Any] = {
        "per_device_train_batch_size": args.batch_size,
        "num_train_epochs": args.epochs,
        "learning_rate": 1e-3,
        "save_steps": args.save_every,
        "logging_steps": 5,
        "dataloader_num_workers": args.workers,
        "bf16": torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "disable_tqdm": True,
        "report_to": "none",
    }
    rest: dict[str, Any] = {
        "train_dataset": Dataset.from_list(rows).cast_column("image", Image()),
        "processing_class": processor,
        "callbacks": [StopAfter(args.stop_after)] if args.stop_after else [],
    }
    if args.trainer:
        arguments = TrainingArguments(str(args.out), remove_unused_columns=False, **options)
        trainer = Trainer(model, arguments, data_collator=CaptionCollator(processor), **rest)
    else:
        from trl import SFTConfig, SFTTrainer

        trainer = SFTTrainer(
            model, SFTConfig(str(args.out), activation_checkpointing=False, **options), **rest
        )
    check_labels(trainer, processor)
    trainer.train(resume_from_checkpoint=args.resume or None)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print("losses:", *(f"{loss:.4f}" for loss in losses))
    print(f"{trainer.state.global_step} steps, loss {losses[0]:.3f} -> {losses[-1]:.3f}")


if __name__ == "__main__":
    main()
