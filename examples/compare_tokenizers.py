"""Compare patches, superpixels and subobjects at equal budgets, by what a VLM learns from them.

The paper's extrinsic experiment at the scale of a laptop: same model, same data, same budget of
visual tokens, several seeds; the measure is the perplexity of held-out captions.

    python examples/compare_tokenizers.py --data scenes --out out/scenes
    python examples/compare_tokenizers.py --data FOLDER --out out/photos   # Flickr8k or COCO

A run that is done is in ``results.jsonl`` and is not repeated: interrupt the command as you like.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captions import caption_rows
from scenes import SceneDataset
from transformers import get_cosine_schedule_with_warmup
from vlm import VLM, small_encoder, small_llm, train_tokenizer, word_tokenizer

from subtok_data import (
    EPOCSegmenter,
    PatchSegmenter,
    SubobjectCollator,
    SubobjectTokenizer,
    SuperpixelSegmenter,
    TokenEmbedding,
)
from subtok_data.batch import PixelConfig
from subtok_data.text import TextConfig

Row = dict[str, Any]
STRIDE = 4  # of the small encoder


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", default="scenes", help="'scenes', or a folder of captioned photos"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of results")
    parser.add_argument("--kinds", nargs="+", default=["patch", "slic", "epoc"])
    parser.add_argument("--budgets", nargs="+", type=int, default=[16])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--train", type=int, default=2400, help="training rows")
    parser.add_argument("--val", type=int, default=300, help="held-out rows")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--size", type=int, default=128, help="side of the image that is cut")
    parser.add_argument("--pixels", type=int, default=64, help="side of the encoder's input")
    parser.add_argument("--hidden", type=int, default=96)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def make_tokenizer(kind: str, budget: int, size: int) -> SubobjectTokenizer:
    """Tokenizer with at most ``budget`` tokens on square pictures of ``size`` pixels."""
    if kind == "patch":
        side = -(-size // math.isqrt(budget))  # rounded up: a narrow last column would be one more
        return SubobjectTokenizer(PatchSegmenter(side), size=size, square=True, order="raster")
    if kind == "slic":
        # A little too many, then merged: SLIC alone only comes near the number it is given.
        segmenter = SuperpixelSegmenter("slic", n_segments=round(1.3 * budget))
        return SubobjectTokenizer(segmenter, max_tokens=budget, size=size, square=True)
    return SubobjectTokenizer(EPOCSegmenter(), num_tokens=budget, size=size, square=True)


def load_rows(args: argparse.Namespace) -> tuple[list[Row], list[Row]]:
    """Rows ``{"image", "caption"}`` for training and validation; no image is in both."""
    if args.data == "scenes":
        parts = [(args.train, 1), (args.val, 2)]
        scenes = [SceneDataset(length, seed=seed, size=args.size) for length, seed in parts]
        return [scenes[0][i] for i in range(args.train)], [scenes[1][i] for i in range(args.val)]
    train_rows, val_rows = caption_rows(Path(args.data))
    return train_rows[: args.train], val_rows[: args.val]


def make_batches(
    rows: list[Row], tokenizer: SubobjectTokenizer, text: TextConfig, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """All batches, tokenized once: every seed and epoch sees the same ones in another order."""
    pixels = PixelConfig(size=(args.pixels, args.pixels), dtype="uint8")
    collator = SubobjectCollator(tokenizer, text=text, pixels=pixels, columns=[], shape_size=8)
    size = args.batch_size
    order = list(range(len(rows)))
    random.Random(0).shuffle(order)
    batches: list[dict[str, Any]] = []
    pooling = TokenEmbedding(1, 1)
    for first in range(0, len(rows), size):
        batch = dict(collator([rows[i] for i in order[first : first + size]]))
        cells = args.pixels // STRIDE
        batches.append({**batch, "token_cells": pooling.cells_of(batch, (cells, cells))})
    return batches


def evaluate(model: VLM, batches: list[dict[str, Any]]) -> float:
    """Perplexity per text token over all batches."""
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            labels = int((batch["labels"][:, 1:] != -100).sum())
            total += float(model(batch).loss) * labels
            count += labels
    return math.exp(total / count)


def train(
    train_batches: list[dict[str, Any]],
    val_batches: list[dict[str, Any]],
    text: TextConfig,
    seed: int,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Train one model; returns its validation perplexity after every epoch."""
    torch.manual_seed(seed)
    order = random.Random(seed)
    llm = small_llm(len(text.tokenizer), args.hidden, args.layers)
    model = VLM(llm, small_encoder(48), 48, text.placeholder_id)
    steps = args.epochs * len(train_batches)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05)
    schedule = get_cosine_schedule_with_warmup(optimizer, max(1, steps // 20), steps)
    curve: list[float] = []
    for _ in range(args.epochs):
        model.train()
        order.shuffle(train_batches)
        for batch in train_batches:
            optimizer.zero_grad()
            model(batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        curve.append(evaluate(model, val_batches))
        print(f"  epoch {len(curve)}: {curve[-1]:.4f}", flush=True)
    blind = [{**b, "pixel_values": torch.zeros_like(b["pixel_values"]) + 128} for b in val_batches]
    return {
        "perplexity": curve[-1],
        "best": min(curve),
        "curve": curve,
        "blind": evaluate(model, blind),
    }


def report(results: list[dict[str, Any]], out: Path) -> None:
    """Write the table and the plot of all results."""
    groups: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        groups[result["budget"], result["kind"]].append(result)
    lines = [
        "| budget | tokenizer | tokens | perplexity, mean ± sd | seeds |",
        "|---|---|---|---|---|",
    ]
    for (budget, kind), group in sorted(groups.items()):
        values = np.array([r["perplexity"] for r in group])
        spread = values.std(ddof=1) if len(values) > 1 else float("nan")
        tokens = np.mean([r["tokens"] for r in group])
        score = f"{values.mean():.4f} ± {spread:.4f}"
        lines.append(f"| {budget} | {kind} | {tokens:.1f} | {score} | {len(group)} |")
    (out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    budgets = sorted({budget for budget, _ in groups})
    figure, axes = pyplot.subplots(
        1, len(budgets), figsize=(4.5 * len(budgets), 3.4), squeeze=False
    )
    for axis, budget in zip(axes[0], budgets, strict=True):
        for kind, colour in zip(("patch", "slic", "epoc"), ("C7", "C1", "C0"), strict=True):
            curves = [r["curve"] for r in groups.get((budget, kind), [])]
            if not curves:
                continue
            values = np.array(curves)
            epochs = np.arange(1, values.shape[1] + 1)
            axis.plot(epochs, values.mean(0), color=colour, label=kind)
            axis.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.25)
        axis.set(title=f"{budget} visual tokens", xlabel="epoch")
        axis.legend()
    axes[0][0].set_ylabel("validation perplexity")
    figure.tight_layout()
    figure.savefig(out / "curves.png", dpi=120)


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / "results.jsonl"
    results = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {(r["budget"], r["kind"], r["seed"]) for r in results}
    train_rows, val_rows = load_rows(args)
    captions = [row["caption"] for row in train_rows]
    words = args.data == "scenes"
    language = word_tokenizer(captions) if words else train_tokenizer(captions, 1200)
    text = TextConfig(language, caption="caption")
    for budget in args.budgets:
        for kind in args.kinds:
            missing = [seed for seed in args.seeds if (budget, kind, seed) not in done]
            if not missing:
                continue
            tokenizer = make_tokenizer(kind, budget, args.size)
            start = time.perf_counter()
            batches = make_batches(train_rows, tokenizer, text, args)
            held_out = make_batches(val_rows, tokenizer, text, args)
            cut = (time.perf_counter() - start) / (len(train_rows) + len(val_rows))
            tokens = torch.cat([b["num_visual_tokens"] for b in batches]).float().mean().item()
            print(f"{kind} {budget}: {tokens:.1f} tokens, {1000 * cut:.1f} ms an image", flush=True)
            for seed in missing:
                start = time.perf_counter()
                result = train(batches, held_out, text, seed, args)
                result |= {"budget": budget, "kind": kind, "seed": seed, "tokens": tokens}
                result |= {"seconds": time.perf_counter() - start}
                results.append(result)
                with log.open("a") as file:
                    file.write(json.dumps(result) + "\n")
    report(results, args.out)


if __name__ == "__main__":
    main()
