"""``PendingBatch``: a batch of a DataLoader worker that is finished in the main process.

Workers decode and resize; they never touch a device and never segment. What leaves them is a
mapping that finishes itself on first access or on ``.to(device)``, in the main process. So a loader
that a framework rebuilt around our ``collate_fn`` gives the same batches, only without look-ahead,
and batches that are skipped at resume cost no inference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subtok_data.data.position import StreamPosition
from subtok_data.data.replacement import Replacement
from subtok_data.device_streams import move_to
from subtok_data.devices import resolve_device
from subtok_data.errors import SubtokError
from subtok_data.segment import Prompts
from subtok_data.text import EncodedText, RegionRow

__all__ = [
    "COLLATORS",
    "BatchFinisher",
    "PendingBatch",
    "RawBatch",
    "RawImages",
    "RawSample",
    "TokenOrigin",
]

TokenOrigin = Literal["model", "store", "cache"]
"""Where the tokens of a sample come from: made of its images, stored, or found in a cache."""


class BatchFinisher(Protocol):
    """What finishes raw batches in the main process: a collator."""

    def finish(
        self, raw: RawBatch, device: torch.device | str | None = None, *, pin: bool = False
    ) -> dict[str, Any]:
        """Infer, segment and pad; ``pin`` what stays on the host."""
        ...


COLLATORS: WeakValueDictionary[str, BatchFinisher] = WeakValueDictionary()
"""Collators alive in this process, by the key that their pending batches carry."""


@dataclass
class RawImages:
    """Several images in one flat buffer: one segment of shared memory per batch, not per image.

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
            size = math.prod(shape)
            views.append(flat[offset : offset + size].reshape(shape))
            offset += size
        return views


@dataclass(kw_only=True, slots=True)
class RawSample:
    """One sample of a raw batch, without its pixels.

    Attributes
    ----------
    index : int
        In its dataset; −1 if unknown.
    path : str or None
        File of the first image, where it is known.
    key : bytes or None
        Says which image this is, by its content; None where nobody asked for it.
    source_sizes : list of (int, int)
        Height and width of each image as decoded, px.
    dataset_key : str or None
        Names the dataset that offers replacements.
    tokens : {"model", "store", "cache"}
        Where its tokens come from; unless from the model, their maps are in the batch.
    awaits_tokens : bool
        Whether it is loaded again, to be augmented, once its tokens are made.
    token_fields : list of dict or None
        Values per stored token, one dict per image.
    prompts : list of Prompts or None
        One per image, in pixels of the image that is segmented.
    text : EncodedText or None
        The text of the sample.
    region_texts : list of RegionRow
        One per prompt, where regions have texts.
    """

    index: int
    path: str | None
    key: bytes | None = None
    source_sizes: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    dataset_key: str | None = None
    tokens: TokenOrigin = "model"
    awaits_tokens: bool = False
    token_fields: list[dict[str, NDArray[Any]]] | None = None
    prompts: list[Prompts] | None = None
    text: EncodedText | None = None
    region_texts: list[RegionRow] = field(default_factory=list[RegionRow])

    @property
    def num_images(self) -> int:
        """Number of images of the sample."""
        return len(self.source_sizes)

    @property
    def room(self) -> int | None:
        """Most tokens that its text leaves each image; None for no limit."""
        return None if self.text is None else self.text.visual_room


@dataclass(kw_only=True)
class RawBatch:
    """Decoded images and collated columns of B samples: what travels from worker to main process.

    Attributes
    ----------
    samples : list of RawSample
        B samples.
    images : RawImages
        Images to segment, in order of their samples.
    encoder_images : RawImages or None
        The same at the encoder's size, where that is another.
    token_maps : RawImages or None
        Tokens that are known already, of each image of the samples that have them.
    tokens_hash : str or None
        Configuration that made the stored tokens.
    many : bool
        Whether samples hold lists of images.
    columns : dict
        Collated columns that pass through.
    replaced : list of Replacement
        Samples that were replaced up to here.
    position : StreamPosition or None
        Position of a stream after the batch.
    notices : list of str
        What the worker has to tell the user.
    """

    samples: list[RawSample]
    images: RawImages
    encoder_images: RawImages | None = None
    token_maps: RawImages | None = None
    tokens_hash: str | None = None
    many: bool = False
    columns: dict[str, Any] = field(default_factory=dict[str, Any])
    replaced: list[Replacement] = field(default_factory=list[Replacement])
    position: StreamPosition | None = None
    notices: list[str] = field(default_factory=list[str])

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
    ``.to(device)`` gives a plain dict. ``.pin_memory()`` finishes nothing, since it runs in the
    pinning thread: the tensors are pinned when they are made.
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
        self._pins = False
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
                    "batches to other processes. A collator that was pickled has no model: build "
                    "one in each process"
                )
            self._finished = collator.finish(self.raw, device, pin=self._pins)
            self.raw = None
        return self._finished

    def to(self, device: torch.device | str, non_blocking: bool = False) -> dict[str, Any]:
        """Finish on a device and return a plain dict of tensors."""
        target = resolve_device(device)
        batch = self.finish(target)
        return {
            key: move_to(value, target, non_blocking=non_blocking)
            if isinstance(value, Tensor)
            else value
            for key, value in batch.items()
        }

    def pin_memory(self) -> PendingBatch:
        """Return the same batch, whose tensors are going to be pinned; what is finished, as it is.

        Not the raw pixels: those that go to a device are copied again, onto a canvas or padded.
        """
        self._pins = True
        return self

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
        size = 0 if self.raw is None else len(self.raw.samples)
        return f"PendingBatch(raw, samples={size})"
