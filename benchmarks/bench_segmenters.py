"""All segmenters over the same photos: images per second, tokens, coverage, bytes of evidence.

    python benchmarks/bench_segmenters.py --photos FOLDER --images 8
    python benchmarks/bench_segmenters.py --mobile-sam package/dist --only mobile-sam epoc
    python benchmarks/bench_segmenters.py --model sam=FOLDER --model mask2former=FOLDER
    python benchmarks/bench_segmenters.py --published-sizes --images 2 --only sam sam2 mask2former

Models whose weights cannot be had here run with random ones. ``tiny`` networks (those of the
tests) cost nothing themselves: what is left is everything around the model. With
``--published-sizes`` the networks have the published architecture, still with random weights: then
the time is that of the model, and tokens mean nothing. ``--model NAME=PATH`` takes real ones.
Times are processor time, so that what else runs on the machine counts little; with one thread that
is the time on an idle core. Random weights are sure of nothing: for them the filters by predicted
score are off.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from mobile_sam import mobile_sam_segmenter

from subtok_data import (
    EPOCSegmenter,
    ImageFiles,
    PanopticSegmenter,
    PatchSegmenter,
    SAMEdgeSegmenter,
    SAMSegmenter,
    SubobjectTokenizer,
    SuperpixelSegmenter,
)
from subtok_data.segment import Prompts, RLEMasks, segment_image
from subtok_data.segmenters import (
    EfficientSAMPrompter,
    EfficientSAMSegmenter,
    GenerationOptions,
    PromptedSegmenter,
    SAMPrompter,
    takes_prompts,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers import tiny_efficient_sam, tiny_panoptic, tiny_sam

SAM_LIKE = ("sam", "sam2", "edgetam")
PANOPTIC = ("mask2former", "oneformer", "eomt")
BATCH = 4


@dataclass(frozen=True)
class Row:
    segmenter: str
    weights: str
    images_per_s: float
    infer_ms: float
    segment_ms: float
    tokens: float
    fewest: int
    most: int
    found: float
    coverage: float
    evidence_kb: float


class Contenders:
    """Segmenters by name, with what their weights are; models are made when asked for."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args = args
        self.folder = folder
        self.given = dict(one.split("=", 1) for one in args.model)

    def __iter__(self) -> Iterator[tuple[str, Callable[[], tuple[Any, str]]]]:
        yield "patch", lambda: (PatchSegmenter(), "none")
        yield "slic", lambda: (SuperpixelSegmenter("slic"), "none")
        yield "felzenszwalb", lambda: (SuperpixelSegmenter("felzenszwalb"), "none")
        yield "epoc", lambda: (EPOCSegmenter(device="cpu"), "packaged")
        yield "epoc + boxes", lambda: (PromptedSegmenter(EPOCSegmenter(device="cpu")), "packaged")
        for name in SAM_LIKE:
            yield name, lambda name=name: self.sam(name)
        yield "sam + boxes", self.sam_boxes
        yield "sam-edges", self.edges
        for form in ("torchscript", "onnx"):
            yield f"efficient-sam {form}", lambda form=form: self.efficient(form)
        yield "efficient-sam + boxes", self.efficient_boxes
        for name in PANOPTIC:
            yield name, lambda name=name: self.panoptic(name)
        if self.args.mobile_sam:
            yield "mobile-sam", self.mobile

    def model(self, name: str) -> tuple[Path | str, str]:
        """Where a model lies, and what its weights are."""
        if name in self.given:
            return self.given[name], "given"
        folder = self.folder / name
        how = "published size" if self.args.published_sizes else "tiny"
        if not folder.exists():
            folder.mkdir()
            torch.manual_seed(1)
            if self.args.published_sizes:
                save_published(name, folder)
            else:
                (tiny_sam if name in SAM_LIKE else tiny_panoptic).save_model(name, folder)
        return folder, f"random, {how}"

    def options(self, weights: str) -> GenerationOptions:
        points = self.args.points
        if weights == "given":
            return GenerationOptions(points_per_side=points)
        return GenerationOptions(
            points_per_side=points, iou_threshold=0, stability_threshold=0, box_nms=0.5
        )

    def sam(self, name: str) -> tuple[Any, str]:
        path, weights = self.model(name)
        return SAMSegmenter(path, options=self.options(weights), device="cpu"), weights

    def sam_boxes(self) -> tuple[Any, str]:
        path, weights = self.model("sam")
        prompter = SAMPrompter(path, device="cpu")
        return PromptedSegmenter(EPOCSegmenter(device="cpu"), prompter=prompter), weights

    def edges(self) -> tuple[Any, str]:
        path, weights = self.model("sam")
        return SAMEdgeSegmenter(path, points_per_side=self.args.points, device="cpu"), weights

    def efficient_file(self, form: str) -> tuple[Path | str, str]:
        name = f"efficient-sam-{form}"
        if name in self.given:
            return self.given[name], "given"
        model = tiny_efficient_sam.make_model()
        if form == "torchscript":
            file = self.folder / "efficient_sam.pt"
            return tiny_efficient_sam.save_torchscript(model, file), "random, tiny"
        return tiny_efficient_sam.save_onnx(model, self.folder), "random, tiny"

    def efficient(self, form: str) -> tuple[Any, str]:
        path, weights = self.efficient_file(form)
        options = None if weights == "given" else self.options(weights)
        return EfficientSAMSegmenter(path, options=options, device="cpu"), weights

    def efficient_boxes(self) -> tuple[Any, str]:
        path, weights = self.efficient_file("torchscript")
        prompter = EfficientSAMPrompter(path, device="cpu")
        return PromptedSegmenter(EPOCSegmenter(device="cpu"), prompter=prompter), weights

    def panoptic(self, name: str) -> tuple[Any, str]:
        path, weights = self.model(name)
        unsure = {"threshold": 0, "mask_threshold": 0, "overlap_threshold": 0}
        options = {} if weights == "given" else unsure
        return PanopticSegmenter(path, device="cpu", **options), weights

    def mobile(self) -> tuple[Any, str]:
        return mobile_sam_segmenter(self.args.mobile_sam, self.args.points), "its own"


