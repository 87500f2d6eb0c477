"""Options of ``SubobjectLoader`` beside a collator: honoured or refused, never ignored."""

from __future__ import annotations

import inspect

import pytest
from helpers.batches import assert_same_batches, faulty_tokenizer
from helpers.faulty import RAISE, CodedImages
from helpers.tiny_tokenizers import word_tokenizer

from subtok_data import SubobjectCollator, SubobjectLoader, TextConfig
from subtok_data.errors import ConfigError, SampleError

OPTIONS = {"batch_size": 4, "executor": "inline", "prefetch_batches": 0}


def text_config() -> TextConfig:
    return TextConfig(word_tokenizer(), caption="caption")


@pytest.mark.parametrize(
    ("name", "value"),
    [("text", text_config()), ("on_error", "replace"), ("image_column", "picture")],
)
def test_option_that_contradicts_the_collator_is_refused(name, value):
    collator = SubobjectCollator(faulty_tokenizer())
    with pytest.raises(ConfigError, match=rf"{name}=.*SubobjectCollator\(…, {name}=…\)"):
        SubobjectLoader(CodedImages(4), collator=collator, **{name: value})


def test_two_collators_are_refused():
    one, other = (SubobjectCollator(faulty_tokenizer()) for _ in range(2))
    with pytest.raises(ConfigError, match="collate_fn= and collator= .* two collators"):
        SubobjectLoader(CodedImages(4), collator=one, collate_fn=other)


def test_options_of_the_collator_hold_for_the_dataset_too():
    rows = [{"picture": row["image"]} for row in map(CodedImages(4).__getitem__, range(4))]
    rows[1]["picture"] = b"no image"
    collator = SubobjectCollator(faulty_tokenizer(), image_column="picture", on_error="replace")
    with SubobjectLoader(rows, collator=collator, **OPTIONS) as loader:
        (batch,) = loader
        (replaced,) = loader.stats().replaced
    assert replaced.index == 1
    assert batch["sample_index"].tolist() == [0, replaced.used, 2, 3]
    with SubobjectLoader(CodedImages(4, {1: RAISE}), faulty_tokenizer(), **OPTIONS) as loader:
        with pytest.raises(SampleError, match="sample 1 failed"):
            list(loader)


@pytest.mark.parametrize("by_collator", [False, True])
def test_loader_built_anew_from_its_attributes_gives_the_same_batches(by_collator):
    """Lightning builds loaders anew from the attributes that are named like parameters."""
    options = {"text": text_config(), "on_error": "replace", "image_column": "image"}
    if by_collator:
        options = {"collator": SubobjectCollator(faulty_tokenizer(), **options)}
    else:
        options["tokenizer"] = faulty_tokenizer()
    rows = CodedImages(9, {5: RAISE})
    with SubobjectLoader(rows, **options, **OPTIONS) as loader:
        parameters = inspect.signature(SubobjectLoader).parameters
        named = {
            name: getattr(loader, name)
            for name in parameters
            if name not in ("kwargs", "sampler", "drop_last", "shuffle", "batch_size")
        }
        with SubobjectLoader(**named, collate_fn=loader.collate_fn) as again:
            assert_same_batches(list(again), list(loader))
