"""How well prompts find annotated objects: mean IoU of masks and of tokens on COCO.

    python benchmarks/bench_prompters.py --coco FOLDER --mobile-sam package/dist
    python benchmarks/bench_prompters.py --coco FOLDER --sam facebook/sam-vit-base

FOLDER holds ``instances.json`` and ``images/``. Objects are those of 400 pixels or more that are no
crowd; boxes are COCO's, points lie as deep inside the object as possible.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mobile_sam import MobileSAMPrompts
from scipy.ndimage import distance_transform_edt

from subtok_data import EPOCSegmenter, PromptedSegmenter, Prompts, SubobjectTokenizer
from subtok_data.images import to_rgb
from subtok_data.segment import RLEMasks, segmentation_runs
from subtok_data.segmenters import EfficientSAMPrompter, SAMPrompter

SMALLEST = 400


def annotated(folder: Path, count: int, licences: set[int] | None):
    """Photos, masks of their objects, and boxes."""
    coco = json.loads((folder / "instances.json").read_text())
    objects = defaultdict(list)
    for annotation in coco["annotations"]:
        if not annotation.get("iscrowd"):
            objects[annotation["image_id"]].append(annotation)
    for image in coco["images"]:
        if licences is not None and image["license"] not in licences:
            continue
        size = (image["height"], image["width"])
        own = objects[image["id"]]
        masks = RLEMasks.from_runs(
            [segmentation_runs(annotation["segmentation"], size) for annotation in own], size
        )
        kept = np.flatnonzero(masks.areas >= SMALLEST)
        if len(kept) == 0:
            continue
        boxes = np.array([own[index]["bbox"] for index in kept], np.float64)
        yield to_rgb(str(folder / "images" / image["file_name"])), masks.take(kept), boxes
        count -= 1
        if count == 0:
            return


def deepest_point(mask: np.ndarray) -> tuple[float, float]:
    depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return x + 0.5, y + 0.5


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    return (first & second).sum() / (first | second).sum()


def score_tokens(tokenizer: SubobjectTokenizer, photo, masks: RLEMasks, prompts: Prompts):
    tokens = tokenizer(photo, prompts=prompts)
    resized = masks.resized(tokens.token_map.shape)
    return [
        overlap(tokens.token_map == token, resized.mask(index))
        for index, token in enumerate(tokens.prompt_tokens)
    ]


def make_prompters(args: argparse.Namespace) -> dict[str, Any]:
    """Prompters without and with refinement, on one model that encodes a photo once."""
    if args.efficient_sam:
        prompter = EfficientSAMPrompter(args.efficient_sam)
        remember(prompter.decoder)
        return {"": prompter}
    decoder = (
        MobileSAMPrompts(args.mobile_sam) if args.mobile_sam else SAMPrompter(args.sam).decoder
    )
    remember(decoder)
    return {"": SAMPrompter(decoder), ", refined": SAMPrompter(decoder, refine_rounds=1)}


def remember(decoder: Any) -> None:
    """Keep the embedding of the last photo: all kinds of prompts ask for it."""
    encode, last = decoder.encode, {}

    def encode_once(crops):
        (crop,) = crops
        key = hash(crop.tobytes())
        if key not in last:
            last.clear()
            last[key] = encode(crops)
        return last[key]

    decoder.encode = encode_once


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--coco", type=Path, required=True)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--mobile-sam", metavar="DIR")
    model.add_argument("--sam", metavar="PATH")
    model.add_argument("--efficient-sam", metavar="PATH")
    parser.add_argument("--images", type=int, default=30)
    parser.add_argument("--licences", type=int, nargs="+", help="only photos with these")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ways = make_prompters(args)
    tokenizers = {
        "token of its box, no model": SubobjectTokenizer(PromptedSegmenter(), max_tokens=64),
        "token of its box, with the model": SubobjectTokenizer(
            PromptedSegmenter(EPOCSegmenter(), prompter=ways[""]), max_tokens=64
        ),
    }
    found: dict[str, list[float]] = defaultdict(list)
    started = time.perf_counter()
    photos = 0
    licences = None if args.licences is None else set(args.licences)
    for photo, masks, boxes in annotated(args.coco, args.images, licences):
        photos += 1
        size = photo.shape[:2]
        objects = [masks.mask(index) for index in range(len(masks))]
        points = [deepest_point(one) for one in objects]
        asked = {
            "box": Prompts.of(size, boxes=boxes, box_format="xywh"),
            "point": Prompts.of(size, points=points),
            "box and point": Prompts.of(size, boxes=boxes, box_format="xywh", points=points),
        }
        regions = asked["box"].regions()
        found["the box itself"] += [overlap(regions.mask(i), one) for i, one in enumerate(objects)]
        for kind, prompts in asked.items():
            for how, prompter in ways.items():
                (answer,) = prompter.prompt_masks([photo], [prompts])
                found[kind + how] += [overlap(answer.mask(i), one) for i, one in enumerate(objects)]
        for name, tokenizer in tokenizers.items():
            found[name] += score_tokens(tokenizer, photo, masks, asked["box"])
    print(f"{photos} photos in {time.perf_counter() - started:.0f} s\n")
    print("| prompt | objects | mean IoU | above 0.5 |\n|---|---|---|---|")
    for name, scores in found.items():
        above = np.mean(np.array(scores) > 0.5)
        print(f"| {name} | {len(scores)} | {np.mean(scores):.2f} | {above:.0%} |")


if __name__ == "__main__":
    main()
