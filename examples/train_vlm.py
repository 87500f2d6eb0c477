"""Train a small vision-language model on real captions, from scratch, with visual subobject tokens.

    python examples/train_vlm.py --out out/vlm
    python examples/train_vlm.py --out out/vlm --resume          # goes on in the middle of an epoch
    torchrun --nproc_per_node 2 examples/train_vlm.py --out out/vlm2
    python examples/train_vlm.py --out out/smol --llm FOLDER     # any causal LM of transformers

Photos and captions come from ``--data`` (folders of COCO or Flickr8k), $SUBTOK_TEST_DATA, or
``shared/data`` beside the checkout. Written to ``--out``: ``log.jsonl``, ``curve.png``,
``samples.txt``, the tokenizer, and a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from captions import caption_rows, data_folder
from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup
from vlm import VLM, small_encoder, small_llm, train_tokenizer

from subtok_data import (
    PixelConfig,
    SubobjectCollator,
    SubobjectLoader,
    SubobjectTokenizer,
    TextConfig,
    TokenEmbedding,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with captions and images")
    parser.add_argument("--out", type=Path, required=True, help="folder of results")
    parser.add_argument("--llm", type=Path, help="folder of a causal LM (safetensors or GGUF)")
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps in all")
    parser.add_argument("--stop-after", type=int, help="stop early at this step, as if interrupted")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--batch-size", type=int, default=16, help="rows per process")
    parser.add_argument("--max-tokens", type=int, default=36, help="visual tokens per image")
    parser.add_argument("--size", type=int, default=224, help="longest side of the image, pixels")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--packing", action="store_true", help="packed instead of padded batches")
    parser.add_argument("--val-rows", type=int, default=128)
    parser.add_argument("--eval-every", type=int, default=50, help="steps between validations")
    parser.add_argument("--save-every", type=int, default=50, help="steps between checkpoints")
    parser.add_argument("--workers", type=int, default=1, help="processes that cut images")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def load_language(args: argparse.Namespace, texts: list[str]) -> tuple[Any, TextConfig]:
    """Language model and text options: from a folder, or small and new."""
    options: dict[str, Any] = {"caption": "caption", "max_length": 256}
    if args.llm is None:
        text = TextConfig(train_tokenizer(texts, 2000), **options)
        return small_llm(len(text.tokenizer), hidden=128, layers=4), text
    gguf = next((path.name for path in sorted(args.llm.glob("*.gguf"))), None)
    text = TextConfig(AutoTokenizer.from_pretrained(args.llm, gguf_file=gguf), **options)
    llm = AutoModelForCausalLM.from_pretrained(args.llm, gguf_file=gguf, dtype=torch.float32)
    llm.resize_token_embeddings(len(text.tokenizer), mean_resizing=False)
    return llm, text


class Progress:
    """Steps done, saved and restored with the checkpoint."""

    def __init__(self) -> None:
        self.step = 0

    def state_dict(self) -> dict[str, int]:
        """Return what a checkpoint holds."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a checkpoint."""
        self.step = state["step"]