def save_published(name: str, folder: Path) -> None:
    """Write a network with the architecture that its class has by default, untrained."""
    import transformers as t

    if name == "oneformer":
        tiny_panoptic.tiny_oneformer(folder)  # for the tokenizer; the rest is replaced
        file = folder / "processor_config.json"
        saved = json.loads(file.read_text())
        saved["image_processor"]["size"] = {"shortest_edge": 800, "longest_edge": 1333}
        file.write_text(json.dumps(saved))
    classes = {
        "sam": (t.SamConfig, t.SamModel, t.SamImageProcessor),
        "sam2": (t.Sam2Config, t.Sam2Model, t.Sam2ImageProcessor),
        "edgetam": (t.EdgeTamConfig, t.EdgeTamModel, t.Sam2ImageProcessor),
        "mask2former": (
            t.Mask2FormerConfig,
            t.Mask2FormerForUniversalSegmentation,
            t.Mask2FormerImageProcessor,
        ),
        "oneformer": (t.OneFormerConfig, t.OneFormerForUniversalSegmentation, None),
        "eomt": (t.EomtConfig, t.EomtForUniversalSegmentation, t.EomtImageProcessor),
    }
    config, model, processor = classes[name]
    options = {}
    if name == "edgetam":  # the class names no backbone by default
        levels = {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]}
        backbone = t.TimmWrapperConfig(architecture="repvit_m1", model_args=levels)
        options = {"vision_config": t.EdgeTamVisionConfig(backbone_config=backbone)}
    model(config(**options)).save_pretrained(folder)
    if processor is t.EomtImageProcessor:
        processor(do_pad=True).save_pretrained(folder)
    elif processor is not None:
        processor().save_pretrained(folder)


def five_boxes(size: tuple[int, int], seed: int) -> Prompts:
    random = np.random.default_rng(seed)
    height, width = size
    corners = random.uniform(0, 0.6, (5, 2))
    sides = random.uniform(0.1, 0.4, (5, 2))
    boxes = np.concatenate([corners, corners + sides], axis=1) * (width, height, width, height)
    return Prompts.of(size, boxes=boxes)


