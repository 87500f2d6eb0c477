"""The keys of a batch: the one table from which layout, padding, packing and checks are derived.

Axis letters, here and in every docstring:

=========  =====================================================================================
B          samples
I          images, in the order of their placeholders
N          tokens of the image with most of them, rounded up to ``pad_to_multiple_of``
L          text tokens of the longest sample
H, W       pixels of the encoder input
Hs, Ws     pixels of the token map
Hc, Wc     pixels of the class map
r          bins per side of a token's shape
S          visual tokens of all images, one image after the other
T          text tokens of all samples, one sample after the other
R          prompted regions of all images
Lr         text tokens of the region with the longest text
c          columns in front of the region labels (``RegionText(ignored_labels=…)``)
P          tokens of the prompt
U          sub-words of all visual tokens
=========  =====================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from subtok_data.errors import ConfigError

__all__ = [
    "EXTENSION_FIELDS",
    "IGNORE_INDEX",
    "KEYS",
    "PACKED_KEYS",
    "RESERVED_KEYS",
    "VISUAL_KEYS",
    "Axes",
    "Group",
    "Key",
    "Layout",
]

Axes = tuple[str | int, ...]
Group = Literal["text", "visual", "sample", "region", "image_free"]
Layout = Literal["padded", "packed"]

IGNORE_INDEX = -100
"""Label of what is not supervised, as ``torch.nn.functional.cross_entropy`` has it."""


@dataclass(frozen=True)
class Key:
    """What stands under one key of a batch.

    Parameters
    ----------
    group : {"text", "visual", "sample", "region", "image_free"}
        What the key belongs to.
    axes : tuple of str and int
        Axes in the padded layout, by letter (see the module) or length; ``"B+1"`` is one more than
        B. Of a key that only packed batches have: its axes there.
    dtype : str or tuple of str
        Names of torch dtypes; the first is the default. ``"int"`` and ``"list of str"`` are Python
        values. All can be moved by gloo and NCCL, which excludes int16.
    meaning : str
        In the words of ``docs/batch_format.md``.
    pad : int or bool, optional
        Value on padding; None where nothing is padded, and for ``input_ids``, whose padding is the
        tokenizer's.
    layouts : tuple of {"padded", "packed"}, optional
        Layouts that have the key.
    required : bool, optional
        Whether each batch of these layouts must have the key.

    Examples
    --------
    >>> key = Key("visual", ("I", "N", 4), "float32", "a box per token", pad=0)
    >>> key.axes_in("padded"), key.axes_in("packed")
    (('I', 'N', 4), ('S', 4))
    """

    group: Group
    axes: Axes
    dtype: str | tuple[str, ...]
    meaning: str
    pad: int | bool | None = None
    layouts: tuple[Layout, ...] = ("padded", "packed")
    required: bool = False

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Names of the dtypes that the value may have."""
        return (self.dtype,) if isinstance(self.dtype, str) else self.dtype

    @property
    def per_token(self) -> bool:
        """Whether there is one entry per visual token, padded to N."""
        return self.axes[:2] == ("I", "N")

    @property
    def per_text_token(self) -> bool:
        """Whether there is one entry per text token, padded to L."""
        return self.axes[:2] == ("B", "L")

    def axes_in(self, layout: Layout) -> Axes:
        """Axes in a layout: packing lays tokens of all images, and text of all samples, in a row.

        Raises
        ------
        ConfigError
            If the layout does not have the key.
        """
        if layout not in self.layouts:
            raise ConfigError(f"{layout} batches do not have this key; {self.layouts} do")
        if layout == "packed" and self.per_token:
            return ("S", *self.axes[2:])
        if layout == "packed" and self.per_text_token:
            return (1, "T", *self.axes[2:])
        return self.axes

    def full(self, **lengths: int) -> NDArray[Any]:
        """Make an array of nothing but padding, to be filled in.

        Parameters
        ----------
        **lengths : int
            Length of each axis that has a letter.

        Examples
        --------
        >>> KEYS["labels"].full(B=1, L=3)
        array([[-100, -100, -100]])
        """
        shape = [axis if isinstance(axis, int) else lengths[axis] for axis in self.axes]
        if self.pad is None:
            raise ConfigError(f"{self.meaning!r} has no padding")
        return np.full(shape, self.pad, self.dtypes[0])


def _per_text_token(
    meaning: str, pad: int | None, layouts: tuple[Layout, ...] = ("padded", "packed")
) -> Key:
    return Key("text", ("B", "L"), "int64", meaning, pad, layouts)


def _sizes(meaning: str, group: Group = "visual") -> Key:
    return Key(group, ("I", 2), "int64", meaning)


def _share(axes: Axes, meaning: str) -> Key:
    return Key("visual", axes, "float32", f"{meaning}; 0 on padding", pad=0)


def _field(meaning: str) -> Key:
    return Key("visual", ("I", "N"), "int64", f"{meaning}; −1 for none", pad=-1)


def _packing(axes: Axes, dtype: str, meaning: str, group: Group = "text") -> Key:
    return Key(group, axes, dtype, meaning, layouts=("packed",), required=True)


