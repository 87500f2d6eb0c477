"""COCO's JSON layout: instances, Objects365's boxes, panoptic maps. The class name is the text."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from subtok_data.annotations import CocoFile, check_pair_of_folders, read_coco, read_label_png
from subtok_data.data.regions.readers.table import ImageEntry, RegionEntry, RegionRows
from subtok_data.errors import ConfigError, PromptError
from subtok_data.segment import label_runs

__all__ = ["CocoRegions", "PanopticRegions", "plain_name"]

_CROWD = "regions of a crowd"
_LICENCE = "images of other licences"
_ORPHAN = "regions of images that are not taken"


def plain_name(name: str) -> str:
    """Write a category name as people say it: without COCO's marks of stuff and LVIS's underscores.

    Examples
    --------
    >>> plain_name("sky-other-merged"), plain_name("door-stuff"), plain_name("hair_dryer")
    ('sky', 'door', 'hair dryer')
    """
    for mark in ("-merged", "-other", "-stuff"):
        name = name.removesuffix(mark)
    return name.replace("-", " ").replace("_", " ")


class CocoRegions(RegionRows):
    """Objects of a COCO instances file, or of one with boxes only (Objects365, V3Det, LVIS).

    What is said of a region is the name of its category: weak supervision (SCA, section 3.3).

    Parameters
    ----------
    annotations : str or Path
        JSON file with ``images``, ``annotations`` and ``categories``.
    images : str or Path
        Folder that its ``file_name`` entries are in (for LVIS, the ends of ``coco_url``).
    masks : bool, optional
        Read ``segmentation`` (polygons or run lengths) where there is one; else boxes only.
    crowd : bool, optional
        Take regions of a crowd (``iscrowd``) too: their box holds many objects.
    phrase : callable, optional
        From the name of a category to the text.
    licences : collection of int, optional
        Ids of image licences to take; all by default.
    keep_empty : bool, optional
        Keep images without a region.

    Raises
    ------
    ConfigError
        If the file is not of this layout; the message names the file and the annotation.
    """

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path,
        *,
        masks: bool = True,
        crowd: bool = False,
        phrase: Callable[[str], str] = plain_name,
        licences: Collection[int] | None = None,
        keep_empty: bool = False,
    ) -> None:
        file = read_coco(annotations)
        taken = file.with_licences(licences)
        left_out = Counter({_LICENCE: len(file.images) - len(taken.images)})
        regions: dict[Any, list[RegionEntry]] = defaultdict(list)
        for image, one in taken.objects():
            if image not in taken.images:
                left_out[_ORPHAN] += 1
            elif one.crowd and not crowd:
                left_out[_CROWD] += 1
            else:
                mask = one.segmentation if masks else None
                regions[image].append(RegionEntry(one.id, one.box, [phrase(one.category)], mask))
        super().__init__(
            annotations,
            _image_entries(taken, images),
            regions,
            keep_empty=keep_empty,
            left_out=left_out,
        )


class PanopticRegions(RegionRows):
    """Segments of a COCO panoptic file and its PNG maps: things and stuff, every pixel once.

    Parameters
    ----------
    annotations : str or Path
        JSON file with ``images``, ``annotations`` (``segments_info``) and ``categories``.
    maps : str or Path
        Folder of the PNGs; a pixel's segment is R + 256 G + 65536 B.
    images : str or Path
        Folder of the images.
    crowd, phrase, licences, keep_empty : optional
        As for :class:`CocoRegions`.

    Raises
    ------
    ConfigError
        If the file is not of this layout; the message names the file and the annotation. If there
        is no folder of images, or the two are swapped.
    """

    def __init__(
        self,
        annotations: str | Path,
        maps: str | Path,
        images: str | Path,
        *,
        crowd: bool = False,
        phrase: Callable[[str], str] = plain_name,
        licences: Collection[int] | None = None,
        keep_empty: bool = False,
    ) -> None:
        file = read_coco(annotations)
        names = (
            (file.images[image].file_name, one.file_name)
            for image, one in file.panoptic_maps()
            if image in file.images
        )
        check_pair_of_folders(images, maps, names)
        taken = file.with_licences(licences)
        left_out = Counter({_LICENCE: len(file.images) - len(taken.images)})
        self._maps: dict[Any, str] = {}
        regions: dict[Any, list[RegionEntry]] = {}
        for image, one in taken.panoptic_maps():
            if image not in taken.images:
                left_out[_ORPHAN] += len(one.segments)
                continue
            self._maps[image] = str(Path(maps) / one.file_name)
            kept = [segment for segment in one.segments if crowd or not segment.crowd]
            left_out[_CROWD] += len(one.segments) - len(kept)
            regions[image] = [RegionEntry(s.id, s.box, [phrase(s.category)]) for s in kept]
        super().__init__(
            annotations,
            _image_entries(taken, images),
            regions,
            keep_empty=keep_empty,
            left_out=left_out,
        )

    def segmentations(self, index: int, part: slice) -> Sequence[Any]:
        """Give the masks of an image; its PNG is read when the first of them is."""
        path = self._maps[self._image_ids[index].as_py()]
        return _PanopticMasks(path, self._ids[part].to_pylist(), self.source)


class _PanopticMasks(Sequence[Any]):
    """Run lengths of the segments of one PNG, read on first use; boxes alone need none."""

    def __init__(self, path: str, wanted: list[int], source: str) -> None:
        self._path, self._wanted, self._source = path, wanted, source
        self._masks: list[Any] | None = None

    def __len__(self) -> int:
        return len(self._wanted)

    def __getitem__(self, region: Any) -> Any:
        if self._masks is None:
            self._masks = self._read()
        return self._masks[region]

    def _read(self) -> list[Any]:
        try:
            labels = read_label_png(self._path)
        except ConfigError as error:
            raise PromptError(f"panoptic map {error}") from error
        size = [int(side) for side in labels.shape]
        masks: list[Any] = []
        for name, runs in zip(self._wanted, label_runs(labels, self._wanted), strict=True):
            if len(runs) == 1:
                raise PromptError(
                    f"annotation {name!r} of {self._source} has no pixel in {self._path}"
                )
            masks.append({"size": size, "counts": runs})
        return masks


def _image_entries(file: CocoFile, folder: str | Path) -> list[ImageEntry]:
    return [
        ImageEntry(one.id, str(Path(folder) / one.file_name), one.size)
        for one in file.images.values()
    ]
