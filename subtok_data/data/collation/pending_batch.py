"""``PendingBatch``: what a DataLoader worker hands over, finished in the main process.

Workers decode and resize; they never touch a device and never cut images. What leaves them is a
mapping that finishes itself on first access or on ``.to(device)``, in the main process. So a loader
that a framework rebuilt around our ``collate_fn`` gives the same batches, only without look-ahead,
and batches that are skipped at resume cost no inference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subtok_data.data.position import StreamPosition
from subtok_data.data.replacement import Replacement
from subtok_data.errors import SubtokError
from subtok_data.segment import Prompts
from subtok_data.text import RegionRow

if TYPE_CHECKING:
    from subtok_data.data.collation.collator import SubobjectCollator

__all__ = ["COLLATORS", "PendingBatch", "RawBatch", "RawImages"]
COLLATORS: WeakValueDictionary[str, SubobjectCollator] = WeakValueDictionary()
"""Collators alive in this process, by the key that their pending batches carry."""


@dataclass
class RawImages:
    """Several images in one flat buffer: one shared-memory segment a message, not one per image.

    Attributes
    ----------
    buffer : (total,) Tensor
        The images one after the other, each (H, W, C) in row-major order.
    shapes : list of tuple of int
        Shape of each.
    """

    buffer: Tensor
    shapes: list[tuple[int, ...]]

    @classmethod
    def pack(cls, arrays: list[NDArray[Any]]) -> RawImages:
        """Copy arrays of one dtype into a buffer."""
        dtype = arrays[0].dtype if arrays else np.dtype(np.uint8)
        buffer = torch.empty(
            sum(array.size for array in arrays), dtype=torch.from_numpy(np.empty(0, dtype)).dtype
        )
        flat = buffer.numpy()
        offset = 0
        for array in arrays:
            flat[offset : offset + array.size] = array.reshape(-1)
            offset += array.size
        return cls(buffer, [array.shape for array in arrays])

    def unpack(self) -> list[NDArray[Any]]:
        """Views of the buffer, one per image."""
        flat = self.buffer.numpy()
        views: list[NDArray[Any]] = []
        offset = 0
        for shape in self.shapes:
            size = int(np.prod(shape))
            views.append(flat[offset : offset + size].reshape(shape))
            offset += size
        return views

    def pin_memory(self) -> RawImages:
        """Copy into pinned memory."""
        return RawImages(self.buffer.pin_memory(), self.shapes)


@dataclass
class RawBatch:
    """Decoded images and collated columns of B samples: what travels from worker to main process.

    ``images`` are on the grid that is cut into tokens, ``encoder_images`` on the encoder's grid
    where that is another. Per-sample lists are in batch order; images, and their ``prompts`` (in
    pixels of ``images``), are in order of their samples. ``region_texts`` has a list of rows, one
    per prompt, for each sample.
    """

    images: RawImages
    encoder_images: RawImages | None
    token_maps: RawImages | None
    token_fields: list[dict[str, NDArray[Any]]] | None
    tokens_hash: str | None
    source_sizes: list[tuple[int, int]]
    images_per_sample: list[int]
    many: bool
    sample_index: list[int]
    paths: list[str | None]
    columns: dict[str, Any]
    texts: list[Any] | None
    prompts: list[Prompts] | None = None
    region_texts: list[list[RegionRow]] | None = None
    replaced: list[Replacement] = field(default_factory=list[Replacement])
    position: StreamPosition | None = None

    def pin_memory(self) -> RawBatch:
        """Pin the pixel buffers; nothing else is large."""
        encoder = self.encoder_images
        return replace(
            self,
            images=self.images.pin_memory(),
            encoder_images=None if encoder is None else encoder.pin_memory(),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the pixel and map buffers."""
        parts = (self.images, self.encoder_images, self.token_maps)
        return sum(p.buffer.numel() * p.buffer.element_size() for p in parts if p is not None)


class PendingBatch(MutableMapping[str, Any]):
    """A batch that finishes itself on first access, in the main process.

    Parameters
    ----------
    finished : mapping, optional
        A batch that is finished already: frameworks rebuild mappings as ``type(batch)({…})``.
    raw : RawBatch, optional
        What the worker made.
    collator_key : str, optional
        Which collator of the main process finishes it.

    Notes
    -----
    ``.to(device)`` gives a plain dict. ``.pin_memory()`` pins the raw buffers and finishes nothing,
    since it runs in the pinning thread.
    """

    def __init__(
        self,
        finished: Mapping[str, Any] | None = None,
        /,
        *,
        raw: RawBatch | None = None,
        collator_key: str | None = None,
    ) -> None:
        self.raw = raw
        self.collator_key = collator_key
        self._finished: dict[str, Any] | None = None if finished is None else dict(finished)
        if raw is None and self._finished is None:
            self._finished = {}

    @property
    def is_finished(self) -> bool:
        """Whether inference and segmentation are done."""
        return self._finished is not None

    def finish(self, device: torch.device | str | None = None) -> dict[str, Any]:
        """Infer, segment and pad; the second call returns the first result.

        Parameters
        ----------
        device : torch.device or str, optional
            Where the tensors shall be; the CPU if not given.
        """
        if self._finished is None:
            if torch.utils.data.get_worker_info() is not None:
                raise SubtokError(
                    "a PendingBatch was read inside a DataLoader worker; it is finished in the "
                    "main process. Move what reads it out of the worker, behind the DataLoader"
                )
            collator = COLLATORS.get(self.collator_key or "")
            if collator is None or self.raw is None:
                raise SubtokError(
                    "the SubobjectCollator of this batch no longer exists in this process: keep it "
                    "(or its DataLoader) alive while batches are read, and do not send pending "
                    "batches to other processes"
                )
            self._finished = collator.finish(self.raw, device)
            self.raw = None
        return self._finished

    def to(self, device: torch.device | str, non_blocking: bool = False) -> dict[str, Any]:
        """Finish on a device and return a plain dict of tensors."""
        target = torch.device(device)
        batch = self.finish(target)
        return {
            key: value.to(target, non_blocking=non_blocking) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }

    def pin_memory(self) -> PendingBatch:
        """Return the same batch with its raw buffers pinned."""
        if self.raw is None:
            return self
        return PendingBatch(raw=self.raw.pin_memory(), collator_key=self.collator_key)

    def __getitem__(self, key: str) -> Any:
        return self.finish()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.finish()[key] = value

    def __delitem__(self, key: str) -> None:
        del self.finish()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.finish())

    def __len__(self) -> int:
        return len(self.finish())

    def __repr__(self) -> str:
        if self._finished is not None:
            return f"PendingBatch(finished, keys={list(self._finished)})"
        size = 0 if self.raw is None else len(self.raw.sample_index)
        return f"PendingBatch(raw, samples={size})"
