"""Rows with regions for caption_regions.py: COCO's files in two parts, and drawn scenes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from scenes import draw_scene

from subtok_data.data import CocoRegions, PanopticRegions, Regions

__all__ = ["Part", "SceneRegions", "ids_of_licences", "split_coco"]


class Part:
    """Some rows of a reader."""

    def __init__(self, rows: Any, indices: list[int]) -> None:
        self.rows, self.indices = rows, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[self.indices[index]]

    def regions_of(self, index: int) -> Regions:
        """Regions of a row, without its picture."""
        return self[index]["regions"]


def split_coco(
    folder: Path, *, held_out: float = 0.2, seed: int = 0
) -> tuple[list[Part], list[Part]]:
    """Parts of COCO's instances and panoptic files to train on and to hold out, by picture."""
    coco = folder / "coco"
    if not (coco / "instances.json").is_file():
        raise SystemExit(f"no coco/instances.json below {folder}: give --data FOLDER, or --demo")
    readers = [
        CocoRegions(coco / "instances.json", coco / "images"),
        PanopticRegions(coco / "panoptic.json", coco / "panoptic", coco / "images"),
    ]
    train: list[Part] = []
    test: list[Part] = []
    for rows in readers:
        order = list(range(len(rows)))
        random.Random(seed).shuffle(order)
        cut = round(held_out * len(order))
        train.append(Part(rows, order[cut:]))
        test.append(Part(rows, order[:cut]))
    return train, test


def ids_of_licences(folder: Path, licences: list[int]) -> set[int]:
    """Ids of COCO's pictures of these licences."""
    files = [folder / "coco" / name for name in ("instances.json", "panoptic.json")]
    images = [one for file in files for one in json.loads(file.read_text())["images"]]
    return {one["id"] for one in images if one["license"] in licences}


class SceneRegions:
    """Drawn scenes; every object is a region with its description: "a small red metal cube"."""

    def __init__(self, length: int, *, seed: int = 0, size: int = 192) -> None:
        self.length, self.seed, self.size = length, seed, size

    def __len__(self) -> int:
        return self.length

    def regions_of(self, index: int) -> Regions:
        """Boxes and descriptions of the objects of a scene."""
        things = draw_scene(self.seed, index, 8)[1]
        boxes = [(t.x - t.radius, t.y - t.radius, t.x + t.radius, t.y + t.radius) for t in things]
        phrases = [(f"a {t.size} {t.color} {t.material} {t.shape}",) for t in things]
        corners = np.array(boxes, np.float32).reshape(-1, 4) * self.size
        return Regions(corners, phrases, size=(self.size, self.size))

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        image = draw_scene(self.seed, index, self.size)[0]
        return {"image": image, "regions": self.regions_of(index)}
