"""``open_images``: what people name on a command line to a dataset of images."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from subtok_data.data.datasets.image_files import ImageFiles
from subtok_data.data.datasets.sharded_files import ParquetImages, StoredImages, TarImages
from subtok_data.errors import ConfigError, StoreError
from subtok_data.images import IMAGE_SUFFIXES

__all__ = ["open_images"]

_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_GLOB = re.compile(r"[*?\[]")


def open_images(
    sources: str | Path | Sequence[str | Path],
    *,
    split: str | None = None,
    image_column: str = "image",
) -> Any:
    """Open images by where they are.

    Parameters
    ----------
    sources : str, Path or sequence of them
        A folder of images (searched with its subfolders), of tar or of Parquet files, or one
        written by ``save_to_disk``; files or patterns (``shards/*.tar``): images, tar files as
        WebDataset writes them, or Parquet files, all of one kind; a dataset of the Hugging Face
        hub, ``USER/NAME`` or ``hf://datasets/USER/NAME``. Folders and files may be on ``s3://``,
        ``gs://`` and ``hf://`` too.
    split : str, optional
        Of a dataset that has several.
    image_column : str, optional
        Column of the image in Parquet files.

    Returns
    -------
    dataset
        For :class:`~subtok_data.SubobjectDataset`. Tar and Parquet files have ``shard_lengths``:
        stored tokens keep their shards.

    Raises
    ------
    ConfigError
        If there is nothing of that name, nothing in it, several kinds of files, or a split is
        missing or unknown.

    Examples
    --------
    >>> open_images("https://example.org/photos.tar")
    Traceback (most recent call last):
    ...
    subtok_data.errors.ConfigError: 'https://example.org/photos.tar' is a web address: download ...
    """
    names = [sources] if isinstance(sources, str | Path) else list(sources)
    names = [os.fspath(name) for name in names]
    if not names or not all(names):
        raise ConfigError("name a folder, files, or a dataset to read images from")
    for name in names:
        if name.startswith(("http://", "https://")):
            raise ConfigError(
                f"{name!r} is a web address: download it and give the file or folder, or give "
                "s3://BUCKET/PATH, gs://BUCKET/PATH or hf://datasets/USER/NAME"
            )
    if len(names) == 1:
        dataset = _open_dataset(names[0], split)
        if dataset is not None:
            return dataset
    if split is not None:
        raise ConfigError(
            f"--split {split}: {_listed(names)} is a folder of images, only datasets have splits"
        )
    if len(names) == 1 and "://" not in names[0] and not _GLOB.search(names[0]):
        folder = Path(names[0])
        if folder.is_dir() and not _shards_in(folder):
            return ImageFiles(folder)
        if not folder.exists():
            return ImageFiles(folder)  # says what is missing
    return _open_files([file for name in names for file in _expand(name)], image_column)


def _open_dataset(name: str, split: str | None) -> Any:
    """Open a dataset of Hugging Face, on disk or on the hub; None if it is something else."""
    folder = Path(name)
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        from datasets import load_from_disk

        return _choose(load_from_disk(name), name, split)
    hub = name.removeprefix("hf://datasets/")
    if folder.exists() or not _NAME.fullmatch(hub) or (hub == name and _is_file_name(name)):
        return None
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        return _choose(load_dataset(hub), name, split)
    except (DatasetNotFoundError, FileNotFoundError) as error:
        raise ConfigError(
            f"no folder or file {name!r}, and no dataset of that name on the Hugging Face hub: "
            f"{error}"
        ) from error
    except (ConnectionError, OSError) as error:
        raise ConfigError(
            f"no folder or file {name!r}, and the Hugging Face hub cannot be reached: {error}"
        ) from error


def _is_file_name(name: str) -> bool:
    return Path(name).suffix.lower() in {*IMAGE_SUFFIXES, *_KINDS}


def _choose(dataset: Any, name: str, split: str | None) -> Any:
    """The split of a dataset that is asked for, or its only one."""
    if not hasattr(dataset, "keys"):
        if split is not None:
            raise ConfigError(f"--split {split}: the dataset in {name!r} has no splits")
        return dataset
    if split is None and len(dataset) == 1:
        return next(iter(dataset.values()))
    if split not in dataset:
        given = "none was given" if split is None else f"{split!r} is none of them"
        raise ConfigError(
            f"the dataset in {name!r} has the splits {sorted(dataset)}, {given}: "
            "name one with --split"
        )
    return dataset[split]


def _expand(name: str) -> list[str]:
    """Files of a pattern or folder, sorted; a file itself."""
    if "://" in name:
        return _expand_remote(name)
    if _GLOB.search(name) and not Path(name).exists():
        found = sorted(path for path in glob.glob(name, recursive=True) if os.path.isfile(path))
        if not found:
            raise ConfigError(f"no file fits the pattern {name!r}")
        return found
    folder = Path(name)
    if folder.is_dir():
        files = _shards_in(folder) or [
            file
            for file in sorted(folder.rglob("*"))
            if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
        ]
        if not files:
            raise ConfigError(f"no image, tar or Parquet file below {name!r}")
        return [str(file) for file in files]
    if not folder.is_file():
        raise ConfigError(f"no folder or file {name!r}")
    return [name]


def _shards_in(folder: Path) -> list[Path]:
    """Tar or Parquet files of a folder which has no images beside them."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    if any(file.suffix.lower() in IMAGE_SUFFIXES for file in files):
        return []
    return [file for file in files if file.suffix.lower() in _KINDS]


def _expand_remote(name: str) -> list[str]:
    import fsspec

    scheme = name.partition("://")[0]
    try:
        system, path = fsspec.url_to_fs(name)
        if _GLOB.search(path):
            found = system.glob(path)
        elif system.isdir(path):
            found = [file for file in system.find(path) if _is_file_name(file)]
        else:
            found = [path] if system.exists(path) else []
    except ImportError as error:
        raise ConfigError(f"{name!r}: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{name!r}: {error}") from error
    except Exception as error:
        raise StoreError(f"{name!r}: cannot list it: {type(error).__name__}: {error}") from error
    if not found:
        raise ConfigError(f"no image, tar or Parquet file at {name!r}")
    return [f"{scheme}://{file.lstrip('/')}" for file in sorted(found)]


def _open_files(files: list[str], image_column: str) -> Any:
    kinds = {_kind(file) for file in files}
    if len(kinds) > 1:
        raise ConfigError(
            f"{_listed(files)} are files of several kinds ({', '.join(sorted(kinds))}): tokenize "
            "each kind on its own"
        )
    kind = kinds.pop()
    if kind == "image":
        remote = [file for file in files if "://" in file]
        if remote and len(remote) < len(files):
            raise ConfigError("local and remote images are mixed: tokenize each on its own")
        return StoredImages(files) if remote else ImageFiles(files)
    if kind == ".parquet":
        return ParquetImages(files, image_column=image_column)
    return _KINDS[kind](files)


def _kind(file: str) -> str:
    suffix = Path(file).suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return "image"
    if suffix not in _KINDS:
        raise ConfigError(
            f"{file!r} is neither an image ({', '.join(sorted(IMAGE_SUFFIXES))}) nor a tar or "
            "Parquet file; of a table give the folder of the images that it names, or its rows to "
            "subtok_data.data.tokenize_dataset"
        )
    return suffix


_KINDS: dict[str, Callable[[Sequence[str]], Any]] = {".tar": TarImages, ".parquet": ParquetImages}


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(map(repr, names[:2])) + more
