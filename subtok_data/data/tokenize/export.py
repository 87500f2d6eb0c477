"""Stored tokens as COCO panoptic annotations."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from subtok_data.annotations import PanopticWriter
from subtok_data.data.datasets import ImageFiles, SubobjectDataset
from subtok_data.data.store import StoredRow, StoredTokens, open_tokens
from subtok_data.errors import ConfigError, SampleError
from subtok_data.segment import label_image

__all__ = ["ExportReport", "export_panoptic"]


@dataclass(frozen=True)
class ExportReport:
    """What was exported.

    Attributes
    ----------
    images, tokens : int
        Written.
    failed : list of str
        Reasons of the rows that are not in the files.
    folder : str
        Where the files are.
    """

    images: int
    tokens: int
    failed: list[str]
    folder: str


def export_panoptic(
    tokens: str | Path | StoredTokens,
    folder: str | Path,
    images: Any = None,
    *,
    image_column: str = "image",
    on_progress: Callable[[int], object] | None = None,
) -> ExportReport:
    """Write stored tokens as COCO panoptic annotations: ``panoptic.json`` and a PNG an image.

    Segment id k + 1 is token k, so the token map is the PNG's numbers less 1; 0 is a pixel without
    a token. Categories are the tokens' classes where the segmenter knows them, else one, ``token``.

    Parameters
    ----------
    tokens : str, Path or StoredTokens
        What ``subtok tokenize`` wrote.
    folder : str or Path
        For the files; see :class:`~subtok_data.annotations.PanopticWriter`.
    images : dataset, optional
        That was tokenized: each map is brought to the size of its image, each pixel with the token
        of the pixel under its centre, and an image that was changed since is not exported. Without
        it, maps have the size at which images were tokenized.
    image_column : str, optional
        Of ``images``.
    on_progress : callable, optional
        Called with 1 after each row.

    Returns
    -------
    ExportReport
        ``file_name`` of an image is relative to ``images.folder`` where that is an
        :class:`~subtok_data.ImageFiles`, else to the folder that all files have in common; the
        eight-digit row number where the tokens know no file. An image's entry has its ``row``, too.

    Raises
    ------
    ConfigError
        No finished tokens, a dataset of another length, a folder with annotations, or an image
        that is too small for its tokens.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from subtok_data import PatchSegmenter, SubobjectTokenizer
    >>> from subtok_data.data import tokenize_dataset
    >>> tokenizer = SubobjectTokenizer(PatchSegmenter(16), size=32)
    >>> rows = [np.zeros((64, 64, 3), np.uint8)]
    >>> home = Path(tempfile.mkdtemp())
    >>> _ = tokenize_dataset(rows, tokenizer, home / "tokens", executor="inline")
    >>> report = export_panoptic(home / "tokens", home / "coco", rows)
    >>> report.images, report.tokens, sorted(file.name for file in (home / "coco").iterdir())
    (1, 4, ['panoptic', 'panoptic.json'])
    """
    stored = open_tokens(tokens)
    samples = None
    if images is not None:
        samples = SubobjectDataset(images, image_column=image_column)
        samples.with_keys = True
        stored.check_length(len(samples))
    root = str(images.folder) if isinstance(images, ImageFiles) else _common_folder(stored)
    written = found = 0
    failed: list[str] = []
    with PanopticWriter(folder) as writer:
        for row in stored.rows():
            try:
                sample = None if samples is None else samples.load(row.index)
                maps = stored.maps(row, () if sample is None else sample.keys())
                sizes: Iterable[tuple[int, int] | None] = (
                    [None] * len(maps) if sample is None else sample.source_sizes
                )
            except SampleError as error:
                failed.append(str(error))
            else:
                for name, (token_map, fields), count, size in zip(
                    _file_names(row, root), maps, row.num_visual_tokens, sizes, strict=True
                ):
                    labels = _labels(name, token_map, count, size)
                    writer.add(name, labels, fields.get("class"), row=row.index)
                    written += 1
                    found += count
            if on_progress is not None:
                on_progress(1)
    return ExportReport(written, found, failed, str(folder))


def _labels(
    name: str, token_map: NDArray[Any], num_tokens: int, size: tuple[int, int] | None
) -> NDArray[Any]:
    try:
        return label_image(token_map, num_tokens, size)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}; or export without the images") from error


def _file_names(row: StoredRow, root: str) -> Iterator[str]:
    """Name the images of a row; only the file of the first of several is stored."""
    name = f"{row.index:08d}"
    if row.path is not None:
        path = os.path.relpath(row.path, root) if root else row.path
        name = Path(path).as_posix()
    for number in range(len(row.num_visual_tokens)):
        yield name if number == 0 else f"{name}-{number}"


def _common_folder(stored: StoredTokens) -> str:
    folders = {
        os.path.dirname(path)
        for table in stored.index("path")
        for path in table.column("path").to_pylist()
        if path is not None
    }
    try:
        return os.path.commonpath(folders) if folders else ""
    except ValueError:  # some absolute, some not
        return ""
