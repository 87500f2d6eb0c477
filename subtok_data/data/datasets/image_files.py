"""``ImageFiles``: a folder of images as a dataset."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch.utils.data import Dataset

from subtok_data.arguments import check_type
from subtok_data.errors import ConfigError
from subtok_data.images import IMAGE_SUFFIXES

__all__ = ["ImageFiles"]


class ImageFiles(Dataset[dict[str, Any]]):
    """All image files below a folder, in sorted order.

    Rows are ``{"image": path, "path": path relative to the folder}``.

    Parameters
    ----------
    folder : str, Path, or sequence of them
        Searched recursively; or a single file; or several files, in the order given.

    Raises
    ------
    ConfigError
        If there is no such folder, or no image in it.
    """

    def __init__(self, folder: str | Path | Sequence[str | Path]) -> None:
        if isinstance(folder, list | tuple):
            folder, names = _common_folder(folder)
            self._take(folder, names)
            return
        check_type("folder", folder, (str, Path), "give the path of a folder of images")
        if not str(folder):
            raise ConfigError("folder is the string '': give the path of a folder of images")
        found = Path(cast("str | Path", folder))
        if found.is_file():
            found, names = found.parent, [found.name]
        elif found.is_dir():
            names = sorted(
                file.relative_to(found).as_posix()
                for file in found.rglob("*")
                if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
            )
        else:
            raise ConfigError(f"no folder or file {str(folder)!r}")
        if not names:
            raise ConfigError(
                f"no image below {str(folder)!r}; known suffixes: "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}"
            )
        self._take(found, names)

    def _take(self, folder: Path, names: list[str]) -> None:
        self.folder = folder
        # One array, not a list of strings: forked workers would copy a list page by page.
        self._names = np.array(names, dtype=np.bytes_ if all(map(str.isascii, names)) else np.str_)

    def fingerprint(self) -> str:
        """Hash of the names, sizes and times of all files, which differs when one was changed."""
        hashed = hashlib.sha256()
        for index in range(len(self)):
            name = self._name(index)
            try:
                found = os.stat(self.folder / name)
                state = f"{found.st_size} {found.st_mtime_ns}"
            except OSError:
                state = "gone"
            hashed.update(f"{name}\0{state}\n".encode("utf-8", "surrogateescape"))
        return hashed.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"ImageFiles({str(self.folder)!r})"

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = self._name(index)
        return {"image": str(self.folder / name), "path": name}

    def _name(self, index: int) -> str:
        name = self._names[index]
        return name.decode() if isinstance(name, bytes) else str(name)


def _common_folder(files: Sequence[str | Path]) -> tuple[Path, list[str]]:
    """The folder that several files share, and their names in it."""
    paths = [Path(os.path.abspath(file)) for file in files]
    missing = [str(file) for file, path in zip(files, paths, strict=True) if not path.is_file()]
    if missing or not paths:
        raise ConfigError(f"no file {missing[0]!r}" if missing else "no files: give at least one")
    folder = Path(os.path.commonpath([str(path.parent) for path in paths]))
    return folder, [path.relative_to(folder).as_posix() for path in paths]
