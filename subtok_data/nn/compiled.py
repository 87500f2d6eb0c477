"""What ``torch.compile`` cannot look into, as operators that it takes whole.

Which cells and how many rows a token map gives is known only from its values. Inside a compiled
graph these are operators of unknown output size, so that the graph has no break and is not compiled
anew for other numbers of tokens. Outside one, the functions are called directly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor

from subtok_data.nn.cells import token_cells
from subtok_data.nn.shapes import shape_codes

__all__ = ["compiled_cells", "compiled_shapes", "compiled_tokens"]


@torch.library.custom_op(
    "subtok_data::token_cells",
    mutates_args=(),
    schema=(
        "(Tensor token_map, Tensor counts, Tensor? map_sizes, Tensor? valid_sizes, SymInt[] sizes, "
        "int? stride, str sampling) -> (Tensor, Tensor, Tensor)"
    ),
)
def _token_cells(
    token_map: Tensor,
    counts: Tensor,
    map_sizes: Tensor | None,
    valid_sizes: Tensor | None,
    sizes: list[int],
    stride: int | None,
    sampling: str,
) -> tuple[Tensor, Tensor, Tensor]:
    cells = token_cells(
        token_map,
        counts.tolist(),
        (sizes[0], sizes[1]),
        pixel_size=(sizes[2], sizes[3]),
        map_sizes=None if map_sizes is None else map_sizes.tolist(),
        valid_sizes=None if valid_sizes is None else valid_sizes.tolist(),
        stride=stride,
        sampling=cast(Literal["area", "bilinear"], sampling),
    )
    return cells.token, cells.cell, cells.weight


@_token_cells.register_fake
def _(token_map: Tensor, *_others: Any) -> tuple[Tensor, Tensor, Tensor]:
    pairs: Any = torch.library.get_ctx().new_dynamic_size()
    index = token_map.new_empty(pairs, dtype=torch.int64)
    return index, torch.empty_like(index), token_map.new_empty(pairs, dtype=torch.float32)


@torch.library.custom_op(
    "subtok_data::shape_codes",
    mutates_args=(),
    schema=(
        "(Tensor token_map, Tensor counts, Tensor? map_sizes, SymInt tokens, int size) -> Tensor"
    ),
)
def _shape_codes(
    token_map: Tensor, counts: Tensor, map_sizes: Tensor | None, tokens: int, size: int
) -> Tensor:
    del tokens
    sizes = None if map_sizes is None else map_sizes.tolist()
    return shape_codes(token_map, counts.tolist(), size, map_sizes=sizes)


@_shape_codes.register_fake
def _(token_map: Tensor, counts: Any, map_sizes: Any, tokens: int, size: int) -> Tensor:
    del counts, map_sizes
    return token_map.new_empty(tokens, size, size, dtype=torch.bool)


@torch.library.custom_op(
    "subtok_data::take_tokens", mutates_args=(), schema="(Tensor mask) -> Tensor"
)
def _take_tokens(mask: Tensor) -> Tensor:
    return mask.flatten().nonzero().squeeze(1)


@_take_tokens.register_fake
def _(mask: Tensor) -> Tensor:
    return mask.new_empty(cast(Any, torch.library.get_ctx().new_dynamic_size()), dtype=torch.int64)


def compiled_tokens(mask: Tensor) -> Tensor:
    """Return the places (T,) int64 of the tokens in a padded batch's flattened mask (I, N)."""
    return torch.ops.subtok_data.take_tokens(mask)


def compiled_cells(
    batch: Mapping[str, Tensor],
    feature_size: tuple[int, int],
    stride: int | None,
    sampling: Literal["area", "bilinear"],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return token, cell and weight of :func:`~subtok_data.nn.token_cells`."""
    return torch.ops.subtok_data.token_cells(
        batch["visual_token_map"],
        batch["num_visual_tokens"],
        batch.get("map_sizes"),
        batch.get("valid_sizes"),
        [*feature_size, *batch["pixel_values"].shape[-2:]],
        stride,
        sampling,
    )


def compiled_shapes(batch: Mapping[str, Tensor], tokens: int, size: int) -> Tensor:
    """Return the codes (T, r, r) bool of :func:`~subtok_data.nn.shape_codes`."""
    return torch.ops.subtok_data.shape_codes(
        batch["visual_token_map"], batch["num_visual_tokens"], batch.get("map_sizes"), tokens, size
    )
