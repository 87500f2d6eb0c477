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

from subtok_data.errors import ConfigError
from subtok_data.text.rows import IGNORE

__all__ = ["pack_batch", "packing_refusal", "refuse_dispatcher", "text_efficiency", "unpack_batch"]
_TEXT = ("input_ids", "labels", "mm_token_type_ids")
_PACKED_ONLY = frozenset(
    {
        "position_ids",
        "cu_seq_lens_q",
        "cu_seq_lens_k",
        "max_length_q",
        "max_length_k",
        "visual_cu_seqlens",
    }
)


def _offsets(lengths: Tensor) -> Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)


def _is_token_rows(name: str, value: Any, mask: Tensor) -> bool:
    """Tell keys of shape (I, N, ...), one value per visual token, from all others."""
    return (
        name.startswith("visual_token_")
        and name not in ("visual_token_map", "visual_token_mask")
        and isinstance(value, Tensor)
        and value.shape[:2] == mask.shape
    )


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
        ``visual_token_*`` (S, ...) except the map; ``visual_cu_seqlens`` (I + 1,) int32. The map
        and all other keys are unchanged; ``attention_mask`` and ``visual_token_mask`` are gone.

    Raises
    ------
    ConfigError
        When the batch has no text, or a row of it is empty.

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
    packed: dict[str, Any] = {name: batch[name][real][None] for name in _TEXT if name in batch}
    packed["position_ids"] = (real.cumsum(1) - 1)[real][None]
    if "labels" in packed:
        # The first token of a sample must not be predicted from the last one of its neighbour.
        packed["labels"] = packed["labels"].masked_fill(packed["position_ids"] == 0, IGNORE)
    offsets = _offsets(lengths)
    longest = int(lengths.max())
    packed |= {"cu_seq_lens_q": offsets, "cu_seq_lens_k": offsets.clone()}
    packed |= {"max_length_q": longest, "max_length_k": longest}
    for name, value in batch.items():
        if name in (*_TEXT, "attention_mask", "visual_token_mask"):
            continue
        if "visual_token_mask" in batch and _is_token_rows(name, value, batch["visual_token_mask"]):
            packed[name] = value[batch["visual_token_mask"]]
        else:
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


def _rounded(longest: int, multiple: int) -> int:
    return -(-longest // multiple) * multiple


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
    length = _rounded(int(packed["max_length_q"]), pad_to_multiple_of)
    batch: dict[str, Any] = {}
    fills = {"input_ids": pad_id, "labels": IGNORE, "mm_token_type_ids": 0}
    for name in _TEXT:
        if name in packed:
            batch[name] = _padded(packed[name][0], offsets, length, fills[name], left=left)
        if name == "input_ids":
            ones = torch.ones_like(packed["input_ids"][0])
            batch["attention_mask"] = _padded(ones, offsets, length, 0, left=left)
    mask: Tensor | None = None
    if "visual_cu_seqlens" in packed:
        widths = packed["visual_cu_seqlens"].diff()
        width = _rounded(int(widths.max()), visual_multiple_of)
        mask = torch.arange(width, device=widths.device) < widths[:, None]
        batch["visual_token_mask"] = mask
    for name, value in packed.items():
        if name in batch or name in _PACKED_ONLY:
            continue
        batch[name] = value
        per_token = name.startswith("visual_token_") and name != "visual_token_map"
        if mask is not None and per_token and len(value) == int(mask.sum()):
            fill = -1 if name in _INTEGER_FIELDS else 0
            width = mask.shape[1]
            rows = _padded(value, packed["visual_cu_seqlens"], width, fill, left=False)
            batch[name] = rows
    return batch


# Values per token that are -1 where there is none; all others are 0 on padding.
_INTEGER_FIELDS = ("visual_token_source", "visual_token_class", "visual_token_prompt")


def text_efficiency(batch: Mapping[str, Any]) -> dict[str, float]:
    """How much of a batch is content.

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
        Options of accelerate; both cut batches along the first axis, which is 1 in a packed batch.

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
                f"processes would cut it along its first axis. Set {name}=False"
            )
    if model_config is not None and _is_multimodal_rope(model_config):
        kind = getattr(model_config, "model_type", type(model_config).__name__)
        raise ConfigError(
            f"packing=True cannot be used with {kind!r}: its rotary positions have several axes "
            f"taken from a grid of patches, while packed rows have one position per token. Use "
            f"padded batches, or a model with plain rotary positions"
        )


def refuse_dispatcher() -> None:
    """Refuse packing while accelerate's dispatcher iterates: it cuts batches along the first axis.

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
