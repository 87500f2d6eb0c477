"""Text of a batch: placeholders for visual tokens, labels, padding and packing."""

from __future__ import annotations

from subtok_data.text.config import TextConfig
from subtok_data.text.encoded import EncodedText
from subtok_data.text.encoder import TextEncoder
from subtok_data.text.layout import layout_text
from subtok_data.text.packing import pack_batch, packing_refusal, text_efficiency, unpack_batch
from subtok_data.text.regions import RegionText, layout_regions, region_text_loss
from subtok_data.text.rows import TextRow, pad_rows

__all__ = [
    "EncodedText",
    "RegionText",
    "TextConfig",
    "TextEncoder",
    "TextRow",
    "layout_regions",
    "layout_text",
    "pack_batch",
    "packing_refusal",
    "pad_rows",
    "region_text_loss",
    "text_efficiency",
    "unpack_batch",
]
