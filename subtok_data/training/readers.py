"""Readers of common layouts: BSDS500, COCO, SA-1B, folders of label maps, a teacher's maps."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from subtok_data.annotations import (
    OPEN_LICENCES,
    images_by_stem,
    list_bsds,
    pair_by_stem,
    read_bsds_mat,
    read_coco,
    read_label_png,
    read_sa1b,
)
from subtok_data.errors import ConfigError
from subtok_data.images import image_size, to_rgb
from subtok_data.segment import RLEMasks, segmentation_runs
from subtok_data.training.labels import (
    boundary_from_labels,
    boundary_from_masks,
    edge_strength,
    edges_of_labels,
    mean_strength,
)
from subtok_data.training.mask_files import read_masks
from subtok_data.training.samples import Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from numpy.typing import NDArray

    from subtok_data.training.samples import BoundarySource

__all__ = [
    "BSDSSource",
    "CocoInstanceSource",
    "CocoPanopticSource",
    "LabelMapSource",
    "MaskSource",
    "TeacherSource",
    "parse_source",
]

#: Strength of an edge that a human drew without saying how sure they were: below certainty, since
#: annotators trace outlines with an error of a pixel or two.
HUMAN = 230


class _FileSource:
    """Base of the readers: a list of pairs (image file, whatever its label is read from)."""

    def __init__(self, pairs: Sequence[tuple[Path, Any]], soft: bool, where: str) -> None:
        if not pairs:
            raise ConfigError(f"{where}: no image with a label; check the folders and file names")
        self._pairs = list(pairs)
        self.soft = soft

    def __len__(self) -> int:
        return len(self._pairs)

    def name(self, index: int) -> str:
        return str(self._pairs[index][0])

    def __getitem__(self, index: int) -> Sample:
        path, label = self._pairs[index]
        image = to_rgb(path)
        strength, thin = self._label(label, image_size(image))
        if strength.shape != image.shape[:2]:
            raise ConfigError(
                f"{path}: the label is {strength.shape}, the image {image.shape[:2]} "
                "(height, width)"
            )
        return Sample(image, strength, thin)

    def _label(self, label: Any, _size: tuple[int, int], /) -> tuple[NDArray[np.uint8], bool]:
        raise NotImplementedError


class BSDSSource(_FileSource):
    """BSDS500: ``images/SPLIT/*.jpg`` and ``groundTruth/SPLIT/*.mat`` with 4 to 9 annotators.

    Parameters
    ----------
    root : path
        Folder with ``images`` and ``groundTruth``.
    split : str
        ``train``, ``val`` or ``test``.
    soft : bool
        Share of annotators, or the union of all.
    """

    def __init__(self, root: str | Path, split: str = "train", *, soft: bool = True) -> None:
        super().__init__(list_bsds(root, split), soft, str(root))

    def _label(self, label: Any, _size: tuple[int, int], /) -> tuple[NDArray[np.uint8], bool]:
        maps = [one.regions for one in read_bsds_mat(label)]
        if self.soft:
            return mean_strength([edges_of_labels(one) for one in maps]), True
        return _exact(np.any([boundary_from_labels(one) for one in maps], axis=0))


class CocoPanopticSource(_FileSource):
    """COCO panoptic: ``panoptic.json`` and one label PNG an image.

    Parameters
    ----------
    images, annotations, maps : path
        Image folder, JSON file, folder of the PNGs.
    soft : bool
        Thin strength, or the paper's lines.
    licences : collection of int, optional
        Ids of photo licences to admit; all by default. 4, 5 and 7 are open.
    """

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        maps: str | Path,
        *,
        soft: bool = True,
        licences: Collection[int] | None = None,
    ) -> None:
        file = read_coco(annotations).with_licences(licences)
        pairs = [
            (Path(images) / file.images[image].file_name, Path(maps) / one.file_name)
            for image, one in file.panoptic_maps()
            if image in file.images
        ]
        super().__init__(pairs, soft, str(annotations))

    def _label(self, label: Any, _size: tuple[int, int], /) -> tuple[NDArray[np.uint8], bool]:
        ids = read_label_png(label)
        if self.soft:
            return _drawn(edges_of_labels(ids))
        return _exact(boundary_from_labels(ids))


class CocoInstanceSource(_FileSource):
    """COCO instances: things only, so what lies between them counts as free of boundaries.

    Parameters
    ----------
    images, annotations : path
        Image folder, JSON file.
    soft, licences
        As for `CocoPanopticSource`.
    """

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        *,
        soft: bool = True,
        licences: Collection[int] | None = None,
    ) -> None:
        file = read_coco(annotations).with_licences(licences)
        grouped: dict[Any, list[Any]] = defaultdict(list)
        for image, one in file.objects():
            if image in file.images:
                grouped[image].append((one.id, one.segmentation))
        pairs = [
            (Path(images) / file.images[image].file_name, masks)
            for image, masks in sorted(grouped.items())
        ]
        super().__init__(pairs, soft, str(annotations))

    def _label(self, label: Any, _size: tuple[int, int], /) -> tuple[NDArray[np.uint8], bool]:
        coded = RLEMasks.from_runs([_runs(*one, _size) for one in label], _size)
        masks = [coded.mask(index) for index in range(len(coded))]
        if not self.soft:
            return _exact(boundary_from_masks(masks))
        edges = np.any([edges_of_labels(one) for one in masks], axis=0)
        return _drawn(edges)


class MaskSource(_FileSource):
    """Overlapping masks, one file an image of the same stem.

    Parameters
    ----------
    images : path
        Folder of images.
    masks : path
        Folder of npz files of ``make_masks``, or of SA-1B's JSON files.
    soft : bool
        Votes of all masks (`edge_strength`), or the paper's union of dilation minus erosion.
    """

    def __init__(self, images: str | Path, masks: str | Path, *, soft: bool = True) -> None:
        files = images_by_stem(images)
        pairs = [
            (files[path.stem], path)
            for path in sorted(Path(masks).iterdir())
            if path.suffix in (".npz", ".json") and path.stem in files
        ]
        super().__init__(pairs, soft, str(masks))

    def _label(self, label: Any, _size: tuple[int, int], /) -> tuple[NDArray[np.uint8], bool]:
        masks = read_masks(label) if label.suffix == ".npz" else read_sa1b(label)
        if self.soft:
            return edge_strength(masks), True
        if not len(masks):
            return np.zeros(_size, np.uint8), False
        return _exact(boundary_from_masks([masks.mask(index) for index in range(len(masks))]))


class LabelMapSource(_FileSource):
    """A folder of images and a folder of label PNGs of the same stem (any integers, one a region).

    Parameters
    ----------
    images, labels : path
        Folders.
    soft : bool
        Thin strength, or the paper's lines.
    """

    def __init__(self, images: str | Path, labels: str | Path, *, soft: bool = True) -> None:
        super().__init__(pair_by_stem(images, labels), soft, str(labels))

    def _label(self, label: Any, _size: tuple[int, int], /) -> tuple[NDArray[np.uint8], bool]:
        values = read_label_png(label)
        if self.soft:
            return _drawn(edges_of_labels(values))
        return _exact(boundary_from_labels(values))


class TeacherSource(_FileSource):
    """Boundary maps of a teacher: grey PNGs, 255 = boundary, of the same stem as the images.

    Parameters
    ----------
    images, maps : path
        Folders.
    """

    def __init__(self, images: str | Path, maps: str | Path) -> None:
        super().__init__(pair_by_stem(images, maps), True, str(maps))

    def _label(self, label: Any, _size: tuple[int, int], /) -> tuple[NDArray[np.uint8], bool]:
        with Image.open(label) as file:
            return np.array(file.convert("L"), np.uint8), False


def _runs(name: int | str, segmentation: Any, size: tuple[int, int]) -> NDArray[np.int32]:
    try:
        return segmentation_runs(segmentation, size)
    except ConfigError as error:
        raise ConfigError(f"annotation {name!r}: {error}") from error


def _exact(lines: NDArray[np.bool_]) -> tuple[NDArray[np.uint8], bool]:
    return np.where(lines, np.uint8(255), np.uint8(0)), False


def _drawn(edges: NDArray[np.bool_]) -> tuple[NDArray[np.uint8], bool]:
    return np.where(edges, np.uint8(HUMAN), np.uint8(0)), True


_KINDS: dict[str, tuple[Callable[..., BoundarySource], int]] = {
    "bsds": (BSDSSource, 2),
    "panoptic": (CocoPanopticSource, 3),
    "instances": (CocoInstanceSource, 2),
    "masks": (MaskSource, 2),
    "labels": (LabelMapSource, 2),
    "teacher": (TeacherSource, 2),
}
"""What makes a source, and how many places it takes."""


def parse_source(text: str, *, soft: bool = True) -> BoundarySource:
    """Build a source from ``KIND:FOLDER[,FOLDER…]``, as the command line takes it.

    Parameters
    ----------
    text : str
        ``bsds:ROOT,SPLIT``; ``panoptic:IMAGES,JSON,MAPS``; ``instances:IMAGES,JSON``;
        ``masks:IMAGES,MASKS``; ``labels:IMAGES,LABELS``; ``teacher:IMAGES,MAPS``. A ``+open`` after
        a COCO kind admits photos of open licences only.
    soft : bool
        Which form of label.

    Raises
    ------
    ConfigError
        An unknown kind, or a wrong number of folders.
    """
    kind, _, rest = text.partition(":")
    kind, _, option = kind.partition("+")
    places = [place for place in rest.split(",") if place]
    if kind not in _KINDS:
        raise ConfigError(f"{text!r}: no such kind of data; there are {', '.join(_KINDS)}")
    make, count = _KINDS[kind]
    if len(places) != count:
        raise ConfigError(
            f"{text!r}: {kind} takes {count} places separated by commas, got {len(places)}"
        )
    if option and (option != "open" or kind not in ("panoptic", "instances")):
        raise ConfigError(
            f"{text!r}: '+{option}' is not known; panoptic and instances take '+open'"
        )
    options: dict[str, Any] = {} if make is TeacherSource else {"soft": soft}
    if option:
        options["licences"] = OPEN_LICENCES
    return make(*places, **options)
