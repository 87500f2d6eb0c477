"""Merge visual vectors and text embeddings into one sequence."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

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
        (B, L) int64, padded or packed.
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
    if features.ndim == 3:
        if visual_token_mask is None:
            raise ValueError("padded features (I, N, D) need visual_token_mask")
        features = features[visual_token_mask]
    place = input_ids == placeholder_id
    if torch.compiler.is_compiling():  # a number of Python's would break the graph
        torch._assert_async(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
            place.sum() == features.shape[0],
            f"input_ids have more or fewer placeholders (id {placeholder_id}) than there are "
            f"visual vectors: batch and features must come from the same images",
        )
        return _merge(inputs_embeds, place, features, mode)
    # The count makes the device wait, once; a silent shift of all later images would cost more.
    expected = int(place.sum())
    if expected != features.shape[0]:
        raise ValueError(
            f"input_ids hold {expected} placeholders (id {placeholder_id}), but there are "
            f"{features.shape[0]} visual vectors: batch and features must come from the same images"
        )
    if features.shape[-1] != inputs_embeds.shape[-1]:
        raise ValueError(
            f"visual vectors have width {features.shape[-1]}, the text embeddings "
            f"{inputs_embeds.shape[-1]}: set hidden_size of the token embedding to the latter"
        )
    return _merge(inputs_embeds, place, features, mode)


def _merge(inputs_embeds: Tensor, place: Tensor, features: Tensor, mode: str) -> Tensor:
    features = features.to(inputs_embeds.device, inputs_embeds.dtype)
    mask = place[..., None].expand_as(inputs_embeds)
    if mode == "replace":
        return inputs_embeds.masked_scatter(mask, features)
    return inputs_embeds + torch.zeros_like(inputs_embeds).masked_scatter(mask, features)
