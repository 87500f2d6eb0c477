"""Packed batches: all samples of a batch in one row, without padding.

The layout is that of transformers' ``DataCollatorWithFlattening``: ``position_ids`` restart at
every sample, which is how models tell samples apart. Call the model with ``use_cache=False``: with
a cache, stock models attend across samples.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from subtok_data.batch import IGNORE_INDEX, KEYS, round_up
from subtok_data.errors import ConfigError

__all__ = ["pack_batch", "packing_refusal", "refuse_dispatcher", "text_efficiency", "unpack_batch"]


def _offsets(lengths: Tensor) -> Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)


def pack_batch(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Pack a padded batch.

    Parameters
    ----------
    batch : mapping
        A padded batch with text, B samples of together T tokens and S visual tokens.

    Returns
    -------
    dict
        ``input_ids``, ``labels``, ``mm_token_type_ids``, ``position_ids`` (1, T) int64;
        ``cu_seq_lens_q``, ``cu_seq_lens_k`` (B + 1,) int32; ``max_length_q``, ``max_length_k`` int;
        keys with one entry per visual token (S, ...); ``visual_cu_seqlens`` (I + 1,) int32. All
        other keys are unchanged; ``attention_mask`` and ``visual_token_mask`` are gone.

    Raises
    ------
    ConfigError
        When the batch has no text, a row of it is empty, or the mask of its visual tokens is
        missing.

    Examples
    --------
    >>> batch = {
    ...     "input_ids": torch.tensor([[5, 6, 0], [7, 8, 9]]),
    ...     "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
    ...     "labels": torch.tensor([[-100, 6, -100], [-100, 8, 9]]),
    ... }
    >>> packed = pack_batch(batch)
    >>> packed["input_ids"].tolist(), packed["position_ids"].tolist()
    ([[5, 6, 7, 8, 9]], [[0, 1, 0, 1, 2]])
    >>> packed["cu_seq_lens_q"].tolist(), packed["max_length_q"]
    ([0, 2, 5], 3)
    """
    if "input_ids" not in batch or "attention_mask" not in batch:
        raise ConfigError("packing needs a padded batch with text: input_ids and attention_mask")
    real = batch["attention_mask"].bool()
    lengths = real.sum(1)
    if not bool((lengths > 0).all()):
        raise ConfigError("packing needs at least one token in each row of the batch")
    names = [name for name in batch if name in KEYS and "packed" in KEYS[name].layouts]
    text = [name for name in names if KEYS[name].per_text_token]
    per_token = [name for name in names if KEYS[name].per_token]
    if per_token and "visual_token_mask" not in batch:
        raise ConfigError(
            f"packing {per_token[0]!r} needs 'visual_token_mask', which says what is real"
        )
    packed: dict[str, Any] = {name: batch[name][real][None] for name in text}
    packed["position_ids"] = (real.cumsum(1) - 1)[real][None]
    if "labels" in packed:
        # The first token of a sample must not be predicted from the last one of its neighbour.
        first = packed["position_ids"] == 0
        packed["labels"] = packed["labels"].masked_fill(first, IGNORE_INDEX)
    offsets = _offsets(lengths)
    longest = int(lengths.max())
    packed |= {"cu_seq_lens_q": offsets, "cu_seq_lens_k": offsets.clone()}
    packed |= {"max_length_q": longest, "max_length_k": longest}
    for name, value in batch.items():
        if name in per_token:
            packed[name] = value[batch["visual_token_mask"]]
        elif name not in text and (name not in KEYS or name in names):
            packed[name] = value
    if "num_visual_tokens" in batch:
        packed["visual_cu_seqlens"] = _offsets(batch["num_visual_tokens"])
    return packed


def _padded(rows: Tensor, offsets: Tensor, length: int, fill: float, *, left: bool) -> Tensor:
    """Rows (T, ...) of several sequences as (B, length, ...)."""
    sizes = offsets.diff().long()
    column = torch.arange(length, device=rows.device)
    if left:
        column = column - (length - sizes[:, None])
    mask = (column >= 0) & (column < sizes[:, None])
    out = rows.new_full((len(sizes), length, *rows.shape[1:]), fill)
    out[mask] = rows
    return out


