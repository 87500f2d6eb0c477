"""Finding the stored tokens of an image by what it is: at random, and in the order of a stream."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtok_data.data.store.reader import StoredTokens
from subtok_data.data.store.row import StoredRow
from subtok_data.errors import SampleError, StoreError

__all__ = ["TokenCursor", "TokenFinder"]

_NEAR = 1 << 16


class TokenFinder:
    """Read the tokens of images, wherever in the store they are.

    What decides is the key of the image, never a number: rows may be shuffled, filtered, repeated
    or be others. Where they stand in the order of the store, each costs a comparison with the row
    that is expected. Else all keys are looked up in a table of 4 bytes a row; in large stores only
    where neither the first rows of all shards nor the neighbours of that row fit.

    Parameters
    ----------
    tokens : StoredTokens
        The store.
    rows : int, optional
        Rows of the dataset, for messages.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> from subtok_data import PatchSegmenter, SubobjectTokenizer
    >>> from subtok_data.data import tokenize_dataset
    >>> images = [bytes([number]) for number in range(3)]  # they fail, and are stored as such
    >>> tokenizer = SubobjectTokenizer(PatchSegmenter(32), size=64)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = tokenize_dataset(images, tokenizer, folder, executor="inline")
    ...     finder = TokenFinder(StoredTokens(folder))
    ...     keys = [row.key for row in finder.tokens.rows()]
    ...     [finder.at(0, [key]).index for key in reversed(keys)]
    [2, 1, 0]
    """

    def __init__(self, tokens: StoredTokens, rows: int | None = None) -> None:
        self.tokens = tokens
        self.rows = rows
        self._keys: NDArray[np.uint64] | None = None  # mapped at the first row that is out of order
        self._order: NDArray[Any] | None = None
        self._fits: int | None = None  # which of an image's keys the store holds

    def __getstate__(self) -> dict[str, Any]:
        # What is mapped and sorted stays in its process.
        return {**self.__dict__, "_keys": None, "_order": None}

    def at(self, index: int, keys: Iterable[bytes] = ()) -> StoredRow:
        """Read the row that was made from an image.

        Parameters
        ----------
        index : int
            Row that is expected: that of the image in the dataset.
        keys : iterable of bytes, optional
            Of the image; any of them. What follows the first that fits is not asked for. Without
            any it is the row of the index.

        Raises
        ------
        SampleError
            If there are no tokens of this image, or its shard is damaged or missing.
        StoreError
            If the file of keys is.
        """
        expected: StoredRow | None = None
        if self._keys is None and index < len(self.tokens):
            expected = self._read(index)
        tried: list[bytes] = []
        waiting: list[bytes] = []
        for number, key in enumerate(keys):
            if self._is(index, expected, key):
                self._fits = number
                return self._made_from(key, index, expected)
            tried.append(key)
            waiting.append(key)
            # A store holds keys of files or of pixels: what never fits need not be computed.
            if self._fits is not None and number >= self._fits:
                found = self._search(waiting, index)
                if found is not None:
                    return self._made_from(self._key_of(found), found)
                waiting.clear()
        found = self._search(waiting, index)
        if found is not None:
            key = self._key_of(found)
            self._fits = tried.index(key)
            return self._made_from(key, found)
        if expected is None:
            expected = self._read(min(index, len(self.tokens) - 1))
        if tried and expected.key is not None:
            raise _no_tokens(self.tokens, self.rows, index, expected, expected.key, tried[0])
        return expected

    def _read(self, row: int) -> StoredRow:
        return self.tokens.row(row)

    def _made_from(self, key: bytes, row: int, found: StoredRow | None = None) -> StoredRow:
        """Read a row, unless that is done, which the file of keys says to be of an image."""
        found = self._read(row) if found is None else found
        if found.key != key:
            self.tokens.check_keys()
            raise SampleError(
                f"{str(self.tokens.folder)!r} is damaged: row {row} has another key in its shard "
                "than in the file of keys. Run `subtok tokenize DIR --finish`",
                index=row,
                stage="decode",
            )
        return found

    def _is(self, index: int, expected: StoredRow | None, key: bytes) -> bool:
        """Whether the row that is expected was made from an image."""
        if expected is not None:
            return expected.key == key
        return index < len(self.tokens) and self._key_of(index) == key

    def _key_of(self, row: int) -> bytes:
        assert self._keys is not None  # mapped by now
        return self._keys[row].tobytes()

    def _search(self, keys: Sequence[bytes], near: int) -> int | None:
        """Find a row that was made from an image, near the one expected if there are several."""
        if not keys:
            return None
        stored = self._keys
        if stored is None:
            stored = self._keys = self.tokens.keys().view(np.uint64).reshape(-1, 2)
        wanted = [np.frombuffer(key, np.uint64) for key in keys]
        if self._order is None:
            if len(stored) > _NEAR:  # a table of many takes seconds, and most streams need none
                found = _scan(stored, wanted, min(near, len(stored)), self.tokens.meta.shard_starts)
                if found is not None:
                    return found
            self._order = _sorted_rows(stored)
        order = self._order
        for one in wanted:
            first: Any = one[0]
            place = bisect_left(order, first, key=lambda row: stored[row, 0])
            while place < len(order) and stored[order[place], 0] == first:
                if stored[order[place], 1] == one[1]:
                    return int(order[place])
                place += 1
        self.tokens.check_keys()  # before an image is said to have no tokens
        return None


class TokenCursor(TokenFinder):
    """Read the tokens of images in the order in which they come.

    Streams come in the order of the store for long stretches, which are read ahead, and jump where
    they change from one of their shards to another.

    Parameters
    ----------
    tokens : StoredTokens
        The store.
    row : int, optional
        Where the first image is expected.
    step : int, optional
        How far behind each the next is expected: streams that are shared out by position step over
        the rows of others.

    Attributes
    ----------
    row : int
        Where the next image is expected.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> from subtok_data import PatchSegmenter, SubobjectTokenizer
    >>> from subtok_data.data import tokenize_dataset
    >>> images = [bytes([number]) for number in range(3)]  # they fail, and are stored as such
    >>> tokenizer = SubobjectTokenizer(PatchSegmenter(32), size=64)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = tokenize_dataset(images, tokenizer, folder, executor="inline")
    ...     cursor = TokenCursor(StoredTokens(folder))
    ...     keys = [row.key for row in cursor.tokens.rows()]
    ...     [cursor.next([key]).index for key in reversed(keys)], cursor.row
    ([2, 1, 0], 1)
    """

    def __init__(self, tokens: StoredTokens, row: int = 0, step: int = 1) -> None:
        super().__init__(tokens)
        self.row = row
        self.step = step
        self._ahead: Iterator[StoredRow] | None = None
        self._ahead_at = self._last = -1

    def next(self, keys: Iterable[bytes]) -> StoredRow:
        """Read the row that was made from the next image; as :meth:`at`."""
        try:
            found = self.at(self.row, keys)
        except SampleError:
            self.skip()
            raise
        self.row = found.index + self.step
        return found

    def skip(self) -> None:
        """Pass an image that cannot be read."""
        self.row += self.step

    def _read(self, row: int) -> StoredRow:
        """Read a row; from the second one after another on, many with one read."""
        try:
            if self._ahead is None or row != self._ahead_at:
                follows, self._ahead = row == self._last + 1, None
                if not follows:
                    return self.tokens.row(row)
                self._ahead = self.tokens.rows(row)
            found = next(self._ahead)
            self._ahead_at = row + 1
            return found
        except StoreError:  # somewhere in what was read ahead
            self._ahead = None
            return self.tokens.row(row)
        finally:
            self._last = row


def _scan(
    stored: NDArray[np.uint64],
    wanted: Sequence[NDArray[np.uint64]],
    near: int,
    starts: NDArray[np.int64],
) -> int | None:
    """Look for keys at the starts of shards, then near a row."""
    for one in wanted:
        found = starts[_same(stored[starts], one)]
        if len(found):
            return int(found[np.argmax(found >= near)])  # the first behind, else the first
    for begin, end in ((near, near + _NEAR), (max(0, near - _NEAR), near)):
        for one in wanted:
            found = np.flatnonzero(_same(stored[begin:end], one))
            if len(found):
                return begin + int(found[0])
    return None


def _sorted_rows(stored: NDArray[np.uint64]) -> NDArray[Any]:
    """Rows in the order of the first half of their keys."""
    order = np.argsort(stored[:, 0], kind="stable")
    return order.astype(np.uint32 if len(order) < 1 << 32 else np.int64)


def _same(stored: NDArray[np.uint64], key: NDArray[np.uint64]) -> NDArray[np.bool_]:
    found = stored[:, 0] == key[0]
    if found.any():
        found &= stored[:, 1] == key[1]
    return found


def _no_tokens(
    tokens: StoredTokens,
    rows: int | None,
    index: int,
    expected: StoredRow,
    made_from: bytes,
    key: bytes,
) -> SampleError:
    """The error of an image that was not tokenized, or is another one by now."""
    where, stored = str(tokens.folder), len(tokens)
    path = "" if expected.path is None else f" ({expected.path!r})"
    source = tokens.meta.source.get("uri") or "SRC"
    if index < stored:
        what = f"the stored tokens of row {expected.index} belong to another image: they were"
    else:
        what = f"no tokens of this image are stored: those of row {expected.index}, the last, were"
    if rows is not None and rows > stored:
        why = f"The dataset has grown since, or is another one: {stored} rows were tokenized, it "
        why += f"has {rows}"
    else:
        why = "The image was changed since or not tokenized, or the dataset gives pixels where it "
        why += "gave files"
    return SampleError(
        f"{what} made from {made_from.hex()}{path}, this one is {key.hex()}, and {where!r} has no "
        f"tokens of it. {why}: give what was tokenized, or tokenize it to another folder, `subtok "
        f"tokenize {source} --out DIR`",
        index=index,
        stage="decode",
    )
