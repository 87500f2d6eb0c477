"""``SubobjectCollator``: samples to padded batches, inside DataLoader workers to pending ones."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch

from subtok_data.arguments import check_type
from subtok_data.batch import Batch, BatchUpload, PixelConfig
from subtok_data.data.cache import TokenCache
from subtok_data.data.collation.pending_batch import COLLATORS, RawBatch
from subtok_data.data.collation.stages import BatchStages
from subtok_data.data.collation.worker import BatchOptions, WorkerCollator
from subtok_data.data.datasets import PromptColumns
from subtok_data.data.replacement import Replacement
from subtok_data.devices import resolve_device
from subtok_data.errors import ConfigError
from subtok_data.images import DEFAULT_MAX_PIXELS
from subtok_data.text import RegionText, TextConfig, TextEncoder
from subtok_data.tokenizer import SubobjectTokenizer

__all__ = ["SubobjectCollator"]

_TOKENIZER_REMEDY = "give SubobjectTokenizer(…), around a segmenter if you have one"
_TEXT_REMEDY = 'give TextConfig(AutoTokenizer.from_pretrained("gpt2"), caption="…"), for example'


class SubobjectCollator:
    """Collate samples into padded batches of subobject tokens.

    Use it as ``DataLoader(collate_fn=…)`` or as a Trainer's ``data_collator``. In the main process
    it returns a finished ``dict``; inside DataLoader workers a
    :class:`~subtok_data.data.PendingBatch`, which finishes itself in the main process,
    where the boundary model is. Workers get no model.

    Parameters
    ----------
    tokenizer : SubobjectTokenizer
        How images become tokens.
    image_column : str, optional
        Key of the image in dict rows; rows of a :class:`~subtok_data.SubobjectDataset` know it
        already.
    text : TextConfig, optional
        Makes ``input_ids`` and ``labels`` with one placeholder per visual token.
    packing : bool, optional
        Give the packed layout instead of the padded one; needs ``text``.
    columns : sequence of str, optional
        Which other columns pass through; by default all but the image and those that ``text``
        reads.
    pixels : PixelConfig, optional
        Size, normalisation and dtype of ``pixel_values``.
    image_processor : transformers image processor, optional
        Read size, mean and std from it instead.
    pad_to_multiple_of : int, optional
        Round N (and the text length) up to a multiple of this.
    shape_size : int, optional
        Also give ``visual_token_shapes`` on a grid of this side.
    on_error : {"raise", "replace"}, optional
        What a bad sample does; a replacement is listed in ``collator.replaced``.
    max_pixels : int, optional
        Images with more pixels are refused before they are decoded.
    prompts : PromptColumns, optional
        Columns that hold regions; rows of a :class:`~subtok_data.SubobjectDataset` know them
        already.
    region_text : RegionText, optional
        Makes ``region_input_ids`` and ``region_labels`` of the regions' texts.

    Attributes
    ----------
    options : BatchOptions
        What was given, checked and with defaults.
    replaced : list of Replacement
        Samples that were replaced so far, in the batches finished here.

    Examples
    --------
    >>> import numpy as np
    >>> from subtok_data import PatchSegmenter, SubobjectCollator, SubobjectTokenizer
    >>> tokenizer = SubobjectTokenizer(PatchSegmenter(patch_size=32), size=64)
    >>> rows = [{"image": np.zeros((64, 64, 3), np.uint8), "label": 1}]
    >>> batch = SubobjectCollator(tokenizer)(rows)
    >>> batch["num_visual_tokens"], batch["label"]
    (tensor([4]), tensor([1]))
    """

    def __init__(
        self,
        tokenizer: SubobjectTokenizer,
        *,
        image_column: str = "image",
        text: TextConfig | None = None,
        packing: bool = False,
        columns: Iterable[str] | None = None,
        pixels: PixelConfig | None = None,
        image_processor: Any = None,
        pad_to_multiple_of: int = 1,
        shape_size: int | None = None,
        on_error: str = "raise",
        max_pixels: int = DEFAULT_MAX_PIXELS,
        prompts: PromptColumns | None = None,
        region_text: RegionText | None = None,
    ) -> None:
        check_type("tokenizer", tokenizer, SubobjectTokenizer, _TOKENIZER_REMEDY)
        if text is not None:
            check_type("text", text, TextConfig, _TEXT_REMEDY)
        if isinstance(columns, str):
            raise ConfigError(f"columns={columns!r}: give a list of names, columns=[{columns!r}]")
        if pixels is not None and image_processor is not None:
            raise ConfigError("give pixels= or image_processor=, not both")
        if image_processor is not None:
            pixels = PixelConfig.from_image_processor(image_processor)
        self.tokenizer = tokenizer
        self.options = BatchOptions(
            image_column=image_column,
            encoder=None if text is None else TextEncoder(text),
            packing=packing,
            columns=None if columns is None else tuple(columns),
            pixels=PixelConfig() if pixels is None else pixels,
            pad_to_multiple_of=pad_to_multiple_of,
            shape_size=shape_size,
            on_error=on_error,
            max_pixels=max_pixels,
            prompts=prompts,
            region_text=region_text,
        )
        self.replaced: list[Replacement] = []
        self._set_up(None)

    def _set_up(self, cache: TokenCache | None) -> None:
        key = uuid.uuid4().hex
        reader = None if cache is None else cache.reader
        self.worker = WorkerCollator(self.tokenizer.canvas, self.options, key=key, cache=reader)
        self._cache = cache
        self._deferring = threading.local()
        COLLATORS[key] = self

    def with_cache(self, cache: TokenCache) -> SubobjectCollator:
        """Return a collator of the same options and log whose batches use a cache."""
        other = SubobjectCollator.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._set_up(cache)
        return other

    def __call__(self, rows: Sequence[Any]) -> Batch:
        """Collate rows: decoded samples of our datasets, dict rows, tuples or images.

        Returns
        -------
        Batch
            A finished dict in the main process; inside a DataLoader worker a
            :class:`~subtok_data.data.PendingBatch`, which has the same keys.
        """
        pending = self.worker(rows)
        inside_worker = torch.utils.data.get_worker_info() is not None
        if inside_worker or getattr(self._deferring, "on", False):
            return cast("Batch", pending)
        return cast("Batch", pending.finish())

    @property
    def text(self) -> TextConfig | None:
        """Configuration of the text, as it was given."""
        encoder = self.options.encoder
        return None if encoder is None else encoder.config

    @property
    def image_column(self) -> str:
        """Key of the image in dict rows."""
        return self.options.image_column

    @property
    def on_error(self) -> str:
        """What a bad sample does."""
        return self.options.on_error

    def finish(
        self, raw: RawBatch, device: torch.device | str | None = None, *, pin: bool = False
    ) -> dict[str, Any]:
        """Infer, segment and pad a raw batch, one stage after the other, in this thread.

        Parameters
        ----------
        raw : RawBatch
            Of a worker.
        device : torch.device or str, optional
            Where the tensors shall be; the CPU by default.
        pin : bool, optional
            Whether tensors that stay on the host are in pinned memory.
        """
        target = resolve_device("cpu" if device is None else device)
        upload = None if target.type == "cpu" else BatchUpload(target)
        stages = self.stages(upload=upload, pin=pin)
        return stages.finish(stages.run(raw))

    def stages(self, **options: Any) -> BatchStages:
        """Return the stages of this collator's batches.

        Parameters
        ----------
        **options
            ``pool``, ``upload``, ``pin`` and ``timed`` of ``BatchStages``; ``logs``, beside the
            collator's own.
        """
        logs = (self.replaced, *options.pop("logs", ()))
        return BatchStages(
            tokenizer=self.tokenizer,
            options=self.options,
            logs=logs,
            cache=self._cache,
            **options,
        )

    @contextmanager
    def deferred(self) -> Generator[None]:
        """Return pending batches in this thread too: the loader finishes them with look-ahead."""
        self._deferring.on = True
        try:
            yield
        finally:
            self._deferring.on = False

    def __deepcopy__(self, memo: dict[int, Any]) -> SubobjectCollator:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # DataLoader workers get the half that needs no model.
        worker = self.worker
        return (WorkerCollator, (worker.canvas, self.options, worker.key, worker.cache))

    def __repr__(self) -> str:
        options = self.options
        shown = {
            "text": options.encoder and options.encoder.config.form,
            "packing": options.packing,
            "size": options.pixels.size,
            "prompts": options.prompts,
            "on_error": options.on_error if options.on_error != "raise" else None,
        }
        given = "".join(f", {name}={value!r}" for name, value in shown.items() if value)
        return f"SubobjectCollator({self.tokenizer!r}{given})"