def unpack_batch(
    packed: Mapping[str, Any],
    *,
    pad_id: int,
    padding_side: str = "right",
    pad_to_multiple_of: int = 1,
    visual_multiple_of: int = 1,
) -> dict[str, Any]:
    """Restore the padded batch that :func:`pack_batch` was given.

    Parameters
    ----------
    packed : mapping
        From :func:`pack_batch`.
    pad_id : int
        Token id on padding.
    padding_side : {"right", "left"}
        Where text is padded.
    pad_to_multiple_of, visual_multiple_of : int
        Lengths of text rows and of visual rows are rounded up to these.

    Examples
    --------
    >>> batch = {
    ...     "input_ids": torch.tensor([[5, 6, 0], [7, 8, 9]]),
    ...     "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
    ... }
    >>> restored = unpack_batch(pack_batch(batch), pad_id=0)
    >>> all(torch.equal(restored[name], batch[name]) for name in batch)
    True
    """
    offsets: Tensor = packed["cu_seq_lens_q"]
    left = padding_side == "left"
    length = round_up(int(packed["max_length_q"]), pad_to_multiple_of)
    rows = {**packed, "attention_mask": torch.ones_like(packed["input_ids"])}
    batch: dict[str, Any] = {}
    for name, key in KEYS.items():
        if key.per_text_token and name in rows:
            fill = pad_id if key.pad is None else key.pad
            batch[name] = _padded(rows[name][0], offsets, length, fill, left=left)
    borders: Tensor | None = packed.get("visual_cu_seqlens")
    width = 0
    if borders is not None:
        widths = borders.diff()
        width = round_up(int(widths.max()), visual_multiple_of)
        batch["visual_token_mask"] = torch.arange(width, device=widths.device) < widths[:, None]
    for name, value in packed.items():
        key = KEYS.get(name)
        if name in batch or (key is not None and "padded" not in key.layouts):
            continue
        if borders is not None and key is not None and key.per_token and key.pad is not None:
            batch[name] = _padded(value, borders, width, key.pad, left=False)
        else:
            batch[name] = value
    return batch


def text_efficiency(batch: Mapping[str, Any]) -> dict[str, float]:
    """Measure how much of a batch is content, and how much is padding.

    Returns
    -------
    dict of float
        ``text_padding``: share of padding in ``input_ids`` (0 when packed); ``packed_length``: text
        tokens of the batch, the length of the row that packing gives; ``padded_length``: places of
        the padded rows; ``visual_padding``: share of padding among visual tokens.

    Examples
    --------
    >>> mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    >>> text_efficiency({"input_ids": mask, "attention_mask": mask})
    {'text_padding': 0.25, 'packed_length': 6.0, 'padded_length': 8.0}
    """
    found: dict[str, float] = {}
    if "cu_seq_lens_q" in batch:
        lengths = batch["cu_seq_lens_q"].diff()
        real, padded = float(lengths.sum()), float(lengths.max() * len(lengths))
        found = {"text_padding": 0.0, "packed_length": real, "padded_length": padded}
    elif "attention_mask" in batch:
        mask = batch["attention_mask"]
        real, padded = float(mask.sum()), float(mask.numel())
        share = 1 - real / padded
        found = {"text_padding": share, "packed_length": real, "padded_length": padded}
    if "visual_token_mask" in batch:
        found["visual_padding"] = 1 - float(batch["visual_token_mask"].float().mean())
    return found


def packing_refusal(
    model_config: Any = None, *, dispatch_batches: bool = False, split_batches: bool = False
) -> None:
    """Refuse packing where it would train on wrong sequences.

    Parameters
    ----------
    model_config : PretrainedConfig, optional
        Configuration of the model; refused with multimodal rotary positions.
    dispatch_batches, split_batches : bool
        Options of accelerate; both split batches along the first axis, 1 in a packed batch.

    Raises
    ------
    ConfigError
        With the reason and what to do instead.

    Examples
    --------
    >>> packing_refusal(split_batches=True)
    Traceback (most recent call last):
    ...
    subtok_data.errors.ConfigError: packing=True cannot be combined with split_batches: ...
    """
    for name, given in (("dispatch_batches", dispatch_batches), ("split_batches", split_batches)):
        if given:
            raise ConfigError(
                f"packing=True cannot be combined with {name}: a packed batch is one row, and "
                f"processes would split it along its first axis. Set {name}=False"
            )
    if model_config is not None and _is_multimodal_rope(model_config):
        kind = getattr(model_config, "model_type", type(model_config).__name__)
        raise ConfigError(
            f"packing=True cannot be used with {kind!r}: its rotary positions have several axes "
            f"taken from a grid of patches, while packed rows have one position per token. Use "
            f"padded batches, or a model with plain rotary positions"
        )


def refuse_dispatcher() -> None:
    """Refuse packing while accelerate's dispatcher iterates, which splits batches in rows.

    Raises
    ------
    ConfigError
        See :func:`packing_refusal`.
    """
    if "accelerate.data_loader" not in sys.modules:  # nobody can be iterating one
        return
    from accelerate.data_loader import DataLoaderDispatcher
    from accelerate.state import GradientState

    if isinstance(GradientState().active_dataloader, DataLoaderDispatcher):
        packing_refusal(dispatch_batches=True)


def _is_multimodal_rope(config: Any) -> bool:
    for part in (config, getattr(config, "text_config", None)):
        for name in ("rope_parameters", "rope_scaling"):
            rope: Any = getattr(part, name, None)
            if isinstance(rope, Mapping) and "mrope_section" in rope:
                return True
    # Families that number merged patches of a grid keep the merge size in their vision part.
    return hasattr(getattr(config, "vision_config", None), "spatial_merge_size")
