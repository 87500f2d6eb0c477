"""One small batch of every main path from samples to a batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from helpers.tiny_tokenizers import byte_tokenizer

from subtok_data import (
    ImageFreeDataset,
    PatchSegmenter,
    PromptColumns,
    PromptedSegmenter,
    RegionText,
    SubobjectCollator,
    SubobjectTokenizer,
    TextConfig,
)

__all__ = ["MAIN_PATHS"]


def _image(seed: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def _rows(count: int = 3) -> list[dict[str, Any]]:
    return [
        {"image": _image(i, 48, 48 + 16 * i), "caption": "a red ball " * (i + 1), "label": i}
        for i in range(count)
    ]


def _tokenizer() -> SubobjectTokenizer:
    return SubobjectTokenizer(PatchSegmenter(16), size=96)


def _plain() -> Any:
    return SubobjectCollator(_tokenizer(), shape_size=4, columns=["label"])(_rows())


def _lists_of_images() -> Any:
    rows = [{"image": [_image(0, 32, 32), _image(1, 32, 48)]}, {"image": [_image(2, 48, 32)]}]
    return SubobjectCollator(_tokenizer())(rows)


def _text(packing: bool) -> Any:
    text = TextConfig(byte_tokenizer(), caption="caption")
    collator = SubobjectCollator(_tokenizer(), text=text, packing=packing, shape_size=4)
    return collator(_rows())


def _regions() -> Any:
    rows = [
        {
            "image": _image(i, 48, 64),
            "boxes": [[4, 4, 30, 30], [2, 2, 60, 40]][: i + 1],
            "texts": ["a ball", "two dogs"][: i + 1],
            "task_type": "caption",
        }
        for i in range(2)
    ]
    columns = PromptColumns(boxes="boxes", texts="texts")
    segmenter = PromptedSegmenter(PatchSegmenter(16))
    collator = SubobjectCollator(
        SubobjectTokenizer(segmenter, size=64),
        prompts=columns,
        region_text=RegionText.sca(byte_tokenizer()),
        columns=[],
    )
    return collator(rows)


class _Letters:
    bos_token_id, eos_token_id = 1, 2

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) for letter in text]


def _image_free(tokens: Any) -> Any:
    dataset = ImageFreeDataset(
        ["cow", "sky"], _Letters(), tokens=tokens, input_size=8, target_size=32, grid=(1, 8)
    )
    return dataset.collate([dataset[index] for index in range(3)])


MAIN_PATHS: dict[str, Callable[[], Any]] = {
    "plain": cache(_plain),
    "lists of images": cache(_lists_of_images),
    "padded text": cache(lambda: _text(packing=False)),
    "packed text": cache(lambda: _text(packing=True)),
    "regions": cache(_regions),
    "image-free patches": cache(lambda: _image_free("patch")),
    "image-free regions": cache(lambda: _image_free("region")),
}
"""Functions that make a batch, by name; each makes it once."""
