"""Merge visual vectors and text embeddings into one sequence."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from subtok_data.nn.transfer import to_device

__all__ = ["merge_visual_tokens"]


def merge_visual_tokens(
    inputs_embeds: Tensor,
    input_ids: Tensor,
    features: Tensor,
    placeholder_id: int,
    *,
    visual_token_mask: Tensor | None = None,
    mode: Literal["replace", "add"] = "replace",
) -> Tensor:
    """Put one visual vector at each placeholder, in order.

    Parameters
    ----------
    inputs_embeds : Tensor
        (B, L, D) embeddings of ``input_ids``.
    input_ids : Tensor
        (B, L) int64, padded or packed; on any device. On the CPU, nothing waits for a device.
    features : Tensor
        (T, D) vectors of all tokens, image after image, or (I, N, D) with ``visual_token_mask``.
    placeholder_id : int
        Id of the placeholder in ``input_ids``.
    visual_token_mask : Tensor, optional
        (I, N) bool; which rows of padded features are tokens.
    mode : {"replace", "add"}
        ``"replace"`` puts the vector in place of the placeholder's embedding, as LLaVA-type models
        do; ``"add"`` keeps the placeholder's own embedding and adds the vector to
        it, as the original EPOC code does.

    Returns
    -------
    Tensor
        (B, L, D) in the dtype of ``inputs_embeds``; gradients reach both inputs.

    Raises
    ------
    ValueError
        When placeholders and vectors differ in number; the message names both. (In a graph of
        ``torch.compile``, RuntimeError without the numbers.)

    Examples
    --------
    >>> ids = torch.tensor([[1, 9, 9, 2]])
    >>> out = merge_visual_tokens(torch.zeros(1, 4, 1), ids, torch.tensor([[5.0], [6.0]]), 9)
    >>> out[0, :, 0].tolist()
    [0.0, 5.0, 6.0, 0.0]
    """
    mask = visual_token_mask if features.ndim == 3 else None
    if features.ndim == 3 and mask is None:
        raise ValueError("padded features (I, N, D) need visual_token_mask")
    place = input_ids == placeholder_id
    if torch.compiler.is_compiling():  # a number of Python's would break the graph
        if mask is not None:
            features = features[mask]
        torch._assert_async(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
            place.sum() == features.shape[0],
            f"input_ids have more or fewer placeholders (id {placeholder_id}) than there are "
            f"visual vectors: batch and features must come from the same images",
        )
        features = features.to(inputs_embeds.device, inputs_embeds.dtype)
        wide = place[..., None].expand_as(inputs_embeds)
        if mode == "replace":
            return inputs_embeds.masked_scatter(wide, features)
        return inputs_embeds + torch.zeros_like(inputs_embeds).masked_scatter(wide, features)
    # Where ids or mask are on a device, their number makes the host wait, once each; a silent shift
    # of all later images would cost more. What follows, forward and backward, waits no more.
    device = inputs_embeds.device
    (rows,) = to_device([place.flatten().nonzero().squeeze(1)], device)
    if mask is not None:
        tokens = mask.flatten().nonzero().squeeze(1)
        (tokens,) = to_device([tokens], features.device)
        features = features.flatten(0, 1).index_select(0, tokens)
    if rows.shape[0] != features.shape[0]:
        raise ValueError(
            f"input_ids hold {rows.shape[0]} placeholders (id {placeholder_id}), but there are "
            f"{features.shape[0]} visual vectors: batch and features must come from the same images"
        )
    if features.shape[-1] != inputs_embeds.shape[-1]:
        raise ValueError(
            f"visual vectors have width {features.shape[-1]}, the text embeddings "
            f"{inputs_embeds.shape[-1]}: set hidden_size of the token embedding to the latter"
        )
    features = features.to(device, inputs_embeds.dtype)
    flat = inputs_embeds.flatten(0, 1)
    if mode == "add":
        features = flat.index_select(0, rows) + features
    return flat.index_copy(0, rows, features).view_as(inputs_embeds)
