"""Referring expressions on COCO's images: several sentences for one object."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from subtok_data.annotations import CocoObject, read_coco, read_json
from subtok_data.data.regions.readers.table import ImageEntry, RegionEntry, RegionRows
from subtok_data.errors import ConfigError

__all__ = ["ReferringRegions"]


class ReferringRegions(RegionRows):
    """Objects that RefCOCO, RefCOCO+ or RefCOCOg refer to, with all sentences of each.

    Parameters
    ----------
    references : str or Path
        JSON list of ``{"ref_id", "ann_id", "image_id", "split", "sentences": [{"sent"} or str]}``.
        The published ``refs(…).p`` is a pickle, which this library does not load: write it as JSON
        once.
    instances : str or Path
        COCO's instances file that ``ann_id`` is from.
    images : str or Path
        Folder of the images.
    split : str, optional
        Take only references of this split.
    masks : bool, optional
        Read the objects' masks too.

    Raises
    ------
    ConfigError
        If a file is not of this layout, or an object is missing; the message names the reference.
    """

    def __init__(
        self,
        references: str | Path,
        instances: str | Path,
        images: str | Path,
        *,
        split: str | None = None,
        masks: bool = True,
    ) -> None:
        if Path(references).suffix in (".p", ".pkl", ".pickle"):
            raise ConfigError(
                f"{references} is a pickle, which may run any code when it is loaded: write it as "
                "JSON once, json.dump(pickle.load(file), …), where you trust it"
            )
        listed = read_json(references, "a JSON list of references")
        if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
            raise ConfigError(f"{references}: expected a list of references")
        file = read_coco(instances)
        objects = {one.id: one for _, one in file.objects()}
        regions: dict[Any, list[RegionEntry]] = defaultdict(list)
        for one in listed:
            if split is None or one.get("split") == split:
                region = _region(one, objects, references, masks=masks)
                regions[one.get("image_id")].append(region)
        lost = [name for name in regions if name not in file.images]
        if lost:
            raise ConfigError(f"{references}: image {lost[0]!r} is not in {instances}")
        taken = [
            ImageEntry(
                name, str(Path(images) / file.images[name].file_name), file.images[name].size
            )
            for name in regions
        ]
        super().__init__(references, taken, regions)


def _region(
    reference: Mapping[str, Any],
    objects: Mapping[Any, CocoObject],
    path: str | Path,
    *,
    masks: bool,
) -> RegionEntry:
    name = reference.get("ref_id", reference.get("ann_id"))
    found = objects.get(reference.get("ann_id"))
    if found is None:
        raise ConfigError(
            f"{path}: reference {name!r} is of object {reference.get('ann_id')!r}, which the "
            "instances file does not list"
        )
    sentences = [
        one if isinstance(one, str) else str(one.get("sent") or one.get("raw") or "")
        for one in reference.get("sentences", [])
    ]
    texts = [text.strip() for text in sentences if text.strip()]
    if not texts:
        raise ConfigError(f"{path}: reference {name!r} has no sentence")
    return RegionEntry(name, found.box, texts, found.segmentation if masks else None)
