"""``TokenCache``: what a loader holds of a cache, one for each process that tokenizes."""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from subtok_data.arguments import check_number, check_type
from subtok_data.data.cache.folder import open_cache, write_config
from subtok_data.data.cache.index import SegmentIndex, is_segment, read_segment
from subtok_data.data.cache.reader import CacheReader
from subtok_data.data.cache.writer import SegmentWriter
from subtok_data.data.dataloader_workers import shared_epoch
from subtok_data.data.store import LocalStorage, ShardInfo, ShardReader, writer_name
from subtok_data.errors import StoreError
from subtok_data.segment import PromptedPartitioner, Segmented
from subtok_data.tokenizer import SubobjectTokenizer

__all__ = ["TokenCache"]

_GB = 1_000_000_000


class TokenCache:
    """Keep token maps in a folder that ranks, epochs and runs share, by the content of the images.

    ``CACHE/<configuration>/<dtype>-<device>/seg-<host>-<process>-….parquet`` are the segments: each
    is written by one process, and appears whole or not at all. There are no locks, so that network
    disks will do, and records that two have written do no harm.

    Parameters
    ----------
    folder : str or Path
        The cache; made when the first tokens are written.
    tokenizer : SubobjectTokenizer
        Makes the tokens; its configuration, device and precision say which are looked up.
    limit_gb : float, optional
        Nothing more is written once the whole folder takes so many GB (10⁹ bytes).

    Raises
    ------
    ConfigError
        If the folder is a file or holds something else, or the limit is not above 0.
    """

    def __init__(
        self, folder: str | Path, tokenizer: SubobjectTokenizer, *, limit_gb: float | None = None
    ) -> None:
        check_type("cache", folder, (str, Path), "give a folder of the cache's own")
        if limit_gb is not None:
            check_number("cache_gb", limit_gb, above=0, unit="GB")
        self.root = open_cache(folder)
        self._tokenizer = tokenizer
        self._limit = None if limit_gb is None else int(limit_gb * _GB)
        segmenter = tokenizer.segmenter
        self.reader = CacheReader(
            tokenizer.budget,
            tokenizer.canvas,
            by_prompts=segmenter.takes_prompts
            or isinstance(segmenter.partitioner, PromptedPartitioner),
        )
        self._owner = os.getpid()
        self._index = SegmentIndex(self.root)
        self._known: set[str] = set()
        self._writer: SegmentWriter | None = None
        self._shared: Path | None = None
        self._bytes = self._added = 0
        self._writers = 1
        self._had_epoch = False
        self._told: set[str] = set()
        self._notices: list[str] = []

    def begin(self, *, ranks: int = 1, share: bool = False) -> None:
        """Look up what everybody has written so far; call it before an epoch.

        Parameters
        ----------
        ranks : int, optional
            Processes that write at the same time.
        share : bool, optional
            Whether worker processes look images up.
        """
        if self._owner != os.getpid():
            self._leave_to_parent()
        self.flush()
        tokenizer = self._tokenizer
        dtype = str(tokenizer.dtype).removeprefix("torch.")
        info = ShardInfo(0, 0, 0, tokenizer.config_hash, tokenizer.device.type, dtype, 1)
        folder = self.root / info.config_hash / f"{info.dtype}-{info.device}"
        storage = LocalStorage(folder)
        if folder != self._index.folder:
            self._index, self._known = SegmentIndex(folder), set()
        self._read_new(storage, info)
        self.reader.config_hash = info.config_hash
        self._share(share)
        self.reader.take(self._index)
        self._writers = ranks
        self._bytes, self._added = (0 if self._limit is None else _folder_bytes(self.root)), 0
        writer = self._writer
        if writer is None or not writer.is_open or writer.folder != folder:
            self._writer = SegmentWriter(storage, info, self._has_room)
        with suppress(OSError):  # told when a segment cannot be written
            storage.clean("")
            write_config(self.root, info.config_hash, tokenizer.config())

    def put(self, key: bytes, room: int | None, segmented: Sequence[Segmented]) -> None:
        """Take the tokens of images that were made just now.

        Parameters
        ----------
        key : bytes
            Of the images, and of what else their tokens depend on.
        room : int or None
            Most tokens that each of the images could have, beside the budget.
        segmented : sequence of Segmented
            One per image.
        """
        if self._writer is None or self._owner != os.getpid():
            return
        counts = [one.num_tokens for one in segmented]
        self._writer.put(
            self.reader.storage_key(key, room, counts),
            [one.token_map for one in segmented],
            [one.token_fields for one in segmented],
        )

    def flush(self) -> None:
        """Write what was collected, so that others find it."""
        if self._writer is not None and self._owner == os.getpid():
            self._writer.flush()

    def end_epoch(self, hits: int, misses: int) -> None:
        """Tell when a whole epoch found nothing of a whole epoch before."""
        writer = self._writer
        if self._had_epoch and misses and not hits and writer is not None and writer.is_open:
            self.tell(
                f"no image of this epoch was in the cache {str(self.root)!r}, though those of an "
                "epoch before are: the dataset gives other images each time, by an augmentation "
                "of its own perhaps. Give that to SubobjectDataset(transform=…), which augments "
                "after tokenization, or leave cache= out"
            )
        self._had_epoch = True

    def close(self) -> None:
        """Write what was collected, and delete what was shared with workers."""
        if self._owner == os.getpid():
            self.flush()
            self._unshare()
            self.reader.stem = ""  # the workers that know it are gone

    def take_notices(self) -> list[str]:
        """Return what the user must know, each message once."""
        writer = self._writer
        if writer is not None and writer.error is not None:
            self.tell(
                f"tokens cannot be written to the cache {str(self.root)!r} ({writer.error}); what "
                "is in it is used, nothing is added"
            )
        if writer is not None and writer.is_full:
            self.tell(
                f"the cache {str(self.root)!r} is full: with what comes now it would take more "
                f"than cache_gb={(self._limit or 0) / _GB:g}. What is in it is used, nothing is "
                f"added: raise cache_gb, or free some with `subtok cache compact {self.root}`"
            )
        for message in self.reader.take_notices():
            self.tell(message)
        notices, self._notices = self._notices, []
        return notices

    def tell(self, message: str) -> None:
        """Keep a message for the user, unless he had it already."""
        if message not in self._told:
            self._told.add(message)
            self._notices.append(message)

    # --- the index ----------------------------------------------------------------------------

    def _read_new(self, storage: LocalStorage, info: ShardInfo) -> None:
        """Read the keys of segments that are new since the last time."""
        try:
            names = [name for name in storage.names("") if is_segment(name)]
        except OSError as error:
            self.tell(f"the cache {str(self.root)!r} cannot be read: {error}")
            names = []
        if not self._known <= {*names}:  # compacted meanwhile
            self._index, self._known = SegmentIndex(storage.folder), set()
        new = [name for name in names if name not in self._known]
        self._known.update(new)
        found = []
        for name in new:
            try:
                reader = ShardReader(storage, name)
                own = reader.info
                if (own.config_hash, own.device, own.dtype) != (
                    info.config_hash,
                    info.device,
                    info.dtype,
                ):
                    raise StoreError(
                        f"{name} holds tokens of {own.config_hash}, {own.dtype} on {own.device}, "
                        "and lies in the wrong folder"
                    )
                found.append((name, read_segment(reader)))
            except (StoreError, OSError) as error:
                self.tell(
                    f"{str(storage.folder / name)!r}, a part of the cache, is left out: "
                    f"{str(error).split(' Run `subtok')[0]} Its images are tokenized anew; delete "
                    "that file"
                )
        self._index = self._index.joined(found)

    def _share(self, share: bool) -> None:
        """Save the index where worker processes find it."""
        reader = self.reader
        if not share:
            self._unshare()
            return
        number, path = reader.number + 1, None
        try:
            if not reader.stem:
                folder = _private_folder()
                LocalStorage(folder).clean("")  # of processes that were killed
                reader.stem = str(folder / f".{secrets.token_hex(8)}.{writer_name()}")
            path = reader.shared_file(number)
            with path.open("xb") as file:
                self._index.save(file)
        except OSError as error:
            self.tell(
                f"the index of the cache cannot be shared with workers ({error}), which find "
                "nothing in it: free space in the temporary folder, or set TMPDIR"
            )
        reader.generation.fill_(number)
        self._unshare()
        self._shared = path

    def _unshare(self) -> None:
        if self._shared is not None:
            with suppress(OSError):
                self._shared.unlink()
        self._shared = None

    def _leave_to_parent(self) -> None:
        """Start anew in a forked child; what was collected is written by the parent."""
        self._owner = os.getpid()
        self._writer = self._shared = None
        self.reader.generation = shared_epoch()
        self.reader.stem = ""

    # --- the limit ----------------------------------------------------------------------------

    def _has_room(self, more: int) -> bool:
        if self._limit is None:
            return True
        self._added += more
        if self._bytes + self._added * self._writers <= self._limit:
            return True
        # Others may have written less than this process has.
        self._bytes, self._added = _folder_bytes(self.root), 0
        return self._bytes + more <= self._limit


def _private_folder() -> Path:
    """Return a temporary folder that only this user can write: what is mapped must be ours."""
    if hasattr(os, "getuid"):
        folder = Path(tempfile.gettempdir()) / f"subtok-data-index-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        is_mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
        if is_mine and not found.st_mode & 0o077:
            return folder
    return Path(tempfile.mkdtemp(prefix="subtok-data-index-"))


def _folder_bytes(root: Path) -> int:
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            with suppress(OSError):
                total += (Path(folder) / name).stat().st_size
    return total
