"""``validate_batch``: the batch contract as a checker that lists every violation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from subtok_data.batch.keys import IGNORE_INDEX, KEYS, Axes, Key, Layout
from subtok_data.errors import SubtokError

__all__ = ["BatchError", "validate_batch"]


class BatchError(SubtokError, ValueError):
    """A batch that breaks the contract; ``str()`` lists every violation."""


def validate_batch(
    batch: Mapping[str, Any],
    *,
    coverage: str = "full",
    padding_side: str = "right",
    placeholder_id: int | None = None,
) -> None:
    """Check a batch, padded or packed, against the contract in ``docs/batch_format.md``.

    Parameters
    ----------
    batch : mapping of str to Tensor
        What a collator, a loader or a processor gave.
    coverage : {"full", "partial"}, optional
        ``"partial"`` allows pixels of the image without a token (``overflow="drop"``).
    padding_side : {"right", "left"}, optional
        Where the text is padded; packed batches have no padding.
    placeholder_id : int, optional
        Id of the placeholder token: then placeholders in each row are counted against visual
        tokens.

    Raises
    ------
    BatchError
        With one line per violation.

    Examples
    --------
    >>> validate_batch({"input_ids": torch.tensor([[5, 6]])})
    Traceback (most recent call last):
        ...
    subtok_data.batch.validate.BatchError: the batch breaks its contract:
    - 'visual_token_map' is missing: int32 (I, Hs, Ws), token of each pixel, ...
    - 'num_visual_tokens' is missing: int64 (I), n, at least 1
    - 'visual_token_mask' is missing: bool (I, N), True = real
    """
    if coverage not in ("full", "partial"):
        raise ValueError(f"coverage must be 'full' or 'partial', got {coverage!r}")
    if padding_side not in ("right", "left"):
        raise ValueError(f"padding_side must be 'right' or 'left', got {padding_side!r}")
    layout: Layout = "packed" if "cu_seq_lens_q" in batch else "padded"
    problems = list(_layout_problems(batch, layout))
    if not problems and layout == "packed":
        problems += _packing_problems(batch)
    if not problems:  # values are compared only where shapes and offsets allow it
        if layout == "padded":
            problems += _padding_problems(batch)
        problems += _token_problems(batch, full=coverage == "full")
        problems += _region_problems(batch)
        problems += _region_text_problems(batch)
        problems += _text_problems(batch, padding_side)
        problems += _placeholder_problems(batch, placeholder_id)
    if problems:
        lines = "\n".join(f"- {problem}" for problem in problems)
        raise BatchError(f"the batch breaks its contract:\n{lines}")


def _layout_problems(batch: Mapping[str, Any], layout: Layout) -> Iterator[str]:
    bound: dict[str, tuple[int, str]] = {}
    for name, key in KEYS.items():
        if layout not in key.layouts:
            if name in batch:
                yield f"{name!r} does not belong to a {layout} batch"
        elif name in batch:
            yield from _value_problems(name, key, batch[name], key.axes_in(layout), bound)
            if name == "num_visual_tokens" and isinstance(batch[name], Tensor):
                bound["S"] = (int(batch[name].sum()), name)
        elif key.required:
            axes = _written(key.axes_in(layout))
            yield f"{name!r} is missing: {key.dtypes[0]} {axes}, {key.meaning}"
    # A processor knows no samples: its images are in the order of their placeholders.
    if "I" not in bound or "sample_index" not in batch or "B" not in bound:
        return
    images, samples = bound["I"][0], bound["B"][0]
    if "image_to_sample" not in batch and images != samples:
        yield f"{images} images for {samples} samples, but 'image_to_sample' is missing"


def _value_problems(
    name: str, key: Key, value: Any, axes: Axes, bound: dict[str, tuple[int, str]]
) -> Iterator[str]:
    """Type, dtype and shape of one value; letters are bound at first sight, and must agree."""
    kind = {"int": int, "list of str": list}.get(key.dtypes[0], Tensor)
    if not isinstance(value, kind):
        yield f"{name!r} is a {type(value).__name__}, expected {kind.__name__}"
        return
    if isinstance(value, int):
        return
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        if dtype not in key.dtypes:
            yield f"{name!r} has dtype {dtype}, expected {' or '.join(key.dtypes)}"
    shape = tuple(value.shape) if isinstance(value, Tensor) else (len(value),)
    lettered = [(axis, length) for axis, length in zip(axes, shape, strict=False) if axis != length]
    if len(shape) != len(axes) or any(isinstance(axis, int) for axis, _ in lettered):
        yield f"{name!r} has shape {shape}, expected {_written(axes)}"
        return
    for axis, length in lettered:
        letter = str(axis).removesuffix("+1")
        length -= str(axis).endswith("+1")
        if bound.setdefault(letter, (length, name))[0] != length:
            other, where = bound[letter]
            yield f"{name!r} has {letter} = {length}, but {where!r} has {letter} = {other}"


def _written(axes: Axes) -> str:
    return f"({', '.join(map(str, axes))})"


def _padding_problems(batch: Mapping[str, Tensor]) -> Iterator[str]:
    """Whether the padding of visual tokens is where the mask says, and has its value."""
    counts, mask = batch["num_visual_tokens"], batch["visual_token_mask"]
    length = mask.shape[1]
    for image in (counts > length).nonzero().flatten().tolist():
        yield f"image {image}: {int(counts[image])} tokens, but there are {length} places for them"
    real = torch.arange(length, device=mask.device)[None, :] < counts[:, None]
    if not torch.equal(mask, real):
        yield "'visual_token_mask' is not 'num_visual_tokens' real entries, then padding"
        return
    for name, key in KEYS.items():
        if key.per_token and name in batch and bool((batch[name][~mask] != key.pad).any()):
            yield f"{name!r} is not {key.pad} on padding"


def _packing_problems(batch: Mapping[str, Any]) -> Iterator[str]:
    """Whether the places where samples and images begin agree with each other."""
    offsets, positions = batch["cu_seq_lens_q"], batch["position_ids"][0]
    if not torch.equal(offsets, batch["cu_seq_lens_k"]):
        yield "'cu_seq_lens_q' and 'cu_seq_lens_k' differ: a sample attends to itself only"
    lengths = offsets.diff()
    if int(offsets[0]) or int(offsets[-1]) != len(positions) or bool((lengths < 1).any()):
        yield f"'cu_seq_lens_q' does not rise from 0 to T = {len(positions)}: {offsets.tolist()}"
        return
    starts = offsets[:-1].repeat_interleave(lengths)
    if not torch.equal(positions, torch.arange(len(starts), device=starts.device) - starts):
        yield "'position_ids' do not start at 0 in every sample"
    for name in ("max_length_q", "max_length_k"):
        if batch[name] != int(lengths.max()):
            yield f"{name!r} is {batch[name]}, but the longest sample has {int(lengths.max())}"
    if "labels" in batch and bool((batch["labels"][0, offsets[:-1].long()] != IGNORE_INDEX).any()):
        yield f"'labels' is not {IGNORE_INDEX} on the first token of each sample"
    counts, borders = batch["num_visual_tokens"], batch["visual_cu_seqlens"]
    if int(borders[0]) or not torch.equal(borders.diff().long(), counts):
        yield f"'visual_cu_seqlens' is {borders.tolist()} for {counts.tolist()} tokens"


def _of_image(batch: Mapping[str, Tensor], name: str, image: int) -> Tensor:
    """Values of the tokens of one image, without padding."""
    if "visual_cu_seqlens" in batch:
        first, last = batch["visual_cu_seqlens"][image : image + 2].tolist()
        return batch[name][first:last]
    return batch[name][image, : int(batch["num_visual_tokens"][image])]


def _token_problems(batch: Mapping[str, Tensor], *, full: bool) -> Iterator[str]:
    counts, maps = batch["num_visual_tokens"], batch["visual_token_map"]
    if bool((counts < 1).any()):
        yield f"'num_visual_tokens' has values below 1: {counts.tolist()}"
    whole = torch.tensor([maps.shape[1:]] * len(maps), device=maps.device)
    for image, (height, width) in enumerate(batch.get("map_sizes", whole).tolist()):
        inside = maps[image, :height, :width]
        n = int(counts[image])
        found = torch.bincount(inside.reshape(-1).long().clamp(min=-1) + 1, minlength=n + 1)
        if found.numel() > n + 1:
            yield f"image {image}: token {found.numel() - 2} in the map, but it has {n} tokens"
            continue
        if full and int(found[0]):
            yield f"image {image}: {int(found[0])} pixels of the image have no token"
        empty = (found[1:] == 0).nonzero().flatten().tolist()
        if empty:
            yield f"image {image}: tokens {empty[:5]} have no pixel"
        outside = maps[image].numel() - inside.numel()
        if int((maps[image] == -1).sum()) - int(found[0]) != outside:
            yield f"image {image}: tokens outside the image of {height}×{width} pixels"
        if "visual_token_areas" in batch:
            areas = _of_image(batch, "visual_token_areas", image)
            if len(areas) < n:
                continue  # more tokens than places, which is said already
            if not torch.allclose(areas, found[1:].float() / inside.numel(), atol=1e-5):
                yield f"image {image}: 'visual_token_areas' disagree with the map"
            if full and abs(float(areas.double().sum()) - 1) > 1e-4:
                yield f"image {image}: areas sum to {float(areas.sum()):.6f}, expected 1"
    yield from _geometry_problems(batch)


def _geometry_problems(batch: Mapping[str, Tensor]) -> Iterator[str]:
    for name in ("visual_token_boxes", "visual_token_centers", "visual_token_areas"):
        if name not in batch:
            continue
        values = batch[name]
        if bool((values < 0).any()) or bool((values > 1).any()) or bool(values.isnan().any()):
            yield f"{name!r} has values outside [0, 1]"
    if "visual_token_boxes" in batch:
        boxes = batch["visual_token_boxes"]
        if "visual_token_mask" in batch:
            boxes = boxes[batch["visual_token_mask"]]
        x0, y0, x1, y1 = boxes.unbind(-1)
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
            yield f"region {region}: box {batch['region_boxes'][region].tolist()} of the image"


def _region_text_problems(batch: Mapping[str, Any]) -> Iterator[str]:
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
    ignored = torch.cat([labels[:, :lead].flatten(), labels[:, lead:][mask == 0]])
    if bool((ignored != IGNORE_INDEX).any()):
        yield f"'region_labels' is not {IGNORE_INDEX} in front of the text and on padding"


def _text_problems(batch: Mapping[str, Tensor], padding_side: str) -> Iterator[str]:
    if next(iter(batch)) not in ("input_ids", "pixel_values", "visual_token_map"):
        yield f"the first key is {next(iter(batch))!r}, which is not batch-major"
    if "attention_mask" in batch:
        mask = batch["attention_mask"]
        if bool(((mask != 0) & (mask != 1)).any()):
            yield "'attention_mask' has values other than 0 and 1"
        steps = mask.diff(dim=1)
        if bool((steps > 0 if padding_side == "right" else steps < 0).any()):
            yield f"'attention_mask' is not padded on the {padding_side}"
        if "labels" in batch and bool((batch["labels"][mask == 0] != IGNORE_INDEX).any()):
            yield f"'labels' is not {IGNORE_INDEX} on padding"
    if "mm_token_type_ids" in batch and "labels" in batch:
        on_images = batch["labels"][batch["mm_token_type_ids"] == 1]
        if bool((on_images != IGNORE_INDEX).any()):
            yield f"'labels' is not {IGNORE_INDEX} on image tokens"


def _placeholder_problems(batch: Mapping[str, Tensor], placeholder_id: int | None) -> Iterator[str]:
    if placeholder_id is None or "input_ids" not in batch:
        return
    counts, is_placeholder = batch["num_visual_tokens"], batch["input_ids"] == placeholder_id
    found = is_placeholder.sum(dim=1)
    if "cu_seq_lens_q" in batch:
        before = torch.nn.functional.pad(is_placeholder[0].cumsum(0), (1, 0))
        found = before[batch["cu_seq_lens_q"].long()].diff()
    rows = batch.get("image_to_sample")
    if rows is None and "sample_index" not in batch:
        yield from _order_problems(found, counts)
        return
    if rows is None:
        rows = torch.arange(len(counts), device=counts.device)
    wanted = counts.new_zeros(len(found)).index_add(0, rows, counts)
    for row in (found != wanted).nonzero().flatten().tolist():
        yield f"row {row}: {int(found[row])} placeholders for {int(wanted[row])} visual tokens"


def _order_problems(found: Tensor, counts: Tensor) -> Iterator[str]:
    """Whether images lie in rows one after the other; a row may have several of them, or none."""
    if int(found.sum()) != int(counts.sum()):
        yield f"{int(found.sum())} placeholders for {int(counts.sum())} visual tokens"
        return
    borders = {0, *counts.cumsum(0).tolist()}
    for row, end in enumerate(found.cumsum(0).tolist()):
        if end not in borders:
            yield f"row {row}: its placeholders end within an image"
