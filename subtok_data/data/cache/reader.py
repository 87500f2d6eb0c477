"""Looking images up in a cache: in DataLoader workers, or wherever images are decoded."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from subtok_data.data.cache.index import Place, SegmentIndex
from subtok_data.data.dataloader_workers import shared_epoch
from subtok_data.data.store import LocalStorage, TokenMaps
from subtok_data.errors import StoreError
from subtok_data.images import KEY_BYTES, Canvas
from subtok_data.segment import Budget, Prompts
from subtok_data.token_record import decode_record

__all__ = ["CacheReader", "split_records"]

_LENGTH = struct.Struct("<I")
_MAX_OPEN = 256


class CacheReader:
    """Look token maps up by the content of their images; goes along to DataLoader workers.

    Parameters
    ----------
    budget : Budget
        Of the tokenizer: whether less room changes tokens follows from it.
    canvas : Canvas
        Size of the images that are segmented.
    by_prompts : bool
        Whether tokens depend on the prompts of the image.

    Attributes
    ----------
    config_hash : str
        Of the tokenizer's configuration.
    index : SegmentIndex or None
        Of this process; None where the one that the main process shares is mapped at first use.
    generation : () int64 Tensor
        Number of the index that is shared, seen by workers that live through several epochs.
    stem : str
        Where indices are shared; the number is put behind it.
    """

    def __init__(self, budget: Budget, canvas: Canvas, *, by_prompts: bool) -> None:
        self.budget = budget
        self.canvas = canvas
        self.config_hash = ""
        self.by_prompts = by_prompts
        self.generation = shared_epoch()
        self.stem = ""
        self.index: SegmentIndex | None = None
        self._number = 0
        self._storage: LocalStorage | None = None
        self._known: dict[bytes, TokenMaps] = {}
        self._notices: list[str] = []

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "index": None,
            "_number": -1,
            "_storage": None,
            "_notices": [],
            "_known": {},
        }

    @property
    def number(self) -> int:
        """Number of the index that is shared now."""
        return int(self.generation)

    def take(self, index: SegmentIndex) -> None:
        """Look up in an index of this process from now on, until another one is shared."""
        self.index, self._number = index, self.number
        self._storage = None

    def shared_file(self, number: int) -> Path:
        """File of a shared index."""
        return Path(f"{self.stem}-{number}.part")

    def take_notices(self) -> list[str]:
        """Return what is to be told to the user, and forget it."""
        notices, self._notices = self._notices, []
        return notices

    @contextmanager
    def knowing(self, key: bytes, token_maps: TokenMaps) -> Generator[None]:
        """Find token maps that were made just now, in this process."""
        self._known[key] = token_maps
        try:
            yield
        finally:
            del self._known[key]

    def key_of(self, key: bytes, prompts: Sequence[Prompts] | None) -> bytes:
        """Return the key of images with their prompts, where tokens depend on those."""
        if not self.by_prompts or not prompts:
            return key
        hashed = hashlib.sha256(key)
        for one in prompts:
            for name, values in sorted(one.to_evidence().items()):
                hashed.update(f"{name} {values.dtype.str} {values.shape}\n".encode())
                hashed.update(np.ascontiguousarray(values).tobytes())
            hashed.update(repr(one.texts).encode())
        return hashed.digest()[:KEY_BYTES]

    def storage_key(self, key: bytes, room: int | None, counts: Sequence[int]) -> bytes:
        """Return the key to store tokens under that were made with room for so many.

        Tokens that the room has not changed are those of any other room, too.
        """
        if room is None or self.budget.capped(room) is self.budget:
            return key
        if self.budget.num_tokens is None and max(counts) < room:
            return key
        return _with_room(key, room)

    def read(
        self, key: bytes, room: int | None, sizes: Sequence[tuple[int, int]]
    ) -> TokenMaps | None:
        """Look up the token maps of images.

        Parameters
        ----------
        key : bytes
            Of the images, as :meth:`key_of` returns it.
        room : int or None
            Most tokens that an image may have, beside the budget.
        sizes : sequence of (int, int)
            Height and width of each image as it is segmented: maps of other sizes are not theirs.

        Returns
        -------
        list or None
            Of each image its map and token fields; None if they are not in the cache, or what is
            there cannot be read.
        """
        self._follow()
        if room is None or self.budget.capped(room) is self.budget:
            return self._read(key, sizes)
        if self.budget.num_tokens is None:
            found = self._read(key, sizes)
            if found is not None and all(int(one.max()) < room for one, _ in found):
                return found
        return self._read(_with_room(key, room), sizes)

    def _follow(self) -> None:
        """Map the index that is shared now, unless that is done."""
        while self._number != self.number:
            number = self.number
            try:
                index = SegmentIndex.map(self.shared_file(number))
            except OSError as error:
                if number != self.number:  # replaced by the next one meanwhile
                    continue
                index = None
                self._notices.append(
                    f"a worker cannot read the index of the cache, so it finds nothing: {error}"
                )
            self.index, self._number, self._storage = index, number, None

    def _read(self, key: bytes, sizes: Sequence[tuple[int, int]]) -> TokenMaps | None:
        if key in self._known:
            return self._known[key]
        index = self.index
        if index is None:
            return None
        if self._storage is None:
            self._storage = LocalStorage(index.folder, max_open=_MAX_OPEN)
        for place in index.find(key):
            try:
                return _decode(self._storage, place, sizes)
            except FileNotFoundError:
                continue  # the cache was compacted since
            except (StoreError, OSError) as error:
                self._notices.append(
                    f"{str(index.folder / place.segment)!r}, a part of the cache, cannot be read "
                    f"({error}): its images are tokenized anew. Delete that file"
                )
        return None


def split_records(content: bytes) -> list[bytes]:
    """Separate the records of a row, each of which lies behind its length.

    Raises
    ------
    StoreError
        If lengths and content do not fit together.

    Examples
    --------
    >>> split_records(bytes([2, 0, 0, 0]) + b"ab" + bytes([1, 0, 0, 0]) + b"c")
    [b'ab', b'c']
    """
    records: list[bytes] = []
    at = 0
    while at < len(content):
        begin = at + _LENGTH.size
        length = int.from_bytes(content[at:begin], "little")
        at = begin + length
        if at > len(content):
            raise StoreError("a record is longer than its place: truncated or damaged")
        records.append(content[begin:at])
    return records


def _decode(storage: LocalStorage, place: Place, sizes: Sequence[tuple[int, int]]) -> TokenMaps:
    content = storage.read(place.segment, place.begin, place.size)
    if len(content) != place.size:
        raise StoreError(f"{len(content)} of {place.size} bytes are there, truncated perhaps")
    most = max((height * width for height, width in sizes), default=0)
    found = [decode_record(record, max_pixels=most) for record in split_records(content)]
    if [one.shape for one, _ in found] != [tuple(size) for size in sizes]:
        raise StoreError(
            f"maps of {[one.shape for one, _ in found]} for images of {[*sizes]} pixels"
        )
    return found


def _with_room(key: bytes, room: int) -> bytes:
    return hashlib.sha256(key + f" room {room}".encode()).digest()[:KEY_BYTES]