KEYS: dict[str, Key] = {
    "input_ids": _per_text_token(
        "with text only; one placeholder per visual token, between start and end tokens", None
    ),
    "attention_mask": _per_text_token("1 = real", 0, ("padded",)),
    "labels": _per_text_token("−100 on padding, placeholders and prompt", IGNORE_INDEX),
    "mm_token_type_ids": _per_text_token("0 text, 1 image", 0),
    "pixel_values": Key(
        "visual",
        ("I", 3, "H", "W"),
        ("float32", "bfloat16", "uint8"),
        "encoder input; 0 right of and below the image",
        pad=0,
    ),
    "valid_sizes": _sizes("(h, w) of the image inside `pixel_values`"),
    "visual_token_map": Key(
        "visual",
        ("I", "Hs", "Ws"),
        "int32",
        "token of each pixel, 0 … n − 1; −1 only outside the image",
        pad=-1,
        required=True,
    ),
    "map_sizes": _sizes("(h, w) of the image inside the map"),
    "num_visual_tokens": Key("visual", ("I",), "int64", "n, at least 1", required=True),
    "visual_token_mask": Key(
        "visual", ("I", "N"), "bool", "True = real", False, ("padded",), required=True
    ),
    "visual_token_boxes": _share(("I", "N", 4), "x0, y0, x1, y1 as shares of the image, half-open"),
    "visual_token_centers": _share(("I", "N", 2), "(y, x) as shares of the image"),
    "visual_token_areas": _share(("I", "N"), "share of the image; sums to 1 per image"),
    "visual_token_shapes": Key(
        "visual",
        ("I", "N", "r", "r"),
        "bool",
        "with `shape_size=r`: each token cropped to its box; False on padding",
        pad=False,
    ),
    "visual_token_source": _field("0 found by the segmenter, 1 a gap, 2 prompted"),
    "visual_token_class": _field("category, where the segmenter knows categories"),
    "visual_token_prompt": _field("place of the token's prompt in its row"),
    "source_sizes": _sizes(
        "(H, W) of the image as decoded, before augmentation and resizing", "sample"
    ),
    "image_to_sample": Key(
        "sample", ("I",), "int64", "row of each image; only where samples hold lists of images"
    ),
    "sample_index": Key(
        "sample",
        ("B",),
        "int64",
        "row of the dataset; −1 if unknown; not in what a processor makes",
    ),
    "region_to_image": Key("region", ("R",), "int64", "image of each region, ascending"),
    "region_to_token": Key(
        "region",
        ("R",),
        "int64",
        "token of that image with the highest IoU with the region; never −1",
    ),
    "region_prompt": Key(
        "region",
        ("R",),
        "int64",
        "place of the region in its row, as in `visual_token_prompt`; an augmentation may have "
        "dropped others",
    ),
    "region_boxes": Key("region", ("R", 4), "float32", "x0, y0, x1, y1 as shares of the image"),
    "region_texts": Key(
        "region", ("R",), "list of str", "text of each region, where regions have texts"
    ),
    "region_input_ids": Key(
        "region",
        ("R", "Lr"),
        "int64",
        "with `SubobjectCollator(region_text=…)`: the text as tokens, padded on the right; Lr = 0 "
        "without regions",
    ),
    "region_attention_mask": Key("region", ("R", "Lr"), "int64", "1 = real", pad=0),
    "region_labels": Key(
        "region",
        ("R", "c+Lr"),
        "int64",
        "−100 on padding and on a leading `bos`; `RegionText.sca` supervises that too, and has "
        "c = 1 columns of −100 in front",
        pad=IGNORE_INDEX,
    ),
    "region_task": Key(
        "region", ("R",), "int64", "with `RegionText(tasks=…)`: the task of the region's row"
    ),
    "visual_class_map": Key(
        "image_free",
        ("I", "Hc", "Wc"),
        "int32",
        "category of each pixel: the target; `.long()` for `cross_entropy`",
    ),
    "visual_position_ids": Key(
        "image_free",
        ("I", "N"),
        "int64",
        "1 + row · bucket + column of the patch that holds the token's center; 0 on padding",
        pad=0,
    ),
    "visual_type_ids": Key("image_free", ("I", "N"), "int64", "1, and 0 on padding", pad=0),
    "visual_word_ids": Key(
        "image_free", ("U",), "int64", "with a tokenizer: sub-words of all visual tokens"
    ),
    "visual_word_offsets": Key(
        "image_free", ("S",), "int64", "where each visual token begins in them"
    ),
    "prompt_input_ids": Key(
        "image_free",
        ("I", "P"),
        "int64",
        "begin token, the prompt that names the categories, end token",
    ),
    "prompt_attention_mask": Key("image_free", ("I", "P"), "int64", "1 = real"),
    "position_ids": _packing((1, "T"), "int64", "starts at 0 in every sample"),
    "cu_seq_lens_q": _packing(("B+1",), "int32", "where samples start and end"),
    "cu_seq_lens_k": _packing(("B+1",), "int32", "the same"),
    "max_length_q": _packing((), "int", "longest sample"),
    "max_length_k": _packing((), "int", "the same"),
    "visual_cu_seqlens": _packing(
        ("I+1",), "int32", "where the visual tokens of an image start and end", "visual"
    ),
}
"""Every key that a batch may have besides the columns of the dataset."""

RESERVED_KEYS = frozenset(KEYS)
"""A column of a dataset with one of these names is refused: nobody could tell the two apart."""

EXTENSION_FIELDS = tuple(
    name.removeprefix("visual_token_")
    for name, key in KEYS.items()
    if key.per_token and key.pad == -1
)
"""Token fields that become ``visual_token_<field>``, -1 for none."""

PACKED_KEYS = tuple(
    name for name, key in KEYS.items() if key.group == "text" and key.layouts == ("packed",)
)
"""Keys by which a packed batch tells language models where its samples begin."""

VISUAL_KEYS = tuple(
    name for name, key in KEYS.items() if key.group == "visual" and name != "pixel_values"
)
"""What a batch says about its visual tokens, padded or packed."""
