"""``validate_batch``: the batch contract as a checker that lists every violation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from subtok_data.errors import SubtokError

__all__ = ["BatchError", "validate_batch"]
_REQUIRED = ("visual_token_map", "num_visual_tokens", "visual_token_mask", "sample_index")
_INT_MAPS = (torch.int16, torch.int32)

# key -> (dtypes, shape in letters); letters are bound at first sight and must agree afterwards.
_LAYOUT: dict[str, tuple[tuple[torch.dtype, ...], tuple[str | int, ...]]] = {
    "input_ids": ((torch.int64,), ("B", "L")),
    "attention_mask": ((torch.int64,), ("B", "L")),
    "labels": ((torch.int64,), ("B", "L")),
    "mm_token_type_ids": ((torch.int64,), ("B", "L")),
    "pixel_values": ((torch.float32, torch.bfloat16, torch.uint8), ("I", 3, "H", "W")),
    "valid_sizes": ((torch.int64,), ("I", 2)),
    "visual_token_map": (_INT_MAPS, ("I", "Hs", "Ws")),
    "map_sizes": ((torch.int64,), ("I", 2)),
    "num_visual_tokens": ((torch.int64,), ("I",)),
    "visual_token_mask": ((torch.bool,), ("I", "N")),
    "visual_token_boxes": ((torch.float32,), ("I", "N", 4)),
    "visual_token_centers": ((torch.float32,), ("I", "N", 2)),
    "visual_token_areas": ((torch.float32,), ("I", "N")),
    "visual_token_shapes": ((torch.bool,), ("I", "N", "r", "r")),
    "visual_token_source": ((torch.int64,), ("I", "N")),
    "visual_token_class": ((torch.int64,), ("I", "N")),
    "visual_token_prompt": ((torch.int64,), ("I", "N")),
    "visual_class_map": ((torch.int16,), ("I", "Hc", "Wc")),
    "visual_position_ids": ((torch.int64,), ("I", "N")),
    "visual_type_ids": ((torch.int64,), ("I", "N")),
    "prompt_input_ids": ((torch.int64,), ("I", "P")),
    "prompt_attention_mask": ((torch.int64,), ("I", "P")),
    "region_to_image": ((torch.int64,), ("R",)),
    "region_to_token": ((torch.int64,), ("R",)),
    "region_prompt": ((torch.int64,), ("R",)),
    "region_boxes": ((torch.float32,), ("R", 4)),
    "region_input_ids": ((torch.int64,), ("R", "T")),
    "region_attention_mask": ((torch.int64,), ("R", "T")),
    "region_labels": ((torch.int64,), ("R", "labels")),
    "region_task": ((torch.int64,), ("R",)),
    "source_sizes": ((torch.int64,), ("I", 2)),
    "image_to_sample": ((torch.int64,), ("I",)),
    "sample_index": ((torch.int64,), ("B",)),
}


class BatchError(SubtokError, ValueError):
    """A batch that breaks the contract; ``str()`` lists every violation."""


def validate_batch(
    batch: Mapping[str, Any],
    *,
    coverage: str = "full",
    padding_side: str = "right",
    placeholder_id: int | None = None,
) -> None:
    """Check a padded batch against the contract in ``docs/batch_format.md``.

    Parameters
    ----------
    batch : mapping of str to Tensor
        What a collator or loader gave.
    coverage : {"full", "partial"}, optional
        ``"partial"`` allows pixels of the picture without a token (``overflow="drop"``).
    padding_side : {"right", "left"}, optional
        Where the text is padded.
    placeholder_id : int, optional
        Id of the placeholder token: then placeholders in each row are counted against visual
        tokens.

    Raises
    ------
    BatchError
        With one line per violation.

    Examples
    --------
    >>> validate_batch({"sample_index": torch.tensor([0])})
    Traceback (most recent call last):
        ...
    subtok_data.batch.validate.BatchError: the batch breaks its contract:
    - 'visual_token_map' is missing
    - 'num_visual_tokens' is missing
    - 'visual_token_mask' is missing
    """
    if coverage not in ("full", "partial"):
        raise ValueError(f"coverage must be 'full' or 'partial', got {coverage!r}")
    if padding_side not in ("right", "left"):
        raise ValueError(f"padding_side must be 'right' or 'left', got {padding_side!r}")
    problems = list(_layout_problems(batch))
    if not problems:  # values are compared only where the shapes allow it
        problems += _token_problems(batch, full=coverage == "full")
        problems += _region_problems(batch)
        problems += _region_text_problems(batch)
        problems += _text_problems(batch, padding_side, placeholder_id)
    if problems:
        lines = "\n".join(f"- {problem}" for problem in problems)
        raise BatchError(f"the batch breaks its contract:\n{lines}")


def _layout_problems(batch: Mapping[str, Any]) -> Iterator[str]:
    for key in _REQUIRED:
        if key not in batch:
            yield f"{key!r} is missing"
    bound: dict[str, tuple[int, str]] = {}
    for key, (dtypes, letters) in _LAYOUT.items():
        if key not in batch:
            continue
        value = batch[key]
        if not isinstance(value, Tensor):
            yield f"{key!r} is {type(value).__name__}, expected a Tensor"
            continue
        if value.dtype not in dtypes:
            yield f"{key!r} has dtype {value.dtype}, expected {' or '.join(map(str, dtypes))}"
        if value.ndim != len(letters):
            yield f"{key!r} has shape {tuple(value.shape)}, expected {letters}"
            continue
        for letter, length in zip(letters, value.shape, strict=True):
            if isinstance(letter, int):
                if length != letter:
                    yield f"{key!r} has shape {tuple(value.shape)}, expected {letters}"
            elif bound.setdefault(letter, (length, key))[0] != length:
                other, where = bound[letter]
                yield f"{key!r} has {letter} = {length}, but {where!r} has {letter} = {other}"
    if "I" not in bound or "B" not in bound:
        return
    images, samples = bound["I"][0], bound["B"][0]
    if "image_to_sample" not in batch and images != samples:
        yield f"{images} images for {samples} samples, but 'image_to_sample' is missing"


def _token_problems(batch: Mapping[str, Tensor], *, full: bool) -> Iterator[str]:
    counts, mask, maps = (
        batch["num_visual_tokens"],
        batch["visual_token_mask"],
        batch["visual_token_map"],
    )
    images, length = mask.shape
    if bool((counts < 1).any()):
        yield f"'num_visual_tokens' has values below 1: {counts.tolist()}"
    expected = torch.arange(length, device=mask.device)[None, :] < counts[:, None]
    if not torch.equal(mask, expected):
        yield "'visual_token_mask' is not 'num_visual_tokens' real entries, then padding"
    sizes = batch.get("map_sizes", torch.tensor([maps.shape[1:]] * images, device=maps.device))
    for image in range(images):
        height, width = (int(side) for side in sizes[image])
        picture = maps[image, :height, :width]
        n = int(counts[image])
        if n > length:
            yield f"image {image}: {n} tokens, but there are {length} places for them"
            continue
        found = torch.bincount(picture.reshape(-1).long().clamp(min=-1) + 1, minlength=n + 1)
        if found.numel() > n + 1:
            yield f"image {image}: token {found.numel() - 2} in the map, but it has {n} tokens"
            continue
        if full and int(found[0]):
            yield f"image {image}: {int(found[0])} pixels of the picture have no token"
        empty = (found[1:] == 0).nonzero().flatten().tolist()
        if empty:
            yield f"image {image}: tokens {empty[:5]} have no pixel"
        outside = maps[image].numel() - picture.numel()
        if int((maps[image] == -1).sum()) - int(found[0]) != outside:
            yield f"image {image}: tokens outside the picture of {height}×{width} pixels"
        if "visual_token_areas" in batch:
            areas = batch["visual_token_areas"][image]
            share = found[1:].float() / picture.numel()
            if not torch.allclose(areas[:n], share, atol=1e-5):
                yield f"image {image}: 'visual_token_areas' disagree with the map"
            if full and abs(float(areas.double().sum()) - 1) > 1e-4:
                yield f"image {image}: areas sum to {float(areas.sum()):.6f}, expected 1"
    yield from _geometry_problems(batch, mask)


def _geometry_problems(batch: Mapping[str, Tensor], mask: Tensor) -> Iterator[str]:
    for key in ("visual_token_boxes", "visual_token_centers", "visual_token_areas"):
        if key not in batch:
            continue
        values = batch[key]
        if bool((values < 0).any()) or bool((values > 1).any()) or bool(values.isnan().any()):
            yield f"{key!r} has values outside [0, 1]"
        if bool((values[~mask] != 0).any()):
            yield f"{key!r} is not 0 on padding"
    if "visual_token_boxes" in batch:
        x0, y0, x1, y1 = batch["visual_token_boxes"][mask].unbind(-1)
        if bool((x1 <= x0).any()) or bool((y1 <= y0).any()):
            yield "'visual_token_boxes' has empty boxes"


def _region_problems(batch: Mapping[str, Tensor]) -> Iterator[str]:
    if "region_to_image" not in batch or "region_to_token" not in batch:
        return
    owners, tokens = batch["region_to_image"], batch["region_to_token"]
    counts = batch["num_visual_tokens"]
    if bool(((owners < 0) | (owners >= len(counts))).any()):
        yield f"'region_to_image' names images outside 0…{len(counts) - 1}"
        return
    if bool((owners.diff() < 0).any()):
        yield "'region_to_image' is not in the order of the images"
    for region in ((tokens < 0) | (tokens >= counts[owners])).nonzero().flatten().tolist():
        image = int(owners[region])
        yield (
            f"region {region}: token {int(tokens[region])} of image {image}, which has "
            f"{int(counts[image])}"
        )
    if "region_boxes" in batch:
        x0, y0, x1, y1 = batch["region_boxes"].unbind(-1)
        bad = (x0 < 0) | (y0 < 0) | ~(x1 > x0) | ~(y1 > y0) | (x1 > 1) | (y1 > 1)
        for region in bad.nonzero().flatten().tolist():
            yield f"region {region}: box {batch['region_boxes'][region].tolist()} of the picture"


def _region_text_problems(batch: Mapping[str, Any]) -> Iterator[str]:
    regions = len(batch.get("region_to_image", ()))
    if "region_texts" in batch and len(batch["region_texts"]) != regions:
        yield f"{len(batch['region_texts'])} 'region_texts' for {regions} regions"
    if "region_attention_mask" not in batch or "region_labels" not in batch:
        return
    mask, labels = batch["region_attention_mask"], batch["region_labels"]
    if bool(((mask != 0) & (mask != 1)).any()):
        yield "'region_attention_mask' has values other than 0 and 1"
    if bool((mask.diff(dim=1) > 0).any()):
        yield "'region_attention_mask' is not padded on the right"
    lead = labels.shape[1] - mask.shape[1]
    if lead < 0:
        yield f"'region_labels' has {labels.shape[1]} columns for {mask.shape[1]} tokens"
        return
    unlearned = torch.cat([labels[:, :lead].flatten(), labels[:, lead:][mask == 0]])
    if bool((unlearned != -100).any()):
        yield "'region_labels' is not -100 in front of the text and on padding"


def _text_problems(
    batch: Mapping[str, Tensor], padding_side: str, placeholder_id: int | None
) -> Iterator[str]:
    if next(iter(batch)) not in ("input_ids", "pixel_values", "visual_token_map"):
        yield f"the first key is {next(iter(batch))!r}, which is not batch-major"
    if "attention_mask" in batch:
        mask = batch["attention_mask"]
        if bool(((mask != 0) & (mask != 1)).any()):
            yield "'attention_mask' has values other than 0 and 1"
        steps = mask.diff(dim=1)
        if bool((steps > 0 if padding_side == "right" else steps < 0).any()):
            yield f"'attention_mask' is not padded on the {padding_side}"
        if "labels" in batch and bool((batch["labels"][mask == 0] != -100).any()):
            yield "'labels' is not -100 on padding"
    if "mm_token_type_ids" in batch and "labels" in batch:
        on_images = batch["labels"][batch["mm_token_type_ids"] == 1]
        if bool((on_images != -100).any()):
            yield "'labels' is not -100 on image tokens"
    if placeholder_id is not None and "input_ids" in batch:
        counts = batch["num_visual_tokens"]
        rows = batch.get("image_to_sample", torch.arange(len(counts), device=counts.device))
        wanted = torch.zeros(len(batch["input_ids"]), dtype=torch.int64, device=counts.device)
        wanted.index_add_(0, rows, counts)
        found = (batch["input_ids"] == placeholder_id).sum(dim=1)
        for row in (found != wanted).nonzero().flatten().tolist():
            yield f"row {row}: {int(found[row])} placeholders for {int(wanted[row])} visual tokens"
