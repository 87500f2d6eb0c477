"""Pictures of coloured rectangles, each with its name: what a region shows can be seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 40),
    "blue": (40, 60, 230),
    "yellow": (240, 230, 40),
    "violet": (170, 40, 220),
    "cyan": (30, 220, 220),
    "black": (10, 10, 10),
    "white": (250, 250, 250),
}
GREY = (128, 128, 128)


def coloured_row(seed: int, *, most: int = 8, side: tuple[int, int] = (40, 140)) -> dict[str, Any]:
    """One picture, with rectangles of different colours that do not touch."""
    rng = np.random.default_rng(seed)
    height, width = (int(rng.integers(*side)) for _ in range(2))
    image = np.full((height, width, 3), GREY, np.uint8)
    cells = rng.permutation(9)[: int(rng.integers(0, most + 1))]
    names = rng.permutation(list(COLOURS))[: len(cells)]
    regions = []
    for number, (cell, name) in enumerate(zip(cells.tolist(), names.tolist(), strict=True)):
        y0, x0 = cell // 3 * (height // 3), cell % 3 * (width // 3)
        h, w = (int(rng.integers(5, side // 3 - 2)) for side in (height, width))
        image[y0 : y0 + h, x0 : x0 + w] = COLOURS[name]
        phrases = [f"the {name} one", f"{name} {number}", f"a box of {name}"]
        regions.append(
            {"region_id": 100 * seed + number, "phrases": phrases}
            | {"x": x0, "y": y0, "width": w, "height": h}
        )
    return {"image": image, "image_id": seed, "regions": regions}


def colour_of(text: str) -> tuple[int, int, int]:
    """Colour that a text names."""
    return next(colour for name, colour in COLOURS.items() if name in text)


def write_coco(folder: Path, rows: list[dict[str, Any]], kind: str = "polygon") -> Path:
    """Write rows as a COCO instances file, their images as PNG."""
    names = list(COLOURS)
    images, annotations = [], []
    for number, row in enumerate(rows):
        height, width = row["image"].shape[:2]
        Image.fromarray(row["image"]).save(folder / f"{number}.png")
        images.append(
            {"id": number, "file_name": f"{number}.png", "height": height, "width": width}
        )
        for region in row["regions"]:
            x, y, w, h = (region[side] for side in ("x", "y", "width", "height"))
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            mask = np.zeros((height, width), np.uint8)
            mask[y : y + h, x : x + w] = 1
            segmentation = {"polygon": [polygon], "none": None, "runs": _runs(mask)}[kind]
            name = next(c for c in names if c in region["phrases"][0])
            annotations.append(
                {
                    "id": region["region_id"],
                    "image_id": number,
                    "category_id": names.index(name),
                    "bbox": [x, y, w, h],
                    "iscrowd": 0,
                }
                | ({} if segmentation is None else {"segmentation": segmentation})
            )
    categories = [{"id": place, "name": name} for place, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = folder / f"{kind}.json"
    path.write_text(json.dumps(content))
    return path


def _runs(mask: np.ndarray) -> dict[str, Any]:
    flat = mask.ravel(order="F")
    turns = np.flatnonzero(np.diff(flat)) + 1
    starts = [0, 0] if flat[0] else [0]
    counts = np.diff(np.concatenate([starts, turns, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": counts}
