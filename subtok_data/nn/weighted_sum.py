"""Multiply a sparse matrix with dense rows, in a fixed order, with its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["weighted_sum"]

_ARGUMENTS = "Tensor row, Tensor column, Tensor weight, Tensor start, Tensor order, Tensor back"


# An operator of our own, so that torch.compile takes it whole whatever the number of pairs.
@torch.library.custom_op(
    "subtok_data::weighted_sum", mutates_args=(), schema=f"(Tensor values, {_ARGUMENTS}) -> Tensor"
)
def _weighted_sum(
    values: Tensor,
    row: Tensor,
    column: Tensor,
    weight: Tensor,
    start: Tensor,
    order: Tensor,
    back: Tensor,
) -> Tensor:
    del order, back
    values, weight = values.contiguous(), weight.to(values.dtype)
    if values.device.type in ("cpu", "cuda"):
        # Sums of a bag are made one after the other by one thread: no atomic additions.
        out, *_ = torch.embedding_bag(
            values,
            column,
            start,
            mode=0,
            per_sample_weights=weight,
            include_last_offset=True,
        )
        return out
    out = values.new_zeros(start.shape[0] - 1, values.shape[1])
    return out.index_add_(0, row, values.index_select(0, column) * weight[:, None])


@_weighted_sum.register_fake
def _(values: Tensor, *matrix: Any) -> Tensor:
    start: Tensor = matrix[3]
    return values.new_empty(start.shape[0] - 1, values.shape[1])


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    del output
    ctx.save_for_backward(*inputs[1:])


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    row, column, weight, start, order, back = ctx.saved_tensors
    # The places of a permutation's values are its inverse.
    inverse = torch.empty_like(order).scatter_(
        0, order, torch.arange(order.shape[0], device=order.device)
    )
    transposed = weighted_sum(
        gradient,
        column.index_select(0, order),
        row.index_select(0, order),
        weight.index_select(0, order),
        back,
        inverse,
        start,
    )
    return transposed, None, None, None, None, None, None


torch.library.register_autograd("subtok_data::weighted_sum", _backward, setup_context=_save)


def weighted_sum(
    values: Tensor,
    row: Tensor,
    column: Tensor,
    weight: Tensor,
    start: Tensor,
    order: Tensor,
    back: Tensor,
) -> Tensor:
    """Return (N, C): in each row the sum of weights times the rows of ``values`` at its columns.

    Parameters
    ----------
    values : Tensor
        (M, C) float32 or float64; gradients reach them.
    row, column, weight : Tensor
        (K,) int64, int64 and float; the entries of an N x M matrix, sorted by row.
    start : Tensor
        (N + 1,) int64; where the entries of each row begin.
    order : Tensor
        (K,) int64; the places of the entries, sorted by column.
    back : Tensor
        (M + 1,) int64; where the entries of each column begin in that order.

    Examples
    --------
    >>> values = torch.tensor([[1.0], [2.0]])
    >>> row, column, weight = torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([0.5, 0.5])
    >>> start, order, back = torch.tensor([0, 2]), torch.tensor([0, 1]), torch.tensor([0, 1, 2])
    >>> weighted_sum(values, row, column, weight, start, order, back)
    tensor([[1.5000]])
    """
    return torch.ops.subtok_data.weighted_sum(values, row, column, weight, start, order, back)
