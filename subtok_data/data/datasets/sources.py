"""What may be wrapped as a dataset: rows by index, a stream of rows, or a folder of images."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sized
from pathlib import Path
from typing import Any, cast

import numpy as np

from subtok_data.arguments import check_callable, check_count, check_text, check_type, describe
from subtok_data.data.datasets.image_files import ImageFiles
from subtok_data.data.datasets.prompt_columns import PromptColumns
from subtok_data.data.replacement import check_on_error
from subtok_data.data.store import Storage, StoredTokens, open_tokens
from subtok_data.errors import ConfigError

__all__ = ["as_rows", "as_stream", "check_options", "name_dataset", "open_options"]


_TABLES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
"""Files of rows, and what ``datasets.load_dataset`` calls them."""
_FRAMES = {
    ("pandas", "DataFrame"): 'dataset.to_dict("records") or datasets.Dataset.from_pandas(dataset)',
    ("polars", "DataFrame"): "dataset.to_dicts() or datasets.Dataset.from_polars(dataset)",
    ("polars", "LazyFrame"): "dataset.collect().to_dicts()",
    ("pyarrow", "Table"): "datasets.Dataset(dataset) or dataset.to_pylist()",
}
"""Remedies by module and class."""


def as_rows(dataset: Any) -> Any:
    """Return a dataset with rows by index; a folder becomes :class:`ImageFiles`.

    Raises
    ------
    ConfigError
        Several splits, a table or columns in place of rows, a stream, an empty dataset, or no
        dataset at all.

    Examples
    --------
    >>> as_rows({"train": [1], "test": [2]})
    Traceback (most recent call last):
    ...
    subtok_data.errors.ConfigError: dataset is a dict with the keys ['train', 'test']: of ...
    """
    if isinstance(dataset, str | os.PathLike):
        return _open_folder(os.fsdecode(cast("str | os.PathLike[str]", dataset)))
    _refuse_tables(dataset)
    _refuse_splits(dataset)
    if isinstance(dataset, type | bytes | bytearray):
        raise ConfigError(f"dataset is {describe(dataset)}: give rows by index, such as a list")
    if not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
        raise ConfigError(
            f"dataset is {describe(dataset)}, which has no length or no indexing: use "
            "SubobjectIterableDataset for streams"
        )
    if len(dataset) == 0:
        raise ConfigError(f"dataset is empty ({type(dataset).__name__} of 0 rows)")
    return dataset


def as_stream(dataset: Any) -> Iterable[Any]:
    """Return a dataset that can be iterated.

    Raises
    ------
    ConfigError
        Several splits, a folder, or what cannot be iterated.
    """
    if isinstance(dataset, str | os.PathLike):
        raise ConfigError(
            f"dataset is {describe(dataset)}, and a folder is no stream: give it to "
            "SubobjectDataset, which reads its images by index"
        )
    _refuse_tables(dataset)
    _refuse_splits(dataset)
    if isinstance(dataset, type) or not hasattr(dataset, "__iter__"):
        raise ConfigError(f"dataset is {describe(dataset)}, which cannot be iterated")
    return dataset


def open_options(
    tokens: str | Path | Storage | StoredTokens | None, tokens_column: str | None
) -> StoredTokens | None:
    """Open the stored tokens, where they are not in a column.

    Raises
    ------
    ConfigError
        If both are given, or there are no finished tokens.
    """
    if tokens_column is not None:
        check_text("tokens_column", tokens_column, "the column that tokenizer.as_column() made")
        if tokens is not None:
            raise ConfigError(
                "tokens= and tokens_column= both say where the tokens are: give one of them"
            )
    return None if tokens is None else open_tokens(tokens)


def name_dataset(dataset: object) -> str:
    """Name what is wrapped, for ``repr``: that of a list or a dataset of Hugging Face is long.

    Examples
    --------
    >>> name_dataset([1, 2])
    'list'
    """
    if isinstance(dataset, ImageFiles):
        return repr(dataset)
    return type(dataset).__name__


def check_options(
    *,
    image_column: object,
    transform: Callable[..., Any] | None,
    prompts: object,
    on_error: str,
    max_pixels: object,
    seed: object,
) -> None:
    """Raise ConfigError for options that no dataset can work with."""
    check_text("image_column", image_column, "the key of the image in dict rows")
    if isinstance(transform, type):
        raise ConfigError(
            f"transform is {describe(transform)}, expected an instance: {transform.__name__}(…)"
        )
    check_callable("transform", transform, "give one of torchvision's transforms v2, or a function")
    if prompts is not None:
        check_type("prompts", prompts, PromptColumns, 'give prompts=PromptColumns(boxes="…")')
    check_on_error(on_error)
    check_count("max_pixels", max_pixels, unit="pixels")
    check_count("seed", seed, least=0, optional=False)


def _open_folder(folder: str) -> ImageFiles:
    suffix = Path(folder).suffix.lower()
    if suffix in _TABLES and not os.path.isdir(folder):
        raise ConfigError(
            f"dataset is {describe(folder)}, a table: give its rows, "
            f"datasets.load_dataset({_TABLES[suffix]!r}, data_files={folder!r}, "
            'split="train"), and name the column of images or of their paths with image_column=…'
        )
    if suffix == ".tar" and os.path.isfile(folder):
        raise ConfigError(
            f"dataset is {describe(folder)}, an archive: give subtok_data.data.open_images("
            f"{folder!r})"
        )
    try:
        return ImageFiles(folder)
    except ConfigError as error:
        if os.path.exists(folder) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", folder):
            raise
        raise ConfigError(
            f"{error}; of a dataset of the Hugging Face hub give the rows: "
            f'datasets.load_dataset({folder!r}, split="train")'
        ) from error


def _refuse_splits(dataset: Any) -> None:
    if not isinstance(dataset, Mapping):
        return
    parts = cast("Mapping[Any, Any]", dataset)
    remedy = f"give one of them, dataset[{next(iter(parts))!r}]" if parts else "give rows"
    if parts and all(isinstance(part, list | tuple | np.ndarray) for part in parts.values()):
        remedy = f"of columns give datasets.Dataset.from_dict(dataset); of splits {remedy[5:]}"
    raise ConfigError(f"dataset is {describe(dataset)}: {remedy}")


def _refuse_tables(dataset: Any) -> None:
    """Raise ConfigError for tables, whose indexing gives columns; nothing is imported for it."""
    kind: type[object] = type(dataset)
    remedy = _FRAMES.get((kind.__module__.partition(".")[0], kind.__name__))
    if remedy is not None:
        raise ConfigError(
            f"dataset is {describe(dataset)} of {kind.__module__.partition('.')[0]}, whose "
            f"indexing gives columns: give rows, {remedy}"
        )
