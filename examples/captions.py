"""Photos with captions, from the folders in which COCO and Flickr8k are distributed."""

from __future__ import annotations

import csv
import json
import os
import random
from collections import defaultdict
from pathlib import Path

__all__ = ["caption_rows", "data_folder"]


def data_folder(given: Path | None) -> Path:
    """Folder that was given, or $SUBTOK_TEST_DATA, or ``shared/data`` beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = given or Path(os.environ.get("SUBTOK_TEST_DATA", beside))
    if not folder.is_dir():
        raise SystemExit(f"{folder} does not exist: give --data FOLDER or set SUBTOK_TEST_DATA")
    return folder


def _by_image(folder: Path) -> dict[str, list[str]]:
    """Captions of each image file below a folder, in a fixed order."""
    found: dict[str, list[str]] = defaultdict(list)
    for table in sorted(folder.glob("**/captions.csv")):
        with table.open(newline="") as file:
            for row in csv.DictReader(file):
                found[str(table.parent / "images" / row["image"])].append(row["caption"].strip())
    for table in sorted(folder.glob("**/captions.json")):
        content = json.loads(table.read_text())
        names = {image["id"]: image["file_name"] for image in content["images"]}
        for note in content["annotations"]:
            path = str(table.parent / "images" / names[note["image_id"]])
            found[path].append(note["caption"].strip())
    return {path: found[path] for path in sorted(found) if os.path.exists(path)}


def caption_rows(
    folder: Path, *, per_image: int = 5, held_out: float = 0.1, seed: int = 0
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Rows ``{"image", "caption"}`` to train on and to validate on; no image is in both."""
    captions = _by_image(folder)
    if not captions:
        raise SystemExit(f"no captions.csv or captions.json with its images below {folder}")
    names = list(captions)
    random.Random(seed).shuffle(names)
    cut = max(1, round(held_out * len(names)))

    def rows(chosen: list[str]) -> list[dict[str, str]]:
        # First captions of all images first, so that a prefix of the rows covers many images.
        return [
            {"image": name, "caption": captions[name][k]}
            for k in range(per_image)
            for name in chosen
            if k < len(captions[name])
        ]

    return rows(names[cut:]), rows(names[:cut])
