"""Sources of labelled images: BSDS500, COCO, SA-1B, folders of label maps, a teacher's maps."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from scipy import ndimage

from subtok_data.annotations import (
    OPEN_LICENCES,
    check_pair_of_folders,
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
    """Images with what their label is read from; subclasses read the label."""

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
        names = [
            (file.images[image].file_name, one.file_name)
            for image, one in file.panoptic_maps()
            if image in file.images
        ]
        check_pair_of_folders(images, maps, names)
        pairs = [(Path(images) / image, Path(maps) / label) for image, label in names]
        super().__init__(pairs, soft, str(annotations))

    def _label(self, label: Any, _size: tuple[int, int], /) -> tuple[NDArray[np.uint8], bool]:
        ids = read_label_png(label)
        if self.soft:
            return _drawn(edges_of_labels(ids))
        return _exact(boundary_from_labels(ids))


class CocoInstanceSource(_FileSource):
    """COCO instances: things only, no boundaries between stuff.

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

    def _label(self, label: Any, size: tuple[int, int], /) -> tuple[NDArray[np.uint8], bool]:
        coded = RLEMasks.from_runs([_runs(name, one, size) for name, one in label], size)
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

    def _label(self, label: Any, size: tuple[int, int], /) -> tuple[NDArray[np.uint8], bool]:
        masks = read_masks(label) if label.suffix == ".npz" else read_sa1b(label)
        if self.soft:
            return edge_strength(masks), True
        if not len(masks):
            return np.zeros(size, np.uint8), False
        return _exact(boundary_from_masks([masks.mask(index) for index in range(len(masks))]))


class LabelMapSource(_FileSource):
    """Images and label PNGs of the same stem, a number for each region.

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
    """Images and grey boundary maps of a teacher, PNGs of the same stem; 255 is a boundary.

    Where there are masks of the same stem, the label is the mean of teacher and votes
    (`edge_strength`, a pixel wider on each side).

    Parameters
    ----------
    images, maps : path
        Folders.
    masks : path, optional
        Folder of npz files of ``make_masks``.
    logit_shift : float
        What was added to the logits of the teacher's weights when they were saved; it is taken
        off, so that teacher and votes mean the same by a level.
    """

    def __init__(
        self,
        images: str | Path,
        maps: str | Path,
        masks: str | Path | None = None,
        *,
        logit_shift: float = 0.0,
    ) -> None:
        folder = None if masks is None else Path(masks)
        if folder is not None and not folder.is_dir():
            raise ConfigError(f"{str(masks)!r} is no folder of masks")
        pairs = [
            (image, (path, None if folder is None else folder / f"{path.stem}.npz"))
            for image, path in pair_by_stem(images, maps)
        ]
        super().__init__(pairs, True, str(maps))
        self._levels = _shifted_levels(-logit_shift)

    def _label(self, label: Any, _size: tuple[int, int], /) -> tuple[NDArray[np.uint8], bool]:
        path, masks = label
        with Image.open(path) as file:
            strength = self._levels[np.array(file.convert("L"), np.uint8)]
        if masks is not None and masks.exists():
            votes: Any = ndimage.grey_dilation(
                edge_strength(read_masks(masks)), footprint=_CROSS, mode="constant", cval=0
            )
            if votes.shape != strength.shape:
                raise ConfigError(f"{path}: the map is {strength.shape}, the masks {votes.shape}")
            strength = (strength + votes) / 2
        return np.rint(strength).astype(np.uint8), False


_CROSS = ndimage.generate_binary_structure(2, 1)
"""A pixel and its four neighbours."""


def _shifted_levels(shift: float) -> NDArray[np.float64]:
    """Map each level, 0 … 255, to the level after adding to its logit; 0 and 255 stay."""
    share = np.arange(1, 255) / 255
    shifted = 255 / (1 + (1 - share) / share * np.exp(-shift))
    return np.concatenate([[0.0], shifted, [255.0]])


def _runs(name: int | str, segmentation: Any, size: tuple[int, int]) -> NDArray[np.int32]:
    try:
        return segmentation_runs(segmentation, size)
    except ConfigError as error:
        raise ConfigError(f"annotation {name!r}: {error}") from error


def _exact(lines: NDArray[np.bool_]) -> tuple[NDArray[np.uint8], bool]:
    return np.where(lines, np.uint8(255), np.uint8(0)), False


def _drawn(edges: NDArray[np.bool_]) -> tuple[NDArray[np.uint8], bool]:
    return np.where(edges, np.uint8(HUMAN), np.uint8(0)), True


_KINDS: dict[str, tuple[Callable[..., BoundarySource], tuple[int, ...]]] = {
    "bsds": (BSDSSource, (2,)),
    "panoptic": (CocoPanopticSource, (3,)),
    "instances": (CocoInstanceSource, (2,)),
    "masks": (MaskSource, (2,)),
    "labels": (LabelMapSource, (2,)),
    "teacher": (TeacherSource, (2, 3)),
}
"""What makes a source, and how many places it may take."""


def parse_source(text: str, *, soft: bool = True, logit_shift: float = 0.0) -> BoundarySource:
    """Build a source from the command line's ``KIND:FOLDER[,FOLDER…]``.

    Parameters
    ----------
    text : str
        ``bsds:ROOT,SPLIT``; ``panoptic:IMAGES,JSON,MAPS``; ``instances:IMAGES,JSON``;
        ``masks:IMAGES,MASKS``; ``labels:IMAGES,LABELS``; ``teacher:IMAGES,MAPS[,MASKS]``. A
        ``+open`` after a COCO kind admits photos of open licences only.
    soft : bool
        Which form of label.
    logit_shift : float
        Of a teacher's maps, see `TeacherSource`.

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
    make, counts = _KINDS[kind]
    if len(places) not in counts:
        raise ConfigError(
            f"{text!r}: {kind} takes {' or '.join(map(str, counts))} places separated by commas, "
            f"got {len(places)}"
        )
    if option and (option != "open" or kind not in ("panoptic", "instances")):
        raise ConfigError(
            f"{text!r}: '+{option}' is not known; panoptic and instances take '+open'"
        )
    options: dict[str, Any] = (
        {"logit_shift": logit_shift} if make is TeacherSource else {"soft": soft}
    )
    if option:
        options["licences"] = OPEN_LICENCES
    return make(*places, **options)
