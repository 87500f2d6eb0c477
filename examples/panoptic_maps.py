"""COCO's panoptic maps as label maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["panoptic_rows"]

OPEN_LICENSES = (4, 5, 7)
"""CC BY, CC BY-SA, and no known restrictions: photos that may be shown elsewhere."""


def _word(name: str) -> str:
    """Name of a category as one would say it: 'wall-other-merged' is a wall."""
    for suffix in ("-merged", "-other", "-stuff"):
        name = name.replace(suffix, "")
    return name.replace("-", " ")


def panoptic_rows(folder: Path, limit: int) -> tuple[list[str], list[dict[str, Any]]]:
    """Category words, and rows ``{"image", "labels", "name", "open"}``.

    Labels are (H, W) int16 places in the list of categories, −1 where nothing is annotated.
    """
    table = folder / "coco" / "panoptic.json"
    if not table.is_file():
        raise SystemExit(f"no {table}: give --data FOLDER with COCO's panoptic maps, or --demo")
    content = json.loads(table.read_text())
    categories = [_word(category["name"]) for category in content["categories"]]
    place = {category["id"]: n for n, category in enumerate(content["categories"])}
    images = {image["id"]: image for image in content["images"]}
    rows: list[dict[str, Any]] = []
    for note in content["annotations"][:limit]:
        image = images[note["image_id"]]
        with Image.open(folder / "coco" / "panoptic" / note["file_name"]) as file:
            colours = np.asarray(file.convert("RGB")).astype(np.int64)
        segments = colours @ (1, 256, 65536)
        labels = np.full(segments.shape, -1, np.int16)
        for segment in note["segments_info"]:
            labels[segments == segment["id"]] = place[segment["category_id"]]
        path = folder / "coco" / "images" / image["file_name"]
        known = image["license"] in OPEN_LICENSES
        rows.append(
            {"image": str(path), "labels": labels, "name": image["file_name"], "open": known}
        )
    return categories, rows
