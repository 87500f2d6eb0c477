"""Options of ``SubobjectLoader`` beside a collator: honoured or refused, never ignored."""

from __future__ import annotations

import copy
import inspect
import pickle
from itertools import islice

import pytest
from helpers.batches import assert_same_batches, faulty_tokenizer
from helpers.faulty import RAISE, CodedImages
from helpers.tiny_tokenizers import word_tokenizer

from subtok_data import SubobjectCollator, SubobjectLoader, TextConfig
from subtok_data.errors import ConfigError, SampleError, SubtokError

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


class EndlessBatches:
    """Batches without end, and so without length."""

    def __iter__(self):
        number = 0
        while True:
            yield [number % 5, (number + 1) % 5]
            number += 2


@pytest.mark.parametrize("look_ahead", [0, 3])
def test_batches_without_end(look_ahead):
    options = {"executor": "inline", "prefetch_batches": look_ahead}

    def make() -> SubobjectLoader:
        return SubobjectLoader(
            CodedImages(5), faulty_tokenizer(), batch_sampler=EndlessBatches(), **options
        )

    with make() as loader:
        batches = list(islice(loader, 7))
        state = loader.state_dict()
        after = list(islice(make_resumed(make(), state), 2))
    assert [batch["sample_index"].tolist() for batch in batches[:3]] == [[0, 1], [2, 3], [4, 0]]
    assert [batch["sample_index"].tolist() for batch in after] == [[4, 0], [1, 2]]


def make_resumed(loader: SubobjectLoader, state: dict) -> SubobjectLoader:
    loader.load_state_dict(state)
    return loader


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batch_sampler_of_the_users_own_is_resumed(num_workers):
    batches = [[4, 1], [0], [2, 3], [1]]

    def make() -> SubobjectLoader:
        return SubobjectLoader(
            CodedImages(5),
            faulty_tokenizer(),
            batch_sampler=batches,
            executor="inline",
            num_workers=num_workers,
        )

    with make() as loader:
        iterator = iter(loader)
        next(iterator), next(iterator)
        state = loader.state_dict()
    with make() as loader:
        loader.load_state_dict(state)
        rest, whole = ([b["sample_index"].tolist() for b in loader] for _ in range(2))
    assert rest == batches[2:]
    assert whole == batches


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_copied_loader_says_what_to_do(copied):
    with SubobjectLoader(CodedImages(4), faulty_tokenizer(), **OPTIONS) as loader:
        with pytest.raises(SubtokError, match="SubobjectLoader is neither pickled nor copied.*in"):
            copied(loader)


def test_pickled_collator_says_what_to_do():
    collator = pickle.loads(pickle.dumps(SubobjectCollator(faulty_tokenizer())))
    with pytest.raises(ConfigError, match="build a SubobjectCollator in each process"):
        SubobjectLoader(CodedImages(4), collator=collator)
    batch = collator([CodedImages(4)[0]])
    with pytest.raises(SubtokError, match="build one in each process"):
        batch["sample_index"]
