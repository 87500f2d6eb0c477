"""Visual Genome's region descriptions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from subtok_data.annotations import read_json
from subtok_data.data.regions.readers.table import ImageEntry, RegionEntry, RegionRows
from subtok_data.errors import ConfigError
from subtok_data.images import IMAGE_SUFFIXES

__all__ = ["VisualGenomeRegions"]

_FOLDERS = ("", "VG_100K", "VG_100K_2", "images", "images2")


class VisualGenomeRegions(RegionRows):
    """Regions of ``region_descriptions.json``: a list of images with ``regions``.

    A region has ``region_id``, ``phrase`` (or ``phrases``, as SCA's rows have), ``x``, ``y``,
    ``width``, ``height``. Regions without a word are left out and counted.

    Parameters
    ----------
    annotations : str or Path
        The JSON file.
    images : str or Path or sequence of them
        Folder with ``<image id>.jpg``, or with the folders ``VG_100K`` and ``VG_100K_2`` as
        published.
    image_ids : collection of int, optional
        Images to take, such as a split of the dense captioning files; all by default.
    keep_empty : bool, optional
        Keep images without a region.

    Raises
    ------
    ConfigError
        If the file is not of this layout, or images are in none of the folders; the message names
        them.
    """

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path | Sequence[str | Path],
        *,
        image_ids: Collection[int] | None = None,
        keep_empty: bool = False,
    ) -> None:
        data = read_json(annotations, "a file of Visual Genome's region descriptions")
        if not isinstance(data, list) or not all(isinstance(o, dict) for o in data):
            raise ConfigError(f"{annotations}: expected a list of images with their regions")
        files = _Files([images] if isinstance(images, (str, Path)) else images)
        wanted = None if image_ids is None else set(image_ids)
        listed: list[ImageEntry] = []
        regions: dict[Any, list[RegionEntry]] = {}
        wordless = 0
        for place, one in enumerate(data):
            name = one.get("id", one.get("image_id"))
            if name is None or "regions" not in one:
                raise ConfigError(f"{annotations}: entry {place} has no id or no regions")
            if wanted is not None and name not in wanted:
                continue
            listed.append(ImageEntry(name, files.path(name)))
            found = [_region(region, annotations) for region in one["regions"]]
            regions[name] = [region for region in found if region.phrases]
            wordless += len(found) - len(regions[name])
        files.check(annotations)
        left_out = {"regions without a text": wordless}
        super().__init__(annotations, listed, regions, keep_empty=keep_empty, left_out=left_out)


class _Files:
    """Where the image of each id is: two folders, as Visual Genome is published."""

    def __init__(self, roots: Sequence[str | Path]) -> None:
        self.folders = [Path(root) / name for root in roots for name in _FOLDERS]
        self.folders = [folder for folder in self.folders if folder.is_dir()]
        # Later folders do not hide earlier ones.
        self._found = {
            file.stem: str(file)
            for folder in reversed(self.folders)
            for file in folder.iterdir()
            if file.suffix.lower() in IMAGE_SUFFIXES
        }
        self._missing: list[Any] = []
        self._roots = roots

    def path(self, name: Any) -> str:
        """Find the file of an image; note one that is missing."""
        found = self._found.get(str(name))
        if found is None:
            self._missing.append(name)
            return ""
        return found

    def check(self, annotations: str | Path) -> None:
        """Refuse annotations without their images."""
        if self._missing:
            raise ConfigError(
                f"{annotations}: {len(self._missing)} images are in none of "
                f"{[str(root) for root in self._roots]}, the first {self._missing[0]!r}: give the "
                "folders of all images, or image_ids= of those that are there"
            )


def _region(region: Mapping[str, Any], path: str | Path) -> RegionEntry:
    name = region.get("region_id", region.get("id", "?"))
    try:
        x, y, width, height = (float(region[side]) for side in ("x", "y", "width", "height"))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}: region {name!r} has no numbers x, y, width, height: {error}"
        ) from error
    phrases = region.get("phrases", region.get("phrase"))
    texts: list[Any] = phrases if isinstance(phrases, list) else [phrases]
    kept = [text.strip() for text in texts if isinstance(text, str) and text.strip()]
    return RegionEntry(name, [x, y, x + width, y + height], kept)
