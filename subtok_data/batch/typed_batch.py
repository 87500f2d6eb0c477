"""``Batch``: the type of a batch, so that editors complete its keys."""

from typing import Any, Required

from torch import Tensor
from typing_extensions import TypedDict

__all__ = ["Batch"]


class Batch(TypedDict, total=False, extra_items=Any):
    """A finished batch: a plain dict with the keys of :data:`subtok_data.batch.KEYS`.

    Columns of the dataset stand beside them, under their own names. Shapes, dtypes and meanings are
    in ``docs/batch_format.md``; :func:`~subtok_data.validate_batch` checks them. Three keys are in
    every batch; for the others type checkers ask whether the key is there.

    Examples
    --------
    >>> def count_tokens(batch: Batch) -> int:
    ...     return int(batch["num_visual_tokens"].sum())
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    mm_token_type_ids: Tensor
    pixel_values: Tensor
    valid_sizes: Tensor
    visual_token_map: Required[Tensor]
    map_sizes: Tensor
    num_visual_tokens: Required[Tensor]
    visual_token_mask: Tensor
    visual_token_boxes: Tensor
    visual_token_centers: Tensor
    visual_token_areas: Tensor
    visual_token_shapes: Tensor
    visual_token_source: Tensor
    visual_token_class: Tensor
    visual_token_prompt: Tensor
    source_sizes: Tensor
    image_to_sample: Tensor
    sample_index: Tensor
    region_to_image: Tensor
    region_to_token: Tensor
    region_prompt: Tensor
    region_boxes: Tensor
    region_texts: list[str]
    region_input_ids: Tensor
    region_attention_mask: Tensor
    region_labels: Tensor
    region_task: Tensor
    visual_class_map: Tensor
    visual_position_ids: Tensor
    visual_type_ids: Tensor
    visual_word_ids: Tensor
    visual_word_offsets: Tensor
    prompt_input_ids: Tensor
    prompt_attention_mask: Tensor
    position_ids: Tensor
    cu_seq_lens_q: Tensor
    cu_seq_lens_k: Tensor
    max_length_q: int
    max_length_k: int
    visual_cu_seqlens: Tensor
