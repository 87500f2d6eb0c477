"""Folders of images, and of label files that have the stem of their image."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable
from pathlib import Path

from subtok_data.errors import ConfigError
from subtok_data.images import IMAGE_SUFFIXES

__all__ = ["check_pair_of_folders", "images_by_stem", "pair_by_stem"]


_LOOKED_AT = 20


def check_pair_of_folders(
    images: str | Path, maps: str | Path, pairs: Iterable[tuple[str, str]]
) -> None:
    """Check the folders that an annotation file speaks of, by the first files that it names.

    Parameters
    ----------
    images, maps : path
        Folder of images, folder of their label maps.
    pairs : iterable of (str, str)
        Names of an image and of its map, in these folders; some are looked at.

    Raises
    ------
    ConfigError
        There is no folder of images, or each has what the other should have.

    Examples
    --------
    >>> check_pair_of_folders("no-photos", ".", [])
    Traceback (most recent call last):
    ...
    subtok_data.errors.ConfigError: images: 'no-photos' is not a folder
    """
    if not Path(images).is_dir():
        raise ConfigError(f"images: {str(images)!r} is not a folder")
    for image, label in itertools.islice(pairs, _LOOKED_AT):
        if (Path(images) / image).is_file() or (Path(maps) / label).is_file():
            return
        # Where both have one name, either would do in either place.
        swapped = [(Path(maps) / image).is_file(), (Path(images) / label).is_file()]
        if any(swapped):
            found = f"the image {image!r}" if swapped[0] else f"the map {label!r}"
            where = "maps" if swapped[0] else "images"
            raise ConfigError(
                f"images and maps seem swapped: {found} is in {where}="
                f"{str(maps if swapped[0] else images)!r}. Give images={str(maps)!r}, "
                f"maps={str(images)!r}"
            )


def images_by_stem(folder: str | Path) -> dict[str, Path]:
    """List the images of a folder by their stem, sorted.

    Parameters
    ----------
    folder : path
        Its subfolders are not looked into.

    Raises
    ------
    ConfigError
        There is no such folder, or two images have one stem.
    """
    return _by_stem(folder, IMAGE_SUFFIXES)


def pair_by_stem(
    images: str | Path, labels: str | Path, suffixes: Collection[str] = (".png",)
) -> list[tuple[Path, Path]]:
    """Pair images with the label files of the same stem; files without a partner are left out.

    Parameters
    ----------
    images, labels : path
        Folders; they may be one, where images have other suffixes than labels.
    suffixes : collection of str
        Suffixes of label files, in lower case.

    Returns
    -------
    list of (Path, Path)
        Image and label, one or more, sorted by the image.

    Raises
    ------
    ConfigError
        A folder is missing, two files have one stem, or there is no pair.
    """
    photos = IMAGE_SUFFIXES
    if Path(images) == Path(labels):
        photos = [one for one in IMAGE_SUFFIXES if one not in suffixes]
    files, maps = _by_stem(images, photos), _by_stem(labels, suffixes)
    pairs = [(file, maps[stem]) for stem, file in files.items() if stem in maps]
    if not pairs:
        raise ConfigError(
            f"no image with a label: of {len(files)} images in {images} and {len(maps)} files of "
            f"labels ({', '.join(suffixes)}) in {labels}, none have the same stem"
        )
    return pairs


def _by_stem(folder: str | Path, suffixes: Collection[str]) -> dict[str, Path]:
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes:
            continue
        if path.stem in found:
            raise ConfigError(
                f"{folder} has {found[path.stem].name} and {path.name}: one file of each stem is "
                "expected"
            )
        found[path.stem] = path
    return found
