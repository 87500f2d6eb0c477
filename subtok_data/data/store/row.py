"""One row of a dataset as it is stored: compressed token maps, or the error in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from subtok_data.errors import StoreError
from subtok_data.images import DEFAULT_MAX_PIXELS
from subtok_data.token_record import decode_record, encode_record

__all__ = ["StoredRow", "TokenMaps"]

TokenMaps = list[tuple[NDArray[Any], dict[str, NDArray[Any]]]]
"""Of each image of a row, its token map and its fields."""


@dataclass(frozen=True, slots=True)
class StoredRow:
    """Tokens of one dataset row: a record per image, or the error that prevented them.

    Attributes
    ----------
    index : int
        Of the dataset.
    path : str or None
        File of the image, where known; bytes that are no UTF-8 as escapes.
    key : bytes or None
        The 16 bytes that say which image this is; None if it could not be read.
    num_visual_tokens : tuple of int
        Per image.
    sizes : tuple of int
        Height and width of each map, one after the other.
    records : tuple of bytes
        :func:`encode_record` of each map.
    error : str or None
        Why there are no tokens.
    """

    index: int
    path: str | None = None
    key: bytes | None = None
    num_visual_tokens: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    records: tuple[bytes, ...] = ()
    error: str | None = None

    @classmethod
    def of(
        cls,
        index: int,
        token_maps: Sequence[NDArray[Any]],
        token_fields: Sequence[Mapping[str, Any]] = (),
        *,
        path: str | None = None,
        key: bytes | None = None,
    ) -> StoredRow:
        """Encode the token maps of a row.

        Examples
        --------
        >>> import numpy as np
        >>> row = StoredRow.of(3, [np.zeros((8, 6), np.int16)], path="cat.jpg")
        >>> row.num_visual_tokens, row.sizes, row.decode()[0][0].shape
        ((1,), (8, 6), (8, 6))
        """
        fields = token_fields or [{}] * len(token_maps)
        return cls(
            index,
            _escaped(path),
            key,
            tuple(int(token_map.max()) + 1 for token_map in token_maps),
            tuple(side for token_map in token_maps for side in token_map.shape),
            tuple(encode_record(m, f) for m, f in zip(token_maps, fields, strict=True)),
        )

    @classmethod
    def failed(
        cls, index: int, error: str, *, path: str | None = None, key: bytes | None = None
    ) -> StoredRow:
        """Row without tokens, and why."""
        return cls(index, _escaped(path), key, error=_escaped(error))

    def decode(self, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> TokenMaps:
        """Restore the token maps.

        Raises
        ------
        StoreError
            If a record is damaged, or a map has another size than the row says.
        """
        maps = [decode_record(record, max_pixels=max_pixels) for record in self.records]
        if [side for token_map, _ in maps for side in token_map.shape] != list(self.sizes):
            raise StoreError(
                f"row {self.index} says maps of {self.sizes}, its records hold others: damaged"
            )
        return maps


def _escaped(text: str | None) -> str | None:
    """Text that UTF-8 can hold: other bytes of file names become their escapes."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode("utf-8")
