"""The padded batch: a plain dict of tensors, as ``docs/batch_format.md`` describes it.

Axis letters, here and in every docstring: B samples, I images in placeholder order, N tokens of the
image with most tokens, H W pixels, L text length.
"""

from __future__ import annotations

__all__ = ["EXTENSION_FIELDS", "PACKED_KEYS", "REGION_KEYS", "RESERVED_KEYS"]
EXTENSION_FIELDS = ("source", "class", "prompt")
"""Token fields that become ``visual_token_<field>`` (I, N) int64 with -1 for none."""

PACKED_KEYS = ("position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
"""Keys by which a packed batch tells models where its samples begin."""

REGION_KEYS = (
    *("region_to_image", "region_to_token", "region_prompt", "region_boxes", "region_texts"),
    *("region_input_ids", "region_attention_mask", "region_labels", "region_task"),
)
"""Keys of prompted regions, R in all images of a batch together."""

RESERVED_KEYS = frozenset(
    {
        "input_ids",
        "attention_mask",
        "labels",
        "mm_token_type_ids",
        *PACKED_KEYS,
        "pixel_values",
        "valid_sizes",
        "visual_token_map",
        "map_sizes",
        "num_visual_tokens",
        "visual_token_mask",
        "visual_token_boxes",
        "visual_token_centers",
        "visual_token_areas",
        "visual_token_shapes",
        "visual_cu_seqlens",
        "source_sizes",
        "image_to_sample",
        "sample_index",
        *(f"visual_token_{field}" for field in EXTENSION_FIELDS),
        *REGION_KEYS,
    }
)
"""Keys of the batch contract: a column of a dataset with one of these names is refused."""
