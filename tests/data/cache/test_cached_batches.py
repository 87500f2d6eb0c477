"""Loaders with a cache: the same batches as without, and no inference of what it has."""

from __future__ import annotations

import os
import stat
import warnings

import numpy as np
import pytest
import torch
from helpers.batches import assert_same_batches, faulty_tokenizer
from helpers.boundary_networks import Red, pictures
from helpers.faulty import RAISE, CodedImages, png
from helpers.tiny_tokenizers import word_tokenizer
from torchvision.transforms import v2

from subtok_data import (
    BoundaryModel,
    EPOCSegmenter,
    MixedDataset,
    PatchSegmenter,
    PixelConfig,
    PromptColumns,
    SubobjectCollator,
    SubobjectDataset,
    SubobjectIterableDataset,
    SubobjectLoader,
    SubobjectTokenizer,
    SuperpixelSegmenter,
    TextConfig,
)
from subtok_data.data import tokenize_dataset
from subtok_data.data.cache import describe_cache
from subtok_data.errors import ConfigError, SampleError
from subtok_data.segmenters import PromptedSegmenter

SIZES = [(64, 96), (96, 64), (70, 90), (64, 64), (128, 100), (80, 96), (64, 96)]


class Counting(EPOCSegmenter):
    """Counts the images that it infers."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.inferred = 0

    def infer(self, images, sizes, prompts=None):
        self.inferred += len(images)
        # One by one: rounding depends on the batch, which is another one where some are hits.
        return [one for image in images for one in super(Counting, self).infer([image], sizes)]


class CountingSuperpixels(SuperpixelSegmenter):
    inferred = 0

    def infer(self, images, sizes, prompts=None):
        self.inferred += len(images)
        return super().infer(images, sizes, prompts)


@pytest.fixture(scope="module")
def images():
    return pictures(*SIZES)


def rows_of(images):
    """Half of the images as files, half as pixels."""
    return [
        {"image": image if place % 2 else {"bytes": png(image), "path": None}, "label": place}
        for place, image in enumerate(images)
    ]


def counting(**options):
    return SubobjectTokenizer(Counting(), **{"size": 96, **options})


def batches_of(dataset, tokenizer, **options):
    options = {"batch_size": 3, "executor": "inline", "prefetch_batches": 0, **options}
    with SubobjectLoader(
        dataset, **({} if tokenizer is None else {"tokenizer": tokenizer}), **options
    ) as loader:
        return list(loader), loader.stats()


def two_epochs(dataset, tokenizer, folder, **options):
    options = {"batch_size": 3, "executor": "inline", "prefetch_batches": 0, **options}
    given = {} if tokenizer is None else {"tokenizer": tokenizer}
    with SubobjectLoader(dataset, **given, cache=folder, **options) as loader:
        first, before = list(loader), loader.stats()
        return first, list(loader), before, loader.stats()


@pytest.mark.parametrize(
    "options",
    [
        {"executor": "inline"},
        {"executor": "thread", "prefetch_batches": 3},
        {"executor": "process", "segment_workers": 1, "prefetch_batches": 2},
        {"executor": "inline", "num_workers": 2, "prefetch_batches": 1},
        {"executor": "inline", "num_workers": 1, "multiprocessing_context": "spawn"},
    ],
    ids=["step", "thread", "process", "forked", "spawned"],
)
def test_batches_are_those_without_and_the_second_epoch_infers_nothing(images, tmp_path, options):
    tokenizer = counting()
    rows = rows_of(images)
    plain, _ = batches_of(rows, tokenizer, shuffle=True, seed=3)
    tokenizer.segmenter.inferred = 0
    with SubobjectLoader(
        rows, tokenizer, batch_size=3, shuffle=True, seed=3, cache=tmp_path, **options
    ) as loader:
        assert_same_batches(list(loader), plain)
        assert tokenizer.segmenter.inferred == len(images)
        assert (loader.stats().cache_hits, loader.stats().cache_misses) == (0, 7)
        loader.set_epoch(0)
        assert_same_batches(list(loader), plain)
        assert tokenizer.segmenter.inferred == len(images)
        assert (loader.stats().cache_hits, loader.stats().cache_misses) == (7, 7)
        assert "7 of 14 images were in the cache" in loader.stats().report()
    # Another run finds them too.
    again, stats = batches_of(rows, counting(), shuffle=True, seed=3, cache=tmp_path)
    assert_same_batches(again, plain)
    assert (stats.cache_hits, stats.cache_misses) == (7, 0)


@pytest.mark.parametrize(
    "budget",
    [
        {},
        {"num_tokens": 12},
        {"max_tokens": 9},
        {"strength": 0.2},
        {"max_tokens": 5, "overflow": "drop"},
    ],
    ids=str,
)
def test_every_budget_with_text_of_little_room(images, tmp_path, budget):
    captions = ["A red ball", "Two dogs . A red ball is this ? Two dogs .", "this"]
    rows = [{**row, "caption": captions[place % 3]} for place, row in enumerate(rows_of(images))]
    for folder, length in (("one", 20), ("both", 28), ("both", 22), ("both", None)):
        text = TextConfig(
            word_tokenizer(), caption="caption", max_length=length, shrink_tokens=length is not None
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # images with fewer tokens than num_tokens
            plain, before = batches_of(rows, counting(**budget), text=text)
            tokenizer = counting(**budget)
            first, second, _, stats = two_epochs(rows, tokenizer, tmp_path / folder, text=text)
        assert_same_batches(first, plain)
        assert_same_batches(second, plain)
        assert stats.cache_misses + stats.cache_hits == 14
        assert stats.cache_hits >= 7
        assert tokenizer.segmenter.inferred == stats.cache_misses
        assert stats.short == 2 * before.short


@pytest.mark.parametrize("pixels", [PixelConfig(size=(48, 48)), PixelConfig(dtype="uint8")])
def test_pixels_of_the_encoder_and_shapes_are_the_same(images, tmp_path, pixels):
    def collator():
        return SubobjectCollator(counting(), pixels=pixels, shape_size=8, pad_to_multiple_of=8)

    plain, _ = batches_of(rows_of(images), None, collator=collator())
    given = collator()
    first, second, _, stats = two_epochs(rows_of(images), None, tmp_path, collator=given)
    assert_same_batches(first, plain)
    assert_same_batches(second, plain)
    assert stats.cache_hits == 7
    assert given.worker.cache is None  # of the loader, not of the collator that it was given


def test_only_misses_are_inferred_in_a_mixed_batch(images, tmp_path):
    rows = rows_of(images)
    plain, _ = batches_of(rows, counting())
    batches_of(rows[1:5:2], counting(), cache=tmp_path)
    tokenizer = counting()
    found, stats = batches_of(rows, tokenizer, cache=tmp_path)
    assert_same_batches(found, plain)
    assert (stats.cache_hits, stats.cache_misses, tokenizer.segmenter.inferred) == (2, 5, 5)


def test_the_same_image_as_a_file_elsewhere_is_a_hit(images, tmp_path):
    (tmp_path / "a.png").write_bytes(png(images[0]))
    (tmp_path / "b.png").write_bytes(png(images[0]))
    batches_of([tmp_path / "a.png"], counting(), cache=tmp_path / "cache")
    (tmp_path / "a.png").write_bytes(png(images[1]))
    _, stats = batches_of(
        [tmp_path / "a.png", tmp_path / "b.png"], counting(), cache=tmp_path / "cache"
    )
    assert (stats.cache_hits, stats.cache_misses) == (1, 1)


def test_configuration_and_canvas_are_part_of_the_key(images, tmp_path):
    rows = rows_of(images)
    for options in ({}, {"size": 64}, {"square": True}, {"order": "raster"}, {"max_tokens": 20}):
        plain, _ = batches_of(rows, counting(**options))
        found, stats = batches_of(rows, counting(**options), cache=tmp_path)
        assert stats.cache_hits == 0
        assert_same_batches(found, plain)
    assert len(describe_cache(tmp_path).parts) == 5


def test_several_images_a_sample(images, tmp_path):
    rows = [{"image": [images[0], images[1]]}, {"image": [images[2]]}, {"image": images[:3]}]
    plain, _ = batches_of(rows, counting())
    first, second, _, stats = two_epochs(rows, counting(), tmp_path)
    assert_same_batches(first, plain)
    assert_same_batches(second, plain)
    assert (stats.cache_hits, stats.cache_misses) == (6, 6)


def test_prompts_are_part_of_the_key_where_tokens_depend_on_them(images, tmp_path):
    boxes = [[[5 + place, 5, 40, 40]] for place in range(len(images))]

    def rows(shift):
        return [
            {"image": image, "boxes": [[x0 + shift, y0, x1, y1] for x0, y0, x1, y1 in own]}
            for image, own in zip(images, boxes, strict=True)
        ]

    def dataset(shift=0):
        return SubobjectDataset(rows(shift), prompts=PromptColumns(boxes="boxes"))

    prompted = SubobjectTokenizer(PromptedSegmenter(EPOCSegmenter()), size=96)
    for tokenizer, hits in ((prompted, 0), (counting(), 7)):
        plain, _ = batches_of(dataset(), tokenizer)
        first, second, _, stats = two_epochs(dataset(), tokenizer, tmp_path)
        assert_same_batches(first, plain)
        assert_same_batches(second, plain)
        assert stats.cache_hits == 7
        moved, _ = batches_of(dataset(9), tokenizer)
        found, stats = batches_of(dataset(9), tokenizer, cache=tmp_path)
        assert_same_batches(found, moved)
        assert stats.cache_hits == hits


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_samples_are_replaced_by_the_same_ones(tmp_path, num_workers):
    def dataset():
        images = CodedImages(13, codes={4: RAISE, 9: RAISE}, corrupt=[2, 11])
        return SubobjectDataset(images, on_error="replace", seed=5)

    options = {"on_error": "replace", "batch_size": 4, "num_workers": num_workers}
    plain, without = batches_of(dataset(), faulty_tokenizer(fail_on=6), **options)
    for epoch in range(3):
        found, stats = batches_of(dataset(), faulty_tokenizer(fail_on=6), cache=tmp_path, **options)
        assert_same_batches(found, plain)
        assert stats.replaced == without.replaced
        assert stats.cache_misses == (0 if epoch else 13) or epoch == 0
        assert stats.cache_hits + stats.cache_misses == 13


def test_a_bad_sample_raises_beside_hits(tmp_path):
    good = CodedImages(6)
    batches_of(good, faulty_tokenizer(), cache=tmp_path)
    bad = CodedImages(6, codes={4: RAISE})
    with pytest.raises(SampleError, match="sample 4 failed in segment"):
        batches_of(bad, faulty_tokenizer(), cache=tmp_path)


def test_a_resumed_epoch_goes_on_with_hits(images, tmp_path):
    rows = rows_of(images)
    tokenizer = counting()
    plain, _ = batches_of(rows, tokenizer, batch_size=2)
    options = {"batch_size": 2, "executor": "inline", "cache": tmp_path}
    with SubobjectLoader(rows, tokenizer, **options) as loader:
        list(loader)
        taken = iter(loader)
        begun = [next(taken), next(taken)]
        state = loader.state_dict()
        taken.close()
    tokenizer.segmenter.inferred = 0
    with SubobjectLoader(rows, tokenizer, **options) as loader:
        loader.load_state_dict(state)
        assert_same_batches(begun + list(loader), plain)
        assert (loader.stats().cache_hits, tokenizer.segmenter.inferred) == (3, 0)


def test_an_epoch_that_was_left_keeps_what_it_made(images, tmp_path):
    with SubobjectLoader(rows_of(images), counting(), executor="inline", cache=tmp_path) as loader:
        for _ in loader:
            break
    assert describe_cache(tmp_path).records >= 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_streams(images, tmp_path, num_workers):
    rows = rows_of(images)

    def stream():
        return SubobjectIterableDataset(_Again(rows))

    tokenizer = counting()
    plain, _ = batches_of(stream(), tokenizer, num_workers=num_workers)
    tokenizer.segmenter.inferred = 0
    first, second, _, stats = two_epochs(stream(), tokenizer, tmp_path, num_workers=num_workers)
    assert_same_batches(first, plain)
    assert_same_batches(second, plain)
    assert (stats.cache_hits, tokenizer.segmenter.inferred) == (7, 7)


class _Again:
    def __init__(self, rows) -> None:
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def test_mixtures(images, tmp_path):
    rows = rows_of(images)

    def mixture():
        return MixedDataset([SubobjectDataset(rows[:3]), SubobjectDataset(rows[3:])], [1, 1])

    plain, _ = batches_of(mixture(), counting())
    first, second, before, stats = two_epochs(mixture(), counting(), tmp_path)
    assert_same_batches(first, plain)
    assert len(second) == len(first)
    assert before.cache_misses == 6
    assert stats.cache_hits >= 5  # the second epoch has another order, and another image perhaps


def test_a_loader_that_was_rebuilt_looks_up_too(images, tmp_path):
    rows = rows_of(images)
    tokenizer = counting()
    plain, _ = batches_of(rows, tokenizer)
    with SubobjectLoader(
        rows, tokenizer, batch_size=3, executor="inline", cache=tmp_path
    ) as loader:
        list(loader)
        list(loader)
        tokenizer.segmenter.inferred = 0
        rebuilt = torch.utils.data.DataLoader(
            loader.dataset, batch_size=3, collate_fn=loader.collate_fn, num_workers=1
        )
        assert_same_batches([dict(batch) for batch in rebuilt], plain)
        assert tokenizer.segmenter.inferred == 0


def test_a_dataset_that_augments_by_itself_is_told(images, tmp_path):
    random = np.random.default_rng(0)

    class Noisy(list):
        def __getitem__(self, index):
            image = super().__getitem__(index)
            return image ^ random.integers(0, 2, image.shape, dtype=np.uint8)

    tokenizer = SubobjectTokenizer(PatchSegmenter(32), size=64)
    with SubobjectLoader(Noisy(images), tokenizer, executor="inline", cache=tmp_path) as loader:
        list(loader)
        with pytest.warns(UserWarning, match="no image of this epoch was in the cache"):
            list(loader)
        list(loader)  # once


CROP = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomCrop(56)])


@pytest.mark.parametrize(
    "options",
    [
        {"executor": "inline"},
        {"executor": "thread", "prefetch_batches": 3},
        {"executor": "inline", "num_workers": 2, "prefetch_batches": 1},
        {"executor": "inline", "num_workers": 1, "multiprocessing_context": "spawn"},
    ],
    ids=["step", "thread", "forked", "spawned"],
)
def test_augmentation_comes_after_the_cache_as_with_stored_tokens(images, tmp_path, options):
    rows = [{**row, "caption": "A red ball"} for row in rows_of(images)]
    given = {
        "text": TextConfig(word_tokenizer(), caption="caption", max_length=24, shrink_tokens=True),
        "shuffle": True,
    }
    # Its tokens do not depend on the batch, which for stored tokens is another one.
    tokenizer = SubobjectTokenizer(CountingSuperpixels("slic"), size=96)
    tokenize_dataset(rows, tokenizer, tmp_path / "tokens", executor="inline")
    stored = SubobjectDataset(rows, tokens=tmp_path / "tokens", transform=CROP, seed=2)
    with SubobjectLoader(stored, tokenizer, batch_size=3, executor="inline", **given) as loader:
        epochs = [list(loader) for _ in range(3)]
    dataset = SubobjectDataset(rows, transform=CROP, seed=2)
    tokenizer.segmenter.inferred = 0
    with SubobjectLoader(
        dataset, tokenizer, batch_size=3, cache=tmp_path / "cache", **given, **options
    ) as loader:
        for number, epoch in enumerate(epochs):
            assert_same_batches(list(loader), epoch)
            assert (loader.stats().cache_hits, loader.stats().cache_misses) == (7 * number, 7)
        assert tokenizer.segmenter.inferred == 7
    assert dataset.cache is None
    assert not dataset.with_keys


def test_augmented_beside_plain_and_bad_samples(images, tmp_path):
    rows = rows_of(images)
    rows[1] = {"image": b"no image", "label": 1}

    def mixture():
        augmented = SubobjectDataset(rows[:4], transform=CROP, on_error="replace")
        return MixedDataset([augmented, SubobjectDataset(rows[4:])], [1, 1], shuffle=False)

    options = {"executor": "inline", "batch_size": 3, "cache": tmp_path, "on_error": "replace"}
    found = []
    for number in range(2):
        with SubobjectLoader(mixture(), counting(), **options) as loader:
            found.append(list(loader))
            stats = loader.stats()
            assert (stats.cache_misses == 0) == bool(number)
            assert [one.index for one in stats.replaced] == [2]
    assert_same_batches(*found)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_cache_is_read_and_said_once(images, tmp_path):
    rows = rows_of(images)
    batches_of(rows[:4], counting(), cache=tmp_path)
    folders = [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.warns(UserWarning, match="cannot be written to the cache") as told:
            _, _, before, after = two_epochs(rows, counting(), tmp_path)
    finally:
        for path in folders:
            path.chmod(stat.S_IRWXU)
    assert len(told) == 1
    assert (before.cache_hits, after.cache_hits) == (4, 8)


def test_a_cache_that_cannot_be_written_to_is_said_once(images, tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(30, "Read-only file system")

    plain, _ = batches_of(rows_of(images), counting())
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.warns(UserWarning, match="Read-only file system") as told:
        first, second, _, stats = two_epochs(rows_of(images), counting(), tmp_path)
    assert len(told) == 1
    assert_same_batches(first, plain)
    assert_same_batches(second, plain)
    assert stats.cache_hits == 0


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_segment_is_said_and_its_images_tokenized_anew(images, tmp_path, num_workers):
    rows = rows_of(images)
    plain, _ = batches_of(rows, counting(), cache=tmp_path)
    (path,) = tmp_path.rglob("seg-*.parquet")
    content = bytearray(path.read_bytes())
    for at in range(len(content) // 3, len(content) // 3 + 60):  # of the records
        content[at] ^= 5
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=path.name):
        first, second, before, after = two_epochs(
            rows, counting(), tmp_path, num_workers=num_workers
        )
    assert before.cache_misses > 0
    assert after.cache_misses == before.cache_misses
    assert_same_batches(first, plain)
    assert_same_batches(second, plain)


def test_an_iteration_in_a_forked_child_leaves_the_parents_tokens_alone(images, tmp_path):
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    rows = rows_of(images)
    with SubobjectLoader(rows, counting(), executor="inline", cache=tmp_path) as loader:
        taken = iter(loader)
        next(taken)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    code = 0 if len(list(loader)) == 7 else 2
                    loader.close()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        list(taken)
    info = describe_cache(tmp_path)
    assert info.records == 14
    assert not info.parts[0].damaged


def test_what_has_no_use_for_a_cache_is_refused(images, tmp_path):
    rows = rows_of(images)
    stream = SubobjectIterableDataset(_Again(rows), transform=lambda image: image)
    with pytest.raises(ConfigError, match=r"transform= of a SubobjectIterableDataset.*tokens=DIR"):
        SubobjectLoader(stream, counting(), cache=tmp_path)
    augmented = SubobjectDataset(rows, transform=lambda image: image)
    prompted = SubobjectTokenizer(PromptedSegmenter(EPOCSegmenter()), size=96)
    with pytest.raises(ConfigError, match="tokens depend on prompts"):
        SubobjectLoader(augmented, prompted, cache=tmp_path)
    stored = tmp_path / "tokens"
    tokenize_dataset(rows, counting(), stored, executor="inline")
    with pytest.raises(ConfigError, match="beside a dataset with stored tokens"):
        SubobjectLoader(SubobjectDataset(rows, tokens=stored), counting(), cache=tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"is no cache of tokens: it holds 'data'"):
        SubobjectLoader(rows, counting(), cache=stored)
    with pytest.raises(ConfigError, match="cache_gb=3 limits a cache: give cache=FOLDER too"):
        SubobjectLoader(rows, counting(), cache_gb=3)
    nameless = SubobjectTokenizer(_Nameless())
    with pytest.raises(ConfigError, match=r"_Nameless has no config\(\)"):
        batches_of(rows, nameless, cache=tmp_path / "cache")


class _Nameless:
    partitioner = PatchSegmenter(8).partitioner

    def infer(self, images, sizes, prompts=None):
        return [{} for _ in images]


def test_hits_with_too_few_tokens_are_told_too(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    images = [np.full((64, 64, 3), 10, np.uint8), noise]
    model = BoundaryModel(Red(), mean=(0.5, 0.5, 0.5), std=(0.1, 0.1, 0.1), device="cpu")
    tokenizer = SubobjectTokenizer(EPOCSegmenter(model), size=64, num_tokens=9)
    with SubobjectLoader(images, tokenizer, executor="inline", cache=tmp_path) as loader:
        for _ in range(2):
            with pytest.warns(UserWarning, match="1 of 2 images have fewer tokens"):
                list(loader)
