"""``validate_batch``: what it finds in padded and packed batches, and how it says it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.main_paths import MAIN_PATHS
from helpers.tiny_tokenizers import byte_tokenizer

from subtok_data import PatchSegmenter, SubobjectProcessor, SubobjectTokenizer, validate_batch
from subtok_data.batch import BatchError


def changed(path: str, **changes: Callable[[Any], Any]) -> dict[str, Any]:
    """Batch of a main path with some of its values replaced."""
    batch = dict(MAIN_PATHS[path]())
    return {**batch, **{name: change(batch[name]) for name, change in changes.items()}}


def with_first(value: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Put a value into the first entry of a copy."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[0] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("path", "name", "change", "message"),
    [
        ("plain", "visual_token_map", torch.Tensor.long, "has dtype int64, expected int32"),
        ("plain", "visual_token_map", torch.Tensor.short, "has dtype int16, expected int32"),
        ("plain", "pixel_values", torch.Tensor.double, "float32 or bfloat16 or uint8"),
        ("plain", "visual_token_boxes", lambda v: v[..., :3], r"expected \(I, N, 4\)"),
        ("plain", "map_sizes", lambda v: v[:-1], "has I = 2, but 'pixel_values' has I = 3"),
        ("plain", "sample_index", lambda v: v.tolist(), "is a list, expected Tensor"),
        ("regions", "region_texts", tuple, "is a tuple, expected list"),
        ("regions", "region_texts", lambda v: v[:-1], "'region_texts' has R = 2, but"),
        ("regions", "visual_token_source", lambda v: v.clamp(min=0), "is not -1 on padding"),
        ("image-free regions", "visual_position_ids", lambda v: v + 1, "is not 0 on padding"),
        ("image-free regions", "visual_word_offsets", lambda v: v[1:], "has S = "),
        ("packed text", "max_length_q", torch.tensor, "is a Tensor, expected int"),
        ("packed text", "max_length_k", lambda v: v + 1, "but the longest sample has"),
        ("packed text", "cu_seq_lens_q", torch.Tensor.long, "dtype int64, expected int32"),
        ("packed text", "cu_seq_lens_k", lambda v: v + 1, "'cu_seq_lens_k' differ"),
        ("packed text", "cu_seq_lens_q", lambda v: v[:-1], "has B = 2"),
        ("packed text", "cu_seq_lens_q", with_first(1), "does not rise from 0 to T"),
        ("packed text", "visual_cu_seqlens", with_first(1), r"'visual_cu_seqlens' is \[1"),
        ("packed text", "position_ids", with_first(3), "do not start at 0 in every sample"),
        ("packed text", "labels", with_first(3), "on the first token of each sample"),
        ("packed text", "labels", lambda v: v[:, 1:], "has T = "),
        ("packed text", "visual_token_boxes", lambda v: v[1:], "but 'num_visual_tokens' has S"),
        ("packed text", "visual_token_boxes", lambda v: v * 2, r"outside \[0, 1\]"),
        ("packed text", "visual_token_areas", lambda v: v * 2, "disagree with the map"),
        ("packed text", "visual_token_map", with_first(-1), "image 0: 1 pixels of the image have"),
    ],
)
def test_a_broken_value_is_named_with_what_was_expected(path, name, change, message):
    with pytest.raises(BatchError, match=message) as info:
        validate_batch(changed(path, **{name: change}))
    assert name in str(info.value) or "image 0" in str(info.value)


def test_layouts_are_not_mixed():
    padded, packed = MAIN_PATHS["padded text"](), MAIN_PATHS["packed text"]()
    with pytest.raises(BatchError, match="'attention_mask' does not belong to a packed batch"):
        validate_batch({**packed, "attention_mask": padded["attention_mask"]})
    with pytest.raises(BatchError, match="'position_ids' does not belong to a padded batch"):
        validate_batch({**padded, "position_ids": packed["position_ids"]})
    lacking = {name: value for name, value in packed.items() if name != "visual_cu_seqlens"}
    with pytest.raises(BatchError, match=r"'visual_cu_seqlens' is missing: int32 \(I\+1\)"):
        validate_batch(lacking)


def test_placeholders_are_counted_in_each_packed_sample():
    packed = MAIN_PATHS["packed text"]()
    placeholder = int(packed["input_ids"][packed["mm_token_type_ids"] == 1][0])
    validate_batch(packed, placeholder_id=placeholder)
    batch = changed("packed text", input_ids=lambda v: v.where(v != placeholder, 0))
    with pytest.raises(BatchError, match="row 1: 0 placeholders for 24 visual tokens"):
        validate_batch(batch, placeholder_id=placeholder)


def test_what_a_processor_makes_is_a_batch():
    tokenizer = SubobjectTokenizer(PatchSegmenter(16), size=32)
    processor = SubobjectProcessor(tokenizer, byte_tokenizer())
    images = [np.full((height, 32, 3), 90, np.uint8) for height in (32, 16, 32)]
    place = processor.image_token_id
    for texts in (["<image>a", "<image>b", "c<image>"], ["<image>a <image>", "none", "<image>"]):
        made = processor(images=images, text=texts, padding=True, return_tensors="pt")
        validate_batch(made, placeholder_id=place)
        assert not {"sample_index", "image_to_sample"} & made.keys()
    ids = made["input_ids"]
    fewer = {**made, "input_ids": ids.where(ids.ne(place).cumsum(1) > 2, 0)}
    with pytest.raises(BatchError, match=r"\d+ placeholders for \d+ visual tokens"):
        validate_batch(fewer, placeholder_id=place)
    torn = torch.full((4, 3), place)
    rolled = {**made, "input_ids": torn, "attention_mask": torch.ones_like(torn)}
    with pytest.raises(BatchError, match="row 0: its placeholders end within an image"):
        validate_batch(rolled, placeholder_id=place)
