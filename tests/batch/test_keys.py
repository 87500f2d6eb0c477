"""The table of batch keys, and what else says the same: type, pages, reserved names, packing."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.main_paths import MAIN_PATHS
from typing_extensions import get_type_hints

from subtok_data import validate_batch
from subtok_data.batch import (
    KEYS,
    RESERVED_KEYS,
    VISUAL_KEYS,
    Batch,
    BatchError,
    Key,
    collate_columns,
)
from subtok_data.batch.keys import EXTENSION_FIELDS
from subtok_data.errors import ConfigError

PAGES = Path(__file__).parents[2] / "docs"
# Known to one of two older tables only: refused as columns but unchecked, and the reverse.
ONCE_UNCHECKED = ("position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
ONCE_UNCHECKED += ("visual_cu_seqlens", "region_texts")
ONCE_UNRESERVED = ("visual_class_map", "visual_position_ids", "visual_type_ids")
ONCE_UNRESERVED += ("prompt_input_ids", "prompt_attention_mask")
ONCE_UNKNOWN = ("visual_word_ids", "visual_word_offsets")


def test_the_type_of_a_batch_has_the_keys_of_the_table():
    types = {"int": int, "list of str": list[str]}
    expected = {name: types.get(key.dtypes[0], torch.Tensor) for name, key in KEYS.items()}
    assert get_type_hints(Batch) == expected
    assert list(Batch.__annotations__) == list(KEYS)
    everywhere = {name for name, key in KEYS.items() if key.required and len(key.layouts) == 2}
    assert Batch.__required_keys__ == everywhere


def test_every_dtype_can_be_moved_between_processes():
    for name, key in KEYS.items():
        for dtype in key.dtypes:
            assert dtype != "int16", name
            assert dtype in ("int", "list of str") or isinstance(
                getattr(torch, dtype), torch.dtype
            ), name


@pytest.mark.parametrize("name", KEYS)
def test_a_column_with_the_name_of_a_key_is_refused(name):
    with pytest.raises(ConfigError, match=f"column '{name}'"):
        collate_columns([{name: 1}], None)


@pytest.mark.parametrize("name", ONCE_UNCHECKED + ONCE_UNRESERVED + ONCE_UNKNOWN)
def test_keys_that_were_in_one_table_only_are_reserved_and_checked(name):
    assert name in RESERVED_KEYS
    path = next(path for path, make in MAIN_PATHS.items() if name in make())
    batch = dict(MAIN_PATHS[path]())
    validate_batch(batch)
    batch[name] = {}
    with pytest.raises(BatchError, match=f"'{name}' is a dict, expected"):
        validate_batch(batch)


def test_what_is_derived():
    assert EXTENSION_FIELDS == ("source", "class", "prompt")
    assert "pixel_values" not in VISUAL_KEYS
    assert {"visual_token_map", "visual_cu_seqlens", "visual_token_prompt"} <= set(VISUAL_KEYS)
    assert KEYS["visual_token_shapes"].axes_in("packed") == ("S", "r", "r")
    assert KEYS["labels"].axes_in("packed") == (1, "T")
    with pytest.raises(ConfigError, match="packed batches do not have"):
        KEYS["attention_mask"].axes_in("packed")
    with pytest.raises(ConfigError, match="no padding"):
        KEYS["num_visual_tokens"].full(I=3)
    padding = KEYS["visual_token_prompt"].full(I=1, N=2)
    assert padding.dtype == np.int64
    assert padding.tolist() == [[-1, -1]]


# --- what collators and loaders give ----------------------------------------------------------


@pytest.mark.parametrize("path", MAIN_PATHS)
def test_every_key_of_a_batch_is_in_the_table(path):
    batch = MAIN_PATHS[path]()
    assert set(batch) - {"label"} <= KEYS.keys()
    validate_batch(batch)


def test_every_key_of_the_table_is_in_some_batch():
    assert KEYS.keys() == set().union(*(make() for make in MAIN_PATHS.values())) - {"label"}


# --- pages ------------------------------------------------------------------------------------


def written(name: str, key: Key, layout: str) -> str:
    """The row of a key in a table of the pages."""
    axes = key.axes_in(layout)
    shape = (
        "" if not axes else f"({axes[0]},)" if len(axes) == 1 else f"({', '.join(map(str, axes))})"
    )
    dtype = {"int": "Python int"}.get(key.dtypes[0], ", ".join(key.dtypes))
    required = "**required**; " if key.required and layout == "padded" else ""
    meaning = required + key.meaning if layout in key.layouts else ""
    return f"| `{name}` | {shape} | {dtype} | {meaning} |"


def rows_of(page: str) -> list[str]:
    text = (PAGES / page).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if re.match(r"\| `\w+` \|", line)]


def test_the_page_has_every_key_as_in_the_table():
    groups = (("text", "visual", "sample"), ("region",), ("image_free",))
    expected = [
        written(name, key, "padded")
        for group in groups
        for name, key in KEYS.items()
        if key.group in group and "padded" in key.layouts
    ]
    expected += [
        written(name, key, "packed")
        for name, key in KEYS.items()
        if "packed" in key.layouts
        and (key.layouts == ("packed",) or key.axes_in("packed") != key.axes)
        and key.group != "image_free"
    ]
    assert rows_of("batch_format.md") == expected


@pytest.mark.parametrize("page", ["../README.md", "image_free.md"])
def test_other_pages_have_shapes_and_dtypes_of_the_table(page):
    found = [row for row in rows_of(page) if row.split("`")[1] in KEYS]
    for row in found:
        name = row.split("`")[1]
        shape, dtype = written(name, KEYS[name], "padded").split(" | ")[1:3]
        assert row.split(" | ")[1] == shape, row
        assert row.split(" | ")[2] in (dtype, KEYS[name].dtypes[0]), row
