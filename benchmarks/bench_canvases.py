"""What a coarser canvas costs and gives: images per forward, pixels, and the quality of maps.

    python benchmarks/bench_canvases.py --images COCO/images
    python benchmarks/bench_canvases.py --bsds BSDS500 --threads 1

The first counts how the images of shuffled batches fall onto canvases at each step, at the sizes
that the tokenizer gives them; the network does not run. The second runs the packaged weights on the
60 of the 100 validation photos that chose nothing (2, 3 or 4 modulo 5 in the sorted list).
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from subtok_data.boundary import BoundaryModel
from subtok_data.boundary.padding import balanced, canvas_of, group
from subtok_data.evaluation import MergeCutter, evaluate, read_bsds
from subtok_data.images import canvas_size

STEPS = (32, 64, 128, 256)
MOST = 16
"""Images of one forward at most, as ``batch_size``."""


def count_forwards(folder: Path) -> None:
    sizes = []
    for path in sorted(folder.iterdir()):
        with Image.open(path) as image:
            sizes.append((image.height, image.width))
    print(f"{len(sizes)} images of {folder}, 20 epochs of shuffled batches")
    print("| longest side | canvas_step | canvases | batch 8 | batch 32 | more pixels |")
    print("|---|---|---|---|---|---|")
    for side in (512, 768):
        images = [
            np.broadcast_to(np.zeros(3, np.uint8), (*canvas_size(*size, side), 3)) for size in sizes
        ]
        own = sum(image.shape[0] * image.shape[1] for image in images)
        for step in STEPS:
            canvases = [canvas_of(image, step) for image in images]
            more = sum(height * width for height, width in canvases) / own - 1
            per_forward = []
            for batch in (8, 32):
                order, found = np.random.default_rng(0), []
                for _ in range(20):
                    row = order.permutation(len(images))
                    for at in range(0, len(row) - batch + 1, batch):
                        members = group([images[i] for i in row[at : at + batch]], step).values()
                        found.append(sum(len(balanced(one, MOST)) for one in members))
                per_forward.append(batch / np.mean(found))
            print(
                f"| {side} | {step} | {len(set(canvases))} | {per_forward[0]:.2f} | "
                f"{per_forward[1]:.2f} | {more:+.1%} |"
            )


def measure_quality(root: Path, limit: int | None) -> None:
    photos = read_bsds(root, "val")
    chosen = [one for place, one in enumerate(photos.readers) if place % 5 >= 2]
    photos = dataclasses.replace(photos, readers=chosen).every(limit)
    models = {str(s): BoundaryModel.from_pretrained(device="cpu", canvas_step=s) for s in STEPS}
    report = evaluate(
        photos,
        {name: lambda image, m=model: m.predict([image])[0] for name, model in models.items()},
        [MergeCutter(name, "num_tokens", [60]) for name in models],
        original=False,
    )
    print(f"{report.images} photos of {photos.name}, {models['32'].dtype}")
    print("| canvas_step | ODS | OIS | AP | ASA | covering | recall |")
    print("|---|---|---|---|---|---|---|")
    for (name, edges), row in zip(report.boundaries.items(), report.tokens, strict=True):
        cut = row.scores
        figures = (edges.ods, edges.ois, edges.ap, cut.asa, cut.covering, cut.boundary_recall)
        print(f"| {name} | " + " | ".join(f"{figure:.3f}" for figure in figures) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder of images: count forwards")
    parser.add_argument("--bsds", type=Path, help="folder of BSDS500: measure quality")
    parser.add_argument("--limit", type=int, help="so many photos, evenly spread")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.images:
        count_forwards(options.images)
    if options.bsds:
        measure_quality(options.bsds, options.limit)


if __name__ == "__main__":
    main()
