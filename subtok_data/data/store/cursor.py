"""Following a stream of images through a store: the tokens of each, found by what the image is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from subtok_data.data.store.reader import StoredTokens
from subtok_data.data.store.row import StoredRow
from subtok_data.errors import SampleError, StoreError

__all__ = ["TokenCursor"]

_NEAR = 1 << 16
_WIDER = 16


class TokenCursor:
    """Read the tokens of images in the order in which they come.

    Streams come in the order of the store for long stretches, and jump where they change from one
    of their shards to another. So the next row is tried first, then the first rows of all shards,
    then rows ever farther away. What decides is the key of the image, never a number.

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
        self.tokens = tokens
        self.row = row
        self.step = step
        self._ahead: Iterator[StoredRow] | None = None
        self._ahead_at = self._last = -1
        self._keys: NDArray[np.uint64] | None = None

    def next(self, keys: Iterable[bytes]) -> StoredRow:
        """Read the row that was made from an image.

        Parameters
        ----------
        keys : iterable of bytes
            Of the image; any of them. What follows the first that fits is not asked for.

        Returns
        -------
        StoredRow
            The row that is expected here, if there is none for this image: its key is another.

        Raises
        ------
        SampleError
            If a shard is damaged or missing.
        StoreError
            If the file of keys is.
        """
        try:
            expected = self._read(self.row) if self.row < len(self.tokens) else None
        except SampleError:
            self.skip()
            raise
        others: list[bytes] = []
        for key in keys:
            if expected is not None and expected.key == key:
                break
            others.append(key)
        else:
            found = self._search(others)
            if found is None:
                found = min(self.row, len(self.tokens) - 1)
            if expected is None or found != expected.index:
                expected = self._read(found)
        assert expected is not None  # found above, if not expected
        self.row = expected.index + self.step
        return expected

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

    def _search(self, keys: Sequence[bytes]) -> int | None:
        """Find a row that was made from an image, near the one expected."""
        stored = self._keys
        if stored is None:
            stored = self._keys = self.tokens.keys().view(np.uint64).reshape(-1, 2)
        wanted = [np.frombuffer(key, np.uint64) for key in keys]
        starts = self.tokens.meta.shard_starts
        low = high = min(self.row, len(stored))
        for one in wanted:
            found = starts[_same(stored[starts], one)]
            if len(found):
                return int(found[np.argmax(found >= low)])  # the first behind, else the first
        reach = _NEAR
        while low > 0 or high < len(stored):
            before, behind = max(0, low - reach), min(len(stored), high + reach)
            for begin, end in ((high, behind), (before, low)):
                for one in wanted:
                    found = np.flatnonzero(_same(stored[begin:end], one))
                    if len(found):
                        return begin + int(found[0])
            low, high, reach = before, behind, reach * _WIDER
        self.tokens.check_keys()
        return None


def _same(stored: NDArray[np.uint64], key: NDArray[np.uint64]) -> NDArray[np.bool_]:
    found = stored[:, 0] == key[0]
    if found.any():
        found &= stored[:, 1] == key[1]
    return found
