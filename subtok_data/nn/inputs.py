"""Compute on the host what an embedding reads of a batch, and bring it to the device at once.

How many tokens and cells a batch has is known only from its values. On a device each such number
would make the host wait; so the values are looked at on the CPU, where the loader leaves them, and
what follows goes up in one copy. ``torch.compile`` takes all of it as one operator whose results
have unknown lengths, so that a graph has no break and is not compiled anew for each number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from subtok_data.errors import ConfigError
from subtok_data.nn.cells import Sampling, host_cells
from subtok_data.nn.shapes import shape_codes
from subtok_data.nn.transfer import to_device, to_host

__all__ = ["HOST_KEYS", "TokenInputs", "token_inputs"]

HOST_KEYS = (
    "visual_token_map",
    "num_visual_tokens",
    "visual_token_mask",
    "visual_token_boxes",
    "visual_token_shapes",
    "visual_cu_seqlens",
    "map_sizes",
    "valid_sizes",
)
"""Keys of a batch that are read on the host, but for the boxes and shapes of those on a device."""


class TokenInputs(NamedTuple):
    """On the device of the features.

    Attributes
    ----------
    boxes : Tensor
        (T, 4) float.
    shapes : Tensor
        (T, r, r) bool; (T, 0, 0) where none are asked for.
    cells : tuple of Tensor
        The tensors of a :class:`~subtok_data.nn.TokenCells`; empty ones where none are asked for.
    """

    boxes: Tensor
    shapes: Tensor
    cells: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def token_inputs(
    batch: Mapping[str, Tensor],
    device: torch.device,
    *,
    feature_size: tuple[int, int] | None,
    stride: int | None,
    sampling: Sampling,
    shape_size: int,
) -> TokenInputs:
    """Compute what :class:`~subtok_data.nn.TokenEmbedding` reads besides features.

    Parameters
    ----------
    batch : mapping
        A finished batch, padded or packed; each tensor on the CPU or on the device.
    device : torch.device
        Of the features.
    feature_size : tuple of int, optional
        (h, w) cells of the features; None for no token cells.
    stride, sampling
        See :func:`~subtok_data.nn.token_cells`.
    shape_size : int
        Bins per side, r; 0 for no shapes.

    Raises
    ------
    ConfigError
        A key is missing, or shapes of the batch have another size.
    """
    for name in ("visual_token_map", "num_visual_tokens", "visual_token_boxes"):
        if name not in batch:
            raise ConfigError(f"the batch has no {name!r}, which the token embedding reads")
    shapes = batch.get("visual_token_shapes") if shape_size else None
    if shapes is not None and shapes.shape[-1] != shape_size:
        raise ConfigError(
            f"visual_token_shapes have {shapes.shape[-1]} bins per side, shape_size is "
            f"{shape_size}: make them equal, or leave the shapes out of the batch"
        )
    # The rows of packed batches are those of tokens already.
    mask = None if "visual_cu_seqlens" in batch else batch["visual_token_mask"]
    pixels = batch["pixel_values"].shape[-2:] if feature_size else ()
    arguments = (
        batch["visual_token_map"],
        batch["num_visual_tokens"],
        mask,
        batch["visual_token_boxes"],
        shapes,
        batch.get("map_sizes"),
        batch.get("valid_sizes"),
        [*(feature_size or ()), *pixels],
        stride,
        sampling,
        shape_size,
        device,
    )
    if torch.compiler.is_compiling():
        found = torch.ops.subtok_data.token_inputs(*arguments)
    else:
        found = _token_inputs(*arguments)
    return TokenInputs(found[0], found[1], cast(Any, tuple(found[2:])))


def _token_inputs(
    token_map: Tensor,
    counts: Tensor,
    mask: Tensor | None,
    boxes: Tensor,
    shapes: Tensor | None,
    map_sizes: Tensor | None,
    valid_sizes: Tensor | None,
    sizes: list[int],
    stride: int | None,
    sampling: str,
    shape_size: int,
    device: torch.device,
) -> list[Tensor]:
    has_cells, makes_shapes = bool(sizes), bool(shape_size) and shapes is None
    none = torch.empty(0, dtype=torch.int64)
    read = [token_map if has_cells or makes_shapes else none]
    read += [none if one is None else one for one in (counts, mask, map_sizes, valid_sizes)]
    token_map, numbers, real, *extents = to_host(read)
    of_map, of_pixels = (one.tolist() or None for one in extents)
    number = numbers.tolist()
    if has_cells:
        cells = host_cells(
            token_map,
            number,
            (sizes[0], sizes[1]),
            pixel_size=(sizes[2], sizes[3]),
            map_sizes=of_map,
            valid_sizes=of_pixels,
            stride=stride,
            sampling=cast(Sampling, sampling),
        ).tensors
    else:
        cells = (none, none, none.float(), none, none, none)
    if makes_shapes:
        shapes = shape_codes(token_map, number, shape_size, map_sizes=of_map)
    elif shapes is None:
        shapes = torch.empty(sum(number), 0, 0, dtype=torch.bool)
    elif mask is not None and shapes.device.type == "cpu":
        shapes = shapes[real]
    if mask is not None and boxes.device.type == "cpu":
        boxes = boxes[real]
    place = none if mask is None else real.flatten().nonzero().squeeze(1)
    place, box_rows, shape_rows, *moved = to_device([place, boxes, shapes, *cells], device)
    if box_rows.ndim == 3:  # padded, and on the device already
        box_rows = box_rows.flatten(0, 1).index_select(0, place)
    if shape_rows.ndim == 4:
        shape_rows = shape_rows.flatten(0, 1).index_select(0, place)
    return [box_rows, shape_rows, *moved]


@torch.library.custom_op(
    "subtok_data::token_inputs",
    mutates_args=(),
    schema=(
        "(Tensor token_map, Tensor counts, Tensor? mask, Tensor boxes, Tensor? shapes, "
        "Tensor? map_sizes, Tensor? valid_sizes, SymInt[] sizes, int? stride, str sampling, "
        "int shape_size, Device device) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
)
def _operator(*arguments: Any) -> tuple[Tensor, ...]:
    # Results of an operator share no memory, neither with each other nor with what it is given.
    return tuple(one.clone() for one in _token_inputs(*arguments))


@_operator.register_fake
def _(
    token_map: Tensor,
    counts: Any,
    mask: Tensor | None,
    boxes: Tensor,
    shapes: Any,
    map_sizes: Any,
    valid_sizes: Any,
    sizes: Any,
    stride: Any,
    sampling: Any,
    shape_size: int,
    device: torch.device,
) -> tuple[Tensor, ...]:
    del counts, shapes, map_sizes, valid_sizes, stride, sampling
    context: Any = torch.library.get_ctx()
    tokens = boxes.shape[0] if mask is None else context.new_dynamic_size()
    pairs = context.new_dynamic_size() if sizes else 0
    cells = token_map.shape[0] * sizes[0] * sizes[1] if sizes else -1

    def empty(*shape: Any, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    return (
        empty(tokens, 4, dtype=boxes.dtype),
        empty(tokens, shape_size, shape_size, dtype=torch.bool),
        empty(pairs),
        empty(pairs),
        empty(pairs, dtype=torch.float32),
        empty(tokens + 1 if sizes else 0),
        empty(pairs),
        empty(cells + 1),
    )