def found_share(evidence: Any, size: tuple[int, int]) -> float:
    """Share of the picture that the model itself gave to a region."""
    if "mask_counts" in evidence:
        masks = RLEMasks.from_evidence(evidence)
        union = np.zeros(size, bool)
        for index in range(len(masks)):
            union |= masks.mask(index)
        return float(union.mean())
    if "label_map" in evidence:
        return float((evidence["label_map"] >= 0).mean())
    return 1.0


def measure(name: str, segmenter: Any, weights: str, photos: list, size: int) -> Row:
    tokenizer = SubobjectTokenizer(segmenter, size=size)
    images = [tokenizer.canvas.fit(photo) for photo in photos]
    sizes = [image.shape[:2] for image in images]
    prompts = [
        five_boxes(size, seed) if takes_prompts(segmenter) else None
        for seed, size in enumerate(sizes)
    ]
    task = tokenizer.segment_task()

    def infer(start: int, stop: int) -> list:
        own = slice(start, stop)
        evidence = segmenter.infer(images[own], sizes[own], prompts[own])
        return [
            {**one, **({} if asked is None else asked.to_evidence())} | one
            for one, asked in zip(evidence, prompts[own], strict=True)
        ]

    segment_image(task, infer(0, 1)[0], sizes[0], images[0])  # loads and compiles
    started = time.process_time()
    evidence = [
        one for start in range(0, len(images), BATCH) for one in infer(start, start + BATCH)
    ]
    inferred = time.process_time()
    cuts = [
        segment_image(task, one, size, image)
        for one, size, image in zip(evidence, sizes, images, strict=True)
    ]
    ended = time.process_time()
    counts = [cut.num_tokens for cut in cuts]
    maps = [np.asarray(cut.token_map) for cut in cuts]
    return Row(
        segmenter=name,
        weights=weights,
        images_per_s=len(images) / (ended - started),
        infer_ms=1000 * (inferred - started) / len(images),
        segment_ms=1000 * (ended - inferred) / len(images),
        tokens=float(np.mean(counts)),
        fewest=min(counts),
        most=max(counts),
        found=float(np.mean([found_share(*pair) for pair in zip(evidence, sizes, strict=True)])),
        coverage=float(np.mean([(one >= 0).mean() for one in maps])),
        evidence_kb=float(
            np.mean([sum(array.nbytes for array in one.values()) for one in evidence]) / 1000
        ),
    )


def read_photos(folder: str | None, count: int) -> list:
    from subtok_data.images import to_rgb

    if folder is not None:
        files = ImageFiles(folder)
        places = np.linspace(0, len(files) - 1, min(count, len(files))).astype(int)
        return [to_rgb(files[int(place)]["image"]) for place in places]
    from skimage import data

    return [photo() for photo in (data.astronaut, data.chelsea, data.coffee, data.rocket)][:count]


def print_table(rows: list[Row]) -> None:
    print(
        "| segmenter | weights | images/s | infer ms | segment ms | tokens (mean, min–max) | "
        "found by the model | coverage | evidence kB |\n|---|---|---|---|---|---|---|---|---|"
    )
    for row in rows:
        speed = f"{row.images_per_s:.0f}" if row.images_per_s >= 10 else f"{row.images_per_s:.2g}"
        print(
            f"| {row.segmenter} | {row.weights} | {speed} | {row.infer_ms:.0f} | "
            f"{row.segment_ms:.1f} | {row.tokens:.0f} ({row.fewest}–{row.most}) | "
            f"{row.found:.0%} | {row.coverage:.0%} | {row.evidence_kb:.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", metavar="DIR", help="(default: four that scikit-image has)")
    parser.add_argument("--images", type=int, default=8, help="so many, evenly over the folder")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--points", type=int, default=16, help="side of SAM's grid (default 16)")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--mobile-sam", metavar="DIR", help="folder of encoder.onnx and sam.onnx")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these segmenters")
    parser.add_argument("--published-sizes", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    photos = read_photos(args.photos, args.images)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, make in Contenders(args, Path(folder)):
            if args.only is None or name in args.only:
                segmenter, weights = make()
                rows.append(measure(name, segmenter, weights, photos, args.size))
                print(f"{name}: {rows[-1].infer_ms:.0f} ms", file=sys.stderr)
    if args.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        print(f"{len(photos)} photos, longest side {args.size}, {args.threads} thread(s)\n")
        print_table(rows)


if __name__ == "__main__":
    main()
