"""One row of a dataset as decoded images and columns."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtok_data.data.cache import CacheReader
from subtok_data.data.datasets.prompt_columns import PromptColumns
from subtok_data.data.replacement import Replacement
from subtok_data.data.store import StoredRow, StoredTokens, TokenMaps
from subtok_data.errors import ConfigError, PromptError, SampleError
from subtok_data.images import (
    DEFAULT_MAX_PIXELS,
    EncodedImage,
    SourceImage,
    decode_whole,
    fit_image,
    image_path,
    image_size,
    join_keys,
    open_image,
    pixel_key,
    read_with_key,
)
from subtok_data.segment import Prompts
from subtok_data.token_column import read_token_column

__all__ = ["ColumnError", "Sample", "decode_row", "split_row"]


class ColumnError(ConfigError):
    """The image column of a dataset is missing or unusable: no other sample would do better."""


@dataclass(slots=True)
class Sample:
    """A decoded row of a :class:`~subtok_data.SubobjectDataset`.

    Attributes
    ----------
    sources : list of (H, W, 3) uint8 arrays or EncodedImage
        One, unless the image column holds lists. Large JPEG files stay encoded until it is known
        how large they are needed.
    columns : dict
        The other columns of the row.
    index : int
        Dataset index, -1 if unknown.
    many : bool
        Whether the image column holds lists.
    source_sizes : list of (int, int)
        Height and width of each image as decoded, before augmentation and resizing.
    paths : list of str or None
        Files of the images, where known.
    key : bytes or None
        Says which image or images these are, by their content: of the files, or of the pixels as
        decoded. None unless it was asked for.
    token_maps : list of (H, W) integer arrays or None
        Stored tokens, augmented with the image.
    token_fields : list of dict or None
        Values per stored token, one dict per image.
    awaits_tokens : bool
        Whether it is to be augmented together with tokens that are not made yet: then it is as
        decoded, and loaded again once they are.
    tokens_hash : str or None
        Configuration that made the stored tokens.
    prompts : list of Prompts or None
        Prompted regions, in pixels of each image; None where no columns of prompts are named.
    dataset_key : str or None
        Names the dataset that offers replacements if the sample fails later; None for rows that
        come from no :class:`~subtok_data.SubobjectDataset`.
    replaced : tuple of Replacement
        Set when the row that was asked for could not be decoded.
    position : StreamPosition or None
        Position of a stream after this sample.
    """

    sources: list[SourceImage]
    columns: dict[str, Any]
    index: int
    many: bool
    source_sizes: list[tuple[int, int]]
    paths: list[str | None]
    key: bytes | None = None
    token_maps: list[NDArray[Any]] | None = None
    token_fields: list[dict[str, NDArray[Any]]] | None = None
    awaits_tokens: bool = False
    tokens_hash: str | None = None
    prompts: list[Prompts] | None = None
    dataset_key: str | None = None
    replaced: tuple[Replacement, ...] = field(default=())
    position: Any = None

    @property
    def images(self) -> list[NDArray[np.uint8]]:
        """The images (H, W, 3), decoded at their full size; SampleError if one cannot be.

        Those of large JPEG files are read-only: assign a list of images instead.
        """
        return self.decoded(decode_whole)

    @images.setter
    def images(self, images: Sequence[NDArray[np.uint8]]) -> None:
        self.sources = [*images]

    @property
    def image(self) -> NDArray[np.uint8]:
        """The only image of the sample."""
        if len(self.sources) != 1:
            raise ValueError(f"the sample has {len(self.sources)} images: use .images")
        return self.images[0]

    def decoded(
        self, decode: Callable[[SourceImage], NDArray[np.uint8]]
    ) -> list[NDArray[np.uint8]]:
        """Decode each image in some way.

        Parameters
        ----------
        decode : callable
            ``Canvas.fit``, for instance.

        Raises
        ------
        SampleError
            If an image cannot be decoded; names index and path.
        """
        found: list[NDArray[np.uint8]] = []
        for source, path in zip(self.sources, self.paths, strict=True):
            with _named(self.index, path):
                found.append(decode(source))
        return found

    def check(self) -> None:
        """Raise SampleError for an encoded image whose pixels cannot be decoded."""
        for source, path in zip(self.sources, self.paths, strict=True):
            if isinstance(source, EncodedImage):
                with _named(self.index, path):
                    source.check()

    @property
    def path(self) -> str | None:
        """File of the first image, where it is known."""
        return self.paths[0] if self.paths else None

    def attach(
        self, tokens: StoredTokens, find: Callable[[Iterator[bytes]], StoredRow] | None = None
    ) -> None:
        """Take the stored tokens of this row; images and prompts get the size of their maps.

        Parameters
        ----------
        tokens : StoredTokens
            Of the dataset that the sample is a row of.
        find : callable, optional
            Finds the row that was made from an image by its keys. By default it is the row of the
            same index.

        Raises
        ------
        SampleError
            There are none for this row (the reason is the one met when they were made), they are
            damaged or of another image, or there is not one map per image.
        """
        try:
            if find is None:
                found = tokens.read(self.index, self.keys())
            else:
                found = tokens.maps(find(self.keys()))
        except SampleError as error:
            cause = error.args[0].partition(": ")[2]  # the place is that of the sample
            raise SampleError(cause, index=self.index, path=self.path, stage="decode") from error
        full = bool(tokens.config.get("canvas", {}).get("full_decode"))
        self.take_tokens(found, tokens.config_hash, full_decode=full)

    def attach_column(self, name: str, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
        """Take the tokens in a column of this row, and the column out of the sample.

        Parameters
        ----------
        name : str
            Column that :meth:`SubobjectTokenizer.as_column` made.
        max_pixels : int, optional
            Larger maps are refused.

        Raises
        ------
        ColumnError
            If there is no such column, or something else in it.
        SampleError
            There are no tokens in it, they are damaged or of another image.
        """
        if name not in self.columns:
            raise ColumnError(
                f"no column {name!r}: the row has {sorted(self.columns)}. Make it with "
                "dataset.map(tokenizer.as_column(), batched=True)"
            )
        columns = dict(self.columns)
        try:
            found, key, config_hash = read_token_column(
                columns.pop(name), name, max_pixels=max_pixels
            )
            if key and self.key is not None and key not in self.keys():
                raise SampleError(
                    f"the tokens in column {name!r} belong to another image: they were made from "
                    f"{key.hex()}, this one is {self.key.hex()}. The image was changed since: "
                    "tokenize again"
                )
        except SampleError as error:
            raise SampleError.of(error, index=self.index, path=self.path, stage="decode") from error
        self.columns = columns
        self.take_tokens(found, config_hash)

    def attach_cached(self, cache: CacheReader) -> None:
        """Take the tokens that a cache has; without, the sample awaits them."""
        sizes = [cache.canvas.size_of(image) for image in self.sources]
        key = self.content_key()
        found = None if key is None else cache.read(key, None, sizes)
        if found is None:
            self.awaits_tokens = True
        else:
            full = cache.canvas.full_decode
            self.take_tokens(found, cache.config_hash, full_decode=full)

    def content_key(self) -> bytes | None:
        """Key of the sample, by its pixels where it was not asked for; None without an image."""
        return self.key or join_keys([pixel_key(image) for image in self.images])

    def take_tokens(self, found: TokenMaps, tokens_hash: str, *, full_decode: bool = False) -> None:
        """Take token maps; images and prompts get their size.

        Parameters
        ----------
        found : list of (map, fields)
            One per image.
        tokens_hash : str
            Configuration that made them.
        full_decode : bool, optional
            Decode large JPEG files at their full size.

        Raises
        ------
        SampleError
            There is not one map per image.
        """
        if len(found) != len(self.sources):
            raise SampleError(
                f"no stored tokens: {len(found)} stored maps for {len(self.sources)} images",
                index=self.index,
                path=self.path,
                stage="decode",
            )
        self.token_maps = [token_map for token_map, _ in found]
        self.token_fields = [fields for _, fields in found]
        sizes = [image_size(token_map) for token_map in self.token_maps]
        each = iter(sizes)

        def fit(source: SourceImage) -> NDArray[np.uint8]:
            return fit_image(source, next(each), *([image_size(source)] if full_decode else []))

        self.images = self.decoded(fit)
        if self.prompts is not None:
            pairs = zip(self.prompts, sizes, strict=True)
            self.prompts = [prompts.resized(size) for prompts, size in pairs]
        self.tokens_hash = tokens_hash

    def keys(self) -> Iterator[bytes]:
        """The key of the sample, then that of its pixels: tokens may be made from either."""
        if self.key is not None:
            yield self.key
            own = join_keys([pixel_key(image) for image in self.images])
            if own is not None:
                yield own


def split_row(row: Any, image_column: str) -> tuple[Any, dict[str, Any]]:
    """Separate the image value of a row from its other columns.

    Parameters
    ----------
    row : mapping, tuple or image
        A dict row; a ``(image, label, …)`` tuple as torchvision's datasets give; or an image alone.
    image_column : str
        Key of the image in dict rows.

    Raises
    ------
    ColumnError
        If a dict row has no such column.
    """
    if isinstance(row, Mapping):
        if image_column not in row:
            raise ColumnError(_missing_column(image_column, list(row)))
        return row[image_column], {key: row[key] for key in row if key != image_column}
    if isinstance(row, tuple):
        if not row:
            raise ColumnError("a row of the dataset is an empty tuple, expected (image, label, …)")
        names = ["label", *(f"column_{place}" for place in range(2, len(row)))]
        return row[0], dict(zip(names, row[1:], strict=False))
    return row, {}


def _missing_column(image_column: str, columns: Sequence[str]) -> str:
    return (
        f"no image column {image_column!r}: the row has {sorted(columns)}. Name the image column "
        "with image_column=…; under transformers' Trainer set remove_unused_columns=False, since "
        "by default it removes the columns that model.forward does not name"
    )


def decode_row(
    row: Any,
    *,
    image_column: str,
    index: int = -1,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    prompts: PromptColumns | None = None,
    with_key: bool = False,
) -> Sample:
    """Open the image or images of a row, and read its prompts.

    ``with_key`` also takes the key of what is decoded, at the price of one SHA-256.

    Raises
    ------
    ColumnError
        If there is no image column, or nothing in it.
    ConfigError
        If there is no column of prompts of that name.
    SampleError
        If an image cannot be opened, or prompts do not fit it; names index, path and cause. The
        pixels of large JPEG files are decoded later.
    """
    value, columns = split_row(row, image_column)
    many = isinstance(value, (list, tuple))
    values: list[Any] = list(value) if many else [value]
    sources: list[SourceImage] = []
    paths: list[str | None] = []
    keys: list[bytes] = []
    for one in values:
        path = image_path(one)
        with _named(index, path):
            content, key = read_with_key(one) if with_key else (one, None)
            source = open_image(content, max_pixels=max_pixels)
            if with_key:
                keys.append(pixel_key(decode_whole(source)) if key is None else key)
        sources.append(source)
        paths.append(path)
    sizes = [image_size(source) for source in sources]
    sample = Sample(sources, columns, index, many, sizes, paths, join_keys(keys))
    if prompts is not None:
        try:
            sample.prompts = prompts.read(columns, sizes, many=many)
        except PromptError as error:
            raise SampleError.of(error, index=index, path=sample.path, stage="decode") from error
        sample.columns = {
            name: value for name, value in columns.items() if name not in prompts.names.values()
        }
    return sample


@contextmanager
def _named(index: int, path: str | None) -> Generator[None]:
    """Put index and path on what goes wrong with an image."""
    try:
        yield
    except (OSError, ValueError, TypeError) as error:
        cause = str(error).removeprefix(f"image {path!r}: ")  # SampleError names the file
        missing = isinstance(error.__cause__, FileNotFoundError)
        if missing and path is not None and not os.path.isabs(path):
            cause = f"{cause}, looked for in {os.getcwd()!r}"
        raise SampleError(cause, index=index, path=path, stage="decode") from error