@torch.no_grad()
def validate(model: torch.nn.Module, loader: SubobjectLoader, accelerator: Accelerator) -> float:
    """Perplexity per text token over the validation rows, on all processes."""
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
    for pending in loader:
        batch = to_device(pending, accelerator.device)
        count = (batch["labels"][:, 1:] != -100).sum()
        sums += torch.stack([model(batch).loss.double() * count, count.double()])
    total, count = accelerator.reduce(sums, "sum").tolist()
    model.train()
    return math.exp(total / count)


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Move a batch, but for what is read on the host, so that a step need not wait for the GPU."""
    on_host = (*TokenEmbedding.host_keys, "input_ids")
    return {
        key: value.to(device, non_blocking=value.is_pinned())
        if isinstance(value, torch.Tensor) and key not in on_host
        else value
        for key, value in batch.items()
    }


def write_samples(
    model: VLM, rows: list[dict[str, str]], collator: SubobjectCollator, language: Any, path: Path
) -> None:
    """Captions that the model writes for a few held-out photos, beside a real one."""
    model.eval()
    device = next(model.parameters()).device
    batch = to_device(collator(rows), device)
    written = language.batch_decode(model.generate(batch), skip_special_tokens=True)
    lines = [
        f"{Path(row['image']).name}\n  real:    {row['caption']}\n  written: {text.strip()}\n"
        for row, text in zip(rows, written, strict=True)
    ]
    path.write_text("".join(lines))
    print("".join(lines))


def plot(log: Path, path: Path) -> None:
    """Training and validation perplexity over steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    entries = [json.loads(line) for line in log.read_text().splitlines()]
    figure, axis = pyplot.subplots(figsize=(6, 3.6))
    train = [(e["step"], math.exp(e["loss"])) for e in entries if "loss" in e]
    val = [(e["step"], e["perplexity"]) for e in entries if "perplexity" in e]
    axis.plot(*zip(*train, strict=True), color="C7", linewidth=0.8, label="training batch")
    axis.plot(*zip(*val, strict=True), "o-", color="C0", label="validation")
    axis.set(xlabel="step", ylabel="perplexity per text token", yscale="log")
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    args = parse_args()
    # Without cpu=True, accelerate on a machine without GPUs overlooks the other processes.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    accelerator.print(f"processes: {accelerator.num_processes}")
    set_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    train_rows, val_rows = caption_rows(data_folder(args.data))
    llm, text = load_language(args, [row["caption"] for row in train_rows])
    model = VLM(llm, small_encoder(64), 64, text.placeholder_id)

    cutter = SubobjectTokenizer(num_tokens=args.max_tokens, size=args.size)
    pixels = PixelConfig(size=(128, 128), dtype="uint8")
    collator = SubobjectCollator(
        cutter, text=text, pixels=pixels, packing=args.packing, columns=[], shape_size=8
    )
    options = {
        "batch_size": args.batch_size,
        "segment_workers": args.workers,
        "seed": args.seed,
        "device": "cpu",  # the token embedding reads maps on the host
        "pin_memory": accelerator.device.type == "cuda",
    }
    train_loader = SubobjectLoader(
        train_rows, collator=collator, shuffle=True, drop_last=True, **options
    )
    padded = SubobjectCollator(cutter, text=text, pixels=pixels, columns=[], shape_size=8)
    val_loader = SubobjectLoader(val_rows[: args.val_rows], collator=padded, **options)

    rate = args.lr if args.llm is None else args.lr / 10
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    schedule = get_cosine_schedule_with_warmup(optimizer, args.steps // 20, args.steps)
    model, optimizer, train_loader = accelerator.prepare(model, optimizer, train_loader)
    progress = Progress()
    accelerator.register_for_checkpointing(schedule, progress)
    log = args.out / "log.jsonl"
    if args.resume:
        accelerator.load_state(str(args.out / "checkpoint"))
        # What was logged after the checkpoint is about to be done again.
        kept = [e for e in map(json.loads, log.open()) if e["step"] <= progress.step]
    else:
        kept = []
        text.save_pretrained(args.out / "text")
    if accelerator.is_main_process:
        log.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
        size = sum(p.numel() for p in model.parameters()) / 1e6
        print(f"{len(train_rows)} rows, {size:.1f} M parameters, from step {progress.step}")

    def record(**entry: Any) -> None:
        if accelerator.is_main_process:
            with log.open("a") as file:
                file.write(json.dumps({"step": progress.step, **entry}) + "\n")

    stop = min(args.steps, args.stop_after or args.steps)
    model.train()
    while progress.step < stop:
        for pending in train_loader:
            loss = model(to_device(pending, accelerator.device)).loss
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            progress.step += 1
            record(loss=accelerator.reduce(loss.detach(), "mean").item())
            if progress.step % args.eval_every == 0 or progress.step == args.steps:
                perplexity = validate(model, val_loader, accelerator)
                record(perplexity=perplexity)
                accelerator.print(f"step {progress.step}: perplexity {perplexity:.3f}", flush=True)
            if progress.step % args.save_every == 0:
                accelerator.save_state(str(args.out / "checkpoint"))
            if progress.step >= stop:
                break

    stats = train_loader.stats()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        print(stats)
        plot(log, args.out / "curve.png")
        writer = SubobjectCollator(cutter, text=text.for_generation(), pixels=pixels, shape_size=8)
        bare = accelerator.unwrap_model(model)
        write_samples(bare, val_rows[:6], writer, text.tokenizer, args.out / "samples.txt")
    train_loader.close()
    val_loader.close()
    accelerator.end_training()


if __name__ == "__main__":
    main()
