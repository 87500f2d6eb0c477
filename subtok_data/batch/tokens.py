"""Visual tokens and prompted regions of several images, padded and stacked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subtok_data.batch.keys import EXTENSION_FIELDS, KEYS
from subtok_data.batch.recycled import RecycledArrays
from subtok_data.segment import Prompts, Segmented

__all__ = ["list_regions", "pad_tokens", "round_up"]


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple of ``multiple`` that is at least ``value``."""
    return -(-value // multiple) * multiple


def pad_tokens(
    images: Sequence[Segmented],
    *,
    pad_to_multiple_of: int = 1,
    arrays: RecycledArrays | None = None,
) -> dict[str, Tensor]:
    """Stack the tokens of several images into the visual part of a batch.

    Parameters
    ----------
    images : sequence of Segmented
        Token map and geometry of each image.
    pad_to_multiple_of : int, optional
        N is rounded up to a multiple of this, so that compiled models see few lengths.
    arrays : RecycledArrays, optional
        Where the memory of the maps comes from; from the system by default.

    Returns
    -------
    dict of str to Tensor
        ``visual_token_map`` (I, Hs, Ws) int32, -1 outside the image; ``map_sizes`` (I, 2) int64;
        ``num_visual_tokens`` (I,) int64; ``visual_token_mask`` (I, N) bool; ``visual_token_boxes``
        (I, N, 4), ``visual_token_centers`` (I, N, 2), ``visual_token_areas`` (I, N) float32, as
        shares of the image; ``visual_token_shapes`` (I, N, r, r) bool and token fields where the
        images have them.
    """
    counts = np.array([image.num_tokens for image in images], dtype=np.int64)
    sizes = np.array([image.token_map.shape for image in images], dtype=np.int64).reshape(-1, 2)
    length = round_up(int(counts.max(initial=1)), pad_to_multiple_of)
    height, width = (int(side) for side in sizes.max(axis=0, initial=1))
    map_key = KEYS["visual_token_map"]
    maps = (arrays or RecycledArrays()).empty((len(images), height, width), map_key.dtypes[0])
    boxes, centers, areas = (
        KEYS[f"visual_token_{name}"].full(I=len(images), N=length)
        for name in ("boxes", "centers", "areas")
    )
    for row, image in enumerate(images):
        height, width = image.token_map.shape
        n, geometry = image.num_tokens, image.geometry
        maps[row, :height, :width] = image.token_map
        maps[row, height:] = maps[row, :height, width:] = map_key.pad
        boxes[row, :n] = geometry.boxes / np.array([width, height, width, height], np.float32)
        centers[row, :n] = geometry.centers / np.array([height, width], np.float32)
        areas[row, :n] = geometry.areas / (height * width)
    batch = {
        "visual_token_map": maps,
        "map_sizes": sizes,
        "num_visual_tokens": counts,
        "visual_token_mask": np.arange(length)[None, :] < counts[:, None],
        "visual_token_boxes": boxes,
        "visual_token_centers": centers,
        "visual_token_areas": areas,
        **_stack_optional(images, length),
    }
    return {name: torch.from_numpy(values) for name, values in batch.items()}


def _stack_optional(images: Sequence[Segmented], length: int) -> dict[str, NDArray[Any]]:
    stacked: dict[str, NDArray[Any]] = {}
    if images and all(image.shapes is not None for image in images):
        shapes = [_required(image.shapes, "token shapes") for image in images]
        padded = KEYS["visual_token_shapes"].full(I=len(images), N=length, r=shapes[0].shape[1])
        for slot, shape in zip(padded, shapes, strict=True):
            slot[: len(shape)] = shape
        stacked["visual_token_shapes"] = padded
    for field in EXTENSION_FIELDS:
        if not any(field in image.token_fields for image in images):
            continue
        name = f"visual_token_{field}"
        values = KEYS[name].full(I=len(images), N=length)
        for row, image in enumerate(images):
            if field in image.token_fields:
                values[row, : image.num_tokens] = image.token_fields[field]
        stacked[name] = values
    return stacked


def list_regions(prompts: Sequence[Prompts], images: Sequence[Segmented]) -> dict[str, Tensor]:
    """List the prompted regions of a batch, image by image.

    Parameters
    ----------
    prompts : sequence of Prompts
        Of each image, in pixels of its token map.
    images : sequence of Segmented
        Their tokens.

    Returns
    -------
    dict of str to Tensor
        ``region_to_image`` (R,) int64; ``region_to_token`` (R,) int64, the token of that image that
        fits the region best; ``region_prompt`` (R,) int64, place of the region in its row;
        ``region_boxes`` (R, 4) float32, x0, y0, x1, y1 as shares of the image. R may be 0.
    """
    owners = np.repeat(np.arange(len(prompts)), [len(one) for one in prompts])
    tokens = [_required(image.prompt_tokens, "tokens of prompts") for image in images]
    boxes = [one.bounds() / np.array([one.size[1], one.size[0]] * 2, np.float32) for one in prompts]
    return {
        "region_to_image": torch.from_numpy(owners.astype(np.int64)),
        "region_to_token": torch.from_numpy(np.concatenate(tokens).astype(np.int64)),
        "region_prompt": torch.from_numpy(np.concatenate([one.ids for one in prompts])),
        "region_boxes": torch.from_numpy(np.concatenate(boxes).astype(np.float32)),
    }


def _required(values: NDArray[Any] | None, name: str) -> NDArray[Any]:
    if values is None:
        raise TypeError(f"{name} are missing for one image of the batch")
    return values
