"""Tokens as a column of a dataset: what ``datasets.map`` calls, and what it leaves in a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from subtok_data.arguments import check_count, check_text
from subtok_data.errors import ConfigError, SampleError, StoreError, SubtokError
from subtok_data.images import (
    DEFAULT_MAX_PIXELS,
    Canvas,
    SourceImage,
    decode_whole,
    image_path,
    join_keys,
    open_image,
    pixel_key,
    read_with_key,
)
from subtok_data.token_record import decode_record, encode_record
from subtok_data.tokenized_image import TokenizedImage

__all__ = ["TokenColumn", "read_token_column"]


class _Tokenizer(Protocol):
    @property
    def config_hash(self) -> str: ...

    @property
    def canvas(self) -> Canvas: ...

    def __call__(self, images: list[Any]) -> list[TokenizedImage]: ...


class TokenColumn:
    """Tokenize batches of rows for ``datasets.map(…, batched=True)``.

    Made by :meth:`SubobjectTokenizer.as_column`. Each row gets a struct of ``config_hash``, ``key``
    (which image it was), ``records`` (:func:`~subtok_data.token_record.encode_record` of each map)
    and ``error`` (why there are none, else empty).

    Parameters
    ----------
    tokenizer : SubobjectTokenizer
        How images become tokens.
    image_column : str
        Which column holds the image, or a list of images.
    name : str
        Of the new column.
    batch_size : int
        Rows inferred together.
    max_pixels : int
        Images with more pixels are not decoded.
    """

    def __init__(
        self,
        tokenizer: _Tokenizer,
        *,
        image_column: str = "image",
        name: str = "subtok",
        batch_size: int = 8,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> None:
        check_text("image_column", image_column, "the column of the image")
        check_text("name", name, "the column of the tokens")
        check_count("batch_size", batch_size)
        check_count("max_pixels", max_pixels, unit="pixels")
        self.tokenizer = tokenizer
        self.image_column = image_column
        self.name = name
        self.batch_size = batch_size
        self.max_pixels = max_pixels

    def __call__(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, list[dict[str, Any]]]:
        """Tokenize the images of a batch of rows.

        Raises
        ------
        ConfigError
            If there is no such column, or the rows are not batched.
        SubtokError
            If not one image of several can be tokenized: then the model is at fault.
        """
        if self.image_column not in rows:
            raise ConfigError(
                f"no image column {self.image_column!r}: the rows have {sorted(rows)}. Name it "
                "with as_column(image_column=…)"
            )
        values = rows[self.image_column]
        if not isinstance(values, list):
            raise ConfigError("rows come one by one: give batched=True to map")
        found: list[dict[str, Any]] = []
        for start in range(0, len(values), self.batch_size):
            found += self._tokenize(values[start : start + self.batch_size])
        return {self.name: found}

    def _tokenize(self, values: Sequence[Any]) -> list[dict[str, Any]]:
        decoded = [self._decode(value) for value in values]
        images = [image for own, _, _ in decoded for image in own]
        try:
            tokens = iter(self.tokenizer(images) if images else [])
            found = [[next(tokens) for _ in own] for own, _, _ in decoded]
            errors = [error for _, _, error in decoded]
        except Exception as error:
            found, errors = self._tokenize_each(decoded, error)
        return [
            self._struct(key, maps, error)
            for (_, key, _), maps, error in zip(decoded, found, errors, strict=True)
        ]

    def _tokenize_each(
        self, decoded: list[tuple[list[SourceImage], bytes, str]], cause: Exception
    ) -> tuple[list[list[TokenizedImage]], list[str]]:
        """Tokenize row by row after a failure, to learn which one is to blame."""
        found: list[list[TokenizedImage]] = []
        errors: list[str] = []
        for images, _, error in decoded:
            found.append([])
            errors.append(error)
            if error:
                continue
            try:
                found[-1] = self.tokenizer(images)
            except Exception as own:
                errors[-1] = f"{type(own).__name__}: {own}"
        if all(errors):
            raise SubtokError(f"tokenizing failed on every image of a batch: {cause}") from cause
        return found, errors

    def _decode(self, value: Any) -> tuple[list[SourceImage], bytes, str]:
        """Images of a row, their key, and why there are none."""
        keys: list[bytes] = []
        images: list[SourceImage] = []
        path: str | None = None
        for one in list(value) if isinstance(value, list | tuple) else [value]:
            path = image_path(one)
            try:
                content, key = read_with_key(one)
                images.append(open_image(content, max_pixels=self.max_pixels))
                self.tokenizer.canvas.decode(images[-1])  # so that broken pixels are found here
                keys.append(pixel_key(decode_whole(images[-1])) if key is None else key)
            except (OSError, ValueError, TypeError) as error:
                return [], b"", f"image {path!r}: {error}" if path else str(error)
        return images, join_keys(keys) or b"", "" if images else "there is no image"

    def _struct(self, key: bytes, tokens: Sequence[TokenizedImage], error: str) -> dict[str, Any]:
        # Nothing is None or empty, from which the type of a column could not be told.
        records = [encode_record(one.token_map, one.token_fields) for one in tokens] or [b""]
        return {
            "config_hash": self.tokenizer.config_hash,
            "key": key,
            "records": records,
            "error": error,
        }


def read_token_column(
    value: Any, name: str, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> tuple[list[tuple[NDArray[Any], dict[str, NDArray[Any]]]], bytes, str]:
    """Read what :class:`TokenColumn` made.

    Parameters
    ----------
    value : mapping
        Of the column, in one row.
    name : str
        Of the column, for messages.
    max_pixels : int, optional
        Larger maps are refused.

    Returns
    -------
    maps : list of (map, fields)
        One per image.
    key : bytes
        Of the images that they were made from.
    config_hash : str
        Of the tokenizer that made them.

    Raises
    ------
    ConfigError
        If the column holds something else.
    SampleError
        If the row has no tokens, or damaged ones.
    """
    try:
        config_hash, key, records = value["config_hash"], value["key"], value["records"]
        error = value["error"]
    except (TypeError, KeyError, IndexError) as unknown:
        raise ConfigError(
            f"column {name!r} holds no tokens: make them with "
            "dataset.map(tokenizer.as_column(), batched=True)"
        ) from unknown
    if error:
        raise SampleError(f"no stored tokens: {error}")
    try:
        maps = [decode_record(record, max_pixels=max_pixels) for record in records]
    except StoreError as damaged:
        raise SampleError(f"column {name!r}: {damaged}") from damaged
    return maps, key, config_hash
