"""Smoothing of scores over nearest neighbours in feature space, as IFSeg does after inference.

IFSeg (arXiv 2303.14396, section 3.4) averages the class scores of each position over the positions
whose backbone features are most alike, again and again. Here positions are the cells of a feature
map or visual tokens; the neighbours are found in chunks, so no (N, N) matrix is held.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from subtok_data.errors import ConfigError

__all__ = ["nearest_neighbors", "smooth_feature_map", "smooth_scores"]

_CHUNK = 1024


@torch.no_grad()
def nearest_neighbors(
    features: Tensor, k: int = 3, *, mask: Tensor | None = None, chunk_size: int = _CHUNK
) -> tuple[Tensor, Tensor]:
    """The k most similar positions of the same image, by the cosine of their features.

    Parameters
    ----------
    features : (I, N, D) Tensor
        Any float dtype; compared in float32 or better.
    k : int, optional
        Neighbours, the position itself included: it always comes first, also where others have
        equal features.
    mask : (I, N) bool Tensor, optional
        True for real positions; the others are nobody's neighbour.
    chunk_size : int, optional
        Positions compared with all others at once: memory is I · chunk_size · N floats.

    Returns
    -------
    index : (I, N, k) int64 Tensor
        Neighbours, most similar first; the position itself where there are fewer than k.
    is_neighbor : (I, N, k) bool Tensor
        False for those fillings, and everywhere on padding.

    Raises
    ------
    ConfigError
        If k or chunk_size is below 1.

    Examples
    --------
    >>> features = torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]])
    >>> nearest_neighbors(features, k=2)[0].tolist()
    [[[0, 1], [1, 0], [2, 1]]]
    """
    if k < 1 or chunk_size < 1:
        raise ConfigError(f"k={k}, chunk_size={chunk_size}: give at least 1")
    images, count, _ = features.shape
    real = _real(features, mask)
    device = features.device
    with torch.autocast(device.type, enabled=False):
        wide = features if features.dtype == torch.float64 else features.float()
        unit = F.normalize(wide, dim=-1)
        kept = min(k, count)
        index = torch.empty(images, count, kept, dtype=torch.int64, device=device)
        found = torch.empty(images, count, kept, dtype=torch.bool, device=device)
        for start in range(0, count, chunk_size):
            part = slice(start, min(start + chunk_size, count))
            similar = unit[:, part] @ unit.transpose(1, 2)
            similar.masked_fill_(~real[:, None, :], -torch.inf)
            # Rounding, or a twin, must not push a position out of its own neighbours.
            similar.diagonal(offset=start, dim1=1, dim2=2).fill_(torch.inf)
            best = similar.topk(kept, dim=-1)
            index[:, part], found[:, part] = best.indices, best.values > -torch.inf
    itself = torch.arange(count, device=device)[None, :, None]
    found &= real[..., None]
    index = torch.where(found, index, itself)
    if kept < k:
        index = torch.cat([index, itself.expand(images, count, k - kept)], dim=-1)
        found = F.pad(found, (0, k - kept))
    return index, found


def smooth_scores(
    scores: Tensor,
    features: Tensor,
    *,
    k: int = 3,
    iterations: int = 25,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    chunk_size: int = _CHUNK,
) -> Tensor:
    """Average class scores over the k most similar positions, several times.

    Each iteration replaces the scores of every position, all at once, by the mean over its k
    neighbours, itself included; the neighbours stay the same.

    Parameters
    ----------
    scores : (I, N, C) Tensor
        Class scores of positions: cells of a feature map, or visual tokens.
    features : (I, N, D) Tensor
        What similarity is measured on: features of the backbone, before any projection.
    k, iterations : int, optional
        The paper's 3 and 25. ``iterations=0`` gives the scores back.
    mask : (I, N) bool Tensor, optional
        ``visual_token_mask``: True for real tokens. Padding is nobody's neighbour, and 0 in the
        result.
    weights : (I, N) Tensor, optional
        How much each position counts in the means, 0 or more: ``visual_token_areas``, for example.
        Equal by default.
    chunk_size : int, optional
        See :func:`nearest_neighbors`.

    Returns
    -------
    (I, N, C) Tensor
        In the dtype of ``scores``; float32 inside if that is shorter. Differentiable in the scores.

    Raises
    ------
    ConfigError
        If shapes do not go together, or k, iterations or chunk_size are out of range.

    Examples
    --------
    >>> scores = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
    >>> features = torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]])
    >>> smooth_scores(scores, features, k=2, iterations=1)[0, 0].tolist()
    [0.5, 0.5]
    """
    if iterations < 0:
        raise ConfigError(f"iterations={iterations}: give 0 or more")
    if scores.ndim != 3 or features.ndim != 3 or scores.shape[:2] != features.shape[:2]:
        raise ConfigError(
            f"scores {tuple(scores.shape)} and features {tuple(features.shape)}: expected "
            "(I, N, C) and (I, N, D); smooth_feature_map takes (I, C, h, w)"
        )
    real = _real(features, mask)
    index, found = nearest_neighbors(features, k, mask=real, chunk_size=chunk_size)
    with torch.autocast(scores.device.type, enabled=False):
        values = scores if scores.dtype == torch.float64 else scores.float()
        values = values.masked_fill(~real[..., None], 0)
        shares = _shares(index, found, weights, values.dtype)
        images = torch.arange(len(index), device=index.device)[:, None]
        for _ in range(iterations):
            # One neighbour at a time: nothing of size N · k · C.
            total = torch.zeros_like(values)
            for place in range(index.shape[-1]):
                total = total + shares[..., place, None] * values[images, index[..., place]]
            values = total
    return values.to(scores.dtype)


def smooth_feature_map(
    scores: Tensor,
    features: Tensor,
    *,
    k: int = 3,
    iterations: int = 25,
    mask: Tensor | None = None,
    chunk_size: int = _CHUNK,
) -> Tensor:
    """Smooth the class scores of the cells of a feature map; see :func:`smooth_scores`.

    Parameters
    ----------
    scores : (I, C, h, w) Tensor
        Class scores of cells.
    features : (I, D, h, w) Tensor
        Features of the same cells.
    k, iterations : int, optional
        The paper's 3 and 25.
    mask : (I, h, w) bool Tensor, optional
        True for cells of the image, False for padding.
    chunk_size : int, optional
        See :func:`nearest_neighbors`.

    Returns
    -------
    (I, C, h, w) Tensor

    Examples
    --------
    >>> smooth_feature_map(torch.ones(1, 2, 4, 4), torch.rand(1, 8, 4, 4)).shape
    torch.Size([1, 2, 4, 4])
    """
    if scores.ndim != 4 or features.ndim != 4 or scores.shape[2:] != features.shape[2:]:
        raise ConfigError(
            f"scores {tuple(scores.shape)} and features {tuple(features.shape)}: expected "
            "(I, C, h, w) and (I, D, h, w) with equal h, w"
        )
    smooth = smooth_scores(
        scores.flatten(2).transpose(1, 2),
        features.flatten(2).transpose(1, 2),
        k=k,
        iterations=iterations,
        mask=None if mask is None else mask.flatten(1),
        chunk_size=chunk_size,
    )
    return smooth.transpose(1, 2).reshape(scores.shape)


def _real(features: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
    if mask.shape != features.shape[:2] or mask.dtype != torch.bool:
        raise ConfigError(
            f"mask {tuple(mask.shape)} {mask.dtype}: expected {tuple(features.shape[:2])} bool, "
            "True for real positions"
        )
    return mask


def _shares(index: Tensor, found: Tensor, weights: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Share of each neighbour in the mean, (I, N, k); 0 on padding."""
    shares = found.to(dtype)
    if weights is not None:
        if weights.shape != index.shape[:2]:
            raise ConfigError(
                f"weights {tuple(weights.shape)}: expected {tuple(index.shape[:2])}, one each"
            )
        images = torch.arange(len(index), device=index.device)[:, None, None]
        shares = shares * weights.to(dtype)[images, index]
    total = shares.sum(-1, keepdim=True)
    # Neighbours that all weigh nothing count alike.
    even = found.to(dtype) / found.sum(-1, keepdim=True).clamp_min(1)
    return torch.where(total > 0, shares / total.clamp_min(torch.finfo(dtype).tiny), even)
