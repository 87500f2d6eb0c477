"""Batches of stored tokens are those of live tokens: by index, from streams, in a column."""

from __future__ import annotations

import io
from itertools import islice

import datasets
import numpy as np
import pytest
from helpers.batches import assert_same_batches
from helpers.stores import store_rows
from helpers.streams import StatefulStream
from helpers.tiny_tokenizers import byte_tokenizer
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from subtok_data import (
    MixedDataset,
    PatchSegmenter,
    SubobjectCollator,
    SubobjectDataset,
    SubobjectIterableDataset,
    SubobjectLoader,
    SubobjectTokenizer,
    SuperpixelSegmenter,
    TextConfig,
)
from subtok_data.data import StoredTokens, tokenize_dataset
from subtok_data.data.position import LoaderState
from subtok_data.data.store import StoredRow
from subtok_data.errors import ConfigError, SampleError

COUNT = 21
SIZES = [(40, 60), (60, 40), (64, 64), (30, 64)]


def photo(number):
    rng = np.random.default_rng(number)
    height, width = SIZES[number % len(SIZES)]
    small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8))
    file = io.BytesIO()
    small.resize((width, height), Image.Resampling.BILINEAR).save(file, "PNG")
    return file.getvalue()


def make_rows(numbers=range(COUNT)):
    return [
        {"image": {"bytes": photo(n), "path": f"{n}.png"}, "caption": "word " * (n % 4), "label": n}
        for n in numbers
    ]


def hugging_face(rows):
    features = datasets.Features(
        image=datasets.Image(decode=False),
        caption=datasets.Value("string"),
        label=datasets.Value("int64"),
    )
    return datasets.Dataset.from_list(rows, features=features)


@pytest.fixture(scope="module")
def tokenizer():
    return SubobjectTokenizer(SuperpixelSegmenter(n_segments=12), size=64)


@pytest.fixture(scope="module")
def tokens(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored") / "tokens"
    tokenize_dataset(make_rows(), tokenizer, folder, executor="inline", shard_rows=4)
    return folder


def batches_of(dataset, tokenizer, **options):
    options = {"batch_size": 4, "executor": "inline", **options}
    with SubobjectLoader(dataset, tokenizer, **options) as loader:
        return list(loader)


def text(tokenizer, packing):
    config = TextConfig(byte_tokenizer(), caption="caption")
    return SubobjectCollator(tokenizer, text=config, packing=packing)


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_stored_tokens_give_the_batches_of_live_tokens(tokens, tokenizer, packing, num_workers):
    options = {"num_workers": num_workers, "collator": text(tokenizer, packing)}
    live = batches_of(SubobjectDataset(make_rows()), tokenizer, **options)
    stored = batches_of(SubobjectDataset(make_rows(), tokens=tokens), tokenizer, **options)
    assert_same_batches(stored, live)
    live = batches_of(SubobjectIterableDataset(make_rows()), tokenizer, **options)
    stream = SubobjectIterableDataset(make_rows(), tokens=tokens)
    assert_same_batches(batches_of(stream, tokenizer, **options), live)
    shards = hugging_face(make_rows()).to_iterable_dataset(num_shards=5)
    live = batches_of(SubobjectIterableDataset(shards), tokenizer, **options)
    stream = SubobjectIterableDataset(shards, tokens=StoredTokens(tokens))
    assert_same_batches(batches_of(stream, tokenizer, **options), live)


def test_a_loader_without_a_tokenizer_takes_that_of_the_tokens(tokens, tokenizer):
    for kind in (SubobjectDataset, SubobjectIterableDataset):
        expected = batches_of(kind(make_rows(), tokens=tokens), tokenizer)
        assert_same_batches(batches_of(kind(make_rows(), tokens=tokens), None), expected)
    mixed = MixedDataset([SubobjectDataset(make_rows(), tokens=tokens)] * 2, [1, 1])
    with SubobjectLoader(mixed) as loader:
        assert loader.tokenizer.config_hash == tokenizer.config_hash


def test_another_tokenizer_is_told_what_differs(tokens, tmp_path):
    other = SubobjectTokenizer(SuperpixelSegmenter(n_segments=12), size=32)
    dataset = SubobjectDataset(make_rows(), tokens=tokens)
    for options in ({"tokenizer": other}, {"collator": SubobjectCollator(other)}):
        with pytest.raises(
            ConfigError, match="holds tokens with size 64, the tokenizer has size 32"
        ):
            SubobjectLoader(dataset, **options)
    with pytest.raises(ConfigError, match=r"the tokenizer .*: give .*from_config\(StoredTokens"):
        next(iter(DataLoader(dataset, collate_fn=SubobjectCollator(other))))


def test_a_tokenizer_that_cannot_be_built_is_to_be_given(tmp_path):
    row = StoredRow.of(0, [np.zeros((8, 8), np.int16)])
    config = SubobjectTokenizer(PatchSegmenter(8), size=32).config()
    store_rows(tmp_path / "own", [row], config={**config, "segmenter": "my.Segmenter"})
    dataset = SubobjectDataset([np.zeros((8, 8, 3), np.uint8)], tokens=tmp_path / "own")
    with pytest.raises(ConfigError, match=r"no tokenizer was given.*'my\.Segmenter'.*give the one"):
        SubobjectLoader(dataset)


def test_augmentation_moves_stored_tokens_of_a_stream_as_of_a_dataset(tokens, tokenizer):
    options = {"transform": v2.RandomHorizontalFlip(0.5), "tokens": tokens}
    by_index = batches_of(SubobjectDataset(make_rows(), **options), tokenizer)
    for workers in (0, 2):
        stream = SubobjectIterableDataset(make_rows(), **options)
        found = batches_of(stream, tokenizer, num_workers=workers)
        by_sample = {
            int(b["sample_index"][i]): b["visual_token_map"][i]
            for b in found
            for i in range(len(b["sample_index"]))
        }
        for batch in by_index:
            for index, token_map in zip(
                batch["sample_index"].tolist(), batch["visual_token_map"], strict=True
            ):
                height, width = (
                    min(a, b) for a, b in zip(token_map.shape, by_sample[index].shape, strict=True)
                )
                assert (token_map[:height, :width] == by_sample[index][:height, :width]).all()


def test_live_and_stored_tokens_are_flipped_alike(tmp_path):
    """Where the partition is the same for the flipped image, so are the batches."""
    rows = [{"image": np.full((64, 64, 3), shade, np.uint8)} for shade in range(9)]
    tokenizer = SubobjectTokenizer(PatchSegmenter(16), size=64, order="raster")
    tokenize_dataset(rows, tokenizer, tmp_path / "t", executor="inline")
    flip = v2.RandomHorizontalFlip(0.5)
    live = batches_of(SubobjectDataset(rows, transform=flip), tokenizer)
    for kind in (SubobjectDataset, SubobjectIterableDataset):
        stored = kind(rows, transform=flip, tokens=tmp_path / "t")
        assert_same_batches(batches_of(stored, tokenizer), live)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", ["list", "hugging face"])
def test_a_stream_with_stored_tokens_resumes_at_every_step(tokens, tokenizer, kind, num_workers):
    def make():
        source = make_rows()
        if kind == "hugging face":
            source = hugging_face(source).to_iterable_dataset(num_shards=6)
        return SubobjectLoader(
            SubobjectIterableDataset(source, tokens=tokens),
            tokenizer,
            batch_size=4,
            executor="inline",
            num_workers=num_workers,
        )

    with make() as loader:
        expected = list(loader)
    for taken in range(1, len(expected)):
        with make() as loader:
            assert_same_batches(list(islice(loader, taken)), expected[:taken])
            state = loader.state_dict()
        with make() as again:
            again.load_state_dict(state)
            assert_same_batches(list(again), expected[taken:])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_and_workers_find_the_tokens_of_their_rows(tokens, world):
    shards = hugging_face(make_rows()).to_iterable_dataset(num_shards=7)
    found = {}
    for source in (shards, make_rows()):
        for rank in range(world):
            stream = SubobjectIterableDataset(source, tokens=tokens)
            stream.prepare(1, (rank, world), LoaderState(), workers=2)
            for sample in DataLoader(stream, batch_size=None, num_workers=2):
                found[sample.columns["label"]] = sample
        assert sorted(found) == list(range(COUNT))
        by_index = SubobjectDataset(make_rows(), tokens=tokens)
        for label, sample in found.items():
            assert (sample.token_maps[0] == by_index[label].token_maps[0]).all()
        found.clear()


def test_a_stateful_stream_goes_on_at_its_tokens(tmp_path):
    rows = list(StatefulStream())
    tokenizer = SubobjectTokenizer(SuperpixelSegmenter(n_segments=4), size=None)
    tokenize_dataset(rows, tokenizer, tmp_path / "t", executor="inline", shard_rows=3)

    def make(state):
        stream = SubobjectIterableDataset(
            StatefulStream(), shards_itself=True, tokens=tmp_path / "t"
        )
        stream.prepare(1, (0, 1), state)
        return stream

    expected = [sample.token_maps[0].tolist() for sample in make(LoaderState())]
    for taken in range(1, len(rows)):
        samples, state = iter(make(LoaderState())), LoaderState()
        for _ in range(taken):
            state.advance(next(samples).position)
        assert [sample.token_maps[0].tolist() for sample in make(state)] == expected[taken:]


@pytest.mark.parametrize("order", ["reversed", "shuffled", "filtered", "repeated"])
def test_a_stream_in_another_order_finds_its_tokens(tokens, order):
    numbers = list(range(COUNT))
    if order == "reversed":
        numbers.reverse()
    elif order == "shuffled":
        np.random.default_rng(0).shuffle(numbers)
    elif order == "filtered":
        numbers = numbers[2::3]
    else:
        numbers = [n for n in numbers for _ in range(2)]
    by_index = SubobjectDataset(make_rows(), tokens=tokens)
    stream = SubobjectIterableDataset(make_rows(numbers), tokens=tokens)
    for number, sample in zip(numbers, stream, strict=True):
        assert (sample.token_maps[0] == by_index[number].token_maps[0]).all()


def test_a_row_whose_image_was_not_tokenized_is_an_error_with_both_keys(tokens):
    rows = make_rows([0, 1, 99, 3])
    samples = iter(SubobjectIterableDataset(rows, tokens=tokens))
    assert [next(samples).index for _ in range(2)] == [0, 1]
    with pytest.raises(SampleError, match="row 2 belong to another image") as caught:
        next(samples)
    stored = StoredTokens(tokens)
    keys = [word.strip(",.") for word in str(caught.value).split() if len(word.strip(",.")) == 32]
    assert keys[0] == stored.row(2).key.hex()
    assert keys[1] not in {row.key.hex() for row in stored.rows()}
    assert (caught.value.index, caught.value.path) == (2, "99.png")
    replaced = SubobjectIterableDataset(rows, tokens=tokens, on_error="replace")
    assert [s.columns["label"] for s in replaced] == [0, 1, 3, 3]


def test_what_is_read_in_order_is_read_ahead_and_found_rows_are_near(tokens, monkeypatch):
    single = []
    whole = StoredTokens.row
    monkeypatch.setattr(StoredTokens, "row", lambda self, n: single.append(n) or whole(self, n))
    stream = SubobjectIterableDataset(make_rows(), tokens=tokens)
    assert len(list(stream)) == COUNT
    assert single == []
    single.clear()
    assert len(list(SubobjectIterableDataset(make_rows([*range(8, 13), *range(4)]), tokens=tokens)))
    assert len(single) <= 4


def test_a_damaged_shard_costs_its_own_rows_only(tokens, tmp_path):
    import shutil

    folder = tmp_path / "t"
    shutil.copytree(tokens, folder)
    shard = folder / "data/part=000/tokens-000001.parquet"
    content = bytearray(shard.read_bytes())
    content[40] ^= 1
    shard.write_bytes(content)
    stream = SubobjectIterableDataset(make_rows(), tokens=folder, on_error="replace")
    samples = list(stream)
    assert [s.columns["label"] for s in samples] == [0, 1, 2, 3, *[8] * 5, *range(9, COUNT)]


def test_a_wrong_value_for_tokens_is_refused():
    for kind in (SubobjectDataset, SubobjectIterableDataset):
        with pytest.raises(ConfigError, match="tokens is the number 7.*give the folder or URI"):
            kind(make_rows([0]), tokens=7)


# --- as a column --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_column(tokenizer):
    return hugging_face(make_rows()).map(tokenizer.as_column(), batched=True, batch_size=8)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_column_gives_the_batches_of_live_tokens(with_column, tokenizer, tmp_path, num_workers):
    live = batches_of(SubobjectDataset(make_rows()), tokenizer, num_workers=num_workers)
    with_column.to_parquet(tmp_path / "t.parquet")
    read = datasets.Dataset.from_parquet(str(tmp_path / "t.parquet"), cache_dir=str(tmp_path))
    for source in (with_column, read):
        stored = SubobjectDataset(source, tokens_column="subtok")
        assert_same_batches(batches_of(stored, tokenizer, num_workers=num_workers), live)
    streamed = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "t.parquet"), split="train", streaming=True
    )
    stream = SubobjectIterableDataset(streamed, tokens_column="subtok")
    live = batches_of(SubobjectIterableDataset(streamed.remove_columns("subtok")), tokenizer)
    assert_same_batches(batches_of(stream, tokenizer), live)


def test_a_column_holds_the_records_of_the_store(with_column, tokens):
    for row, stored in zip(with_column, StoredTokens(tokens).rows(), strict=True):
        assert row["subtok"]["records"] == list(stored.records)
        assert row["subtok"]["key"] == stored.key
        assert row["subtok"]["error"] == ""


def test_images_that_datasets_decode_keep_their_tokens(tokenizer):
    """Their key is that of their pixels, which the file still decodes to."""
    rows = hugging_face(make_rows(range(4))).cast_column("image", datasets.Image())
    mapped = rows.map(tokenizer.as_column(name="t"), batched=True)
    for own, live in zip(
        batches_of(SubobjectDataset(mapped, tokens_column="t"), tokenizer),
        batches_of(SubobjectDataset(make_rows(range(4))), tokenizer),
        strict=True,
    ):
        assert (own["visual_token_map"] == live["visual_token_map"]).all()


def test_a_column_meets_only_its_image_and_says_what_failed(tokenizer):
    rows = make_rows(range(3))
    rows[1]["image"] = {"bytes": b"no image", "path": "bad.png"}
    made = tokenizer.as_column()({"image": [row["image"] for row in rows]})["subtok"]
    rows = [{**row, "subtok": tokens} for row, tokens in zip(rows, made, strict=True)]
    swapped = [
        rows[0],
        {**rows[1], "image": rows[0]["image"]},
        {**rows[2], "image": rows[0]["image"]},
    ]
    dataset = SubobjectDataset(swapped, tokens_column="subtok")
    assert "subtok" not in dataset[0].columns
    with pytest.raises(SampleError, match="sample 1 .*no stored tokens: image 'bad.png'"):
        dataset[1]
    keys = f"made from {made[2]['key'].hex()}, this one is {made[0]['key'].hex()}"
    with pytest.raises(SampleError, match=f"sample 2 .*belong to another image.*{keys}"):
        dataset[2]
    rows[2]["subtok"] = {**made[2], "records": [made[2]["records"][0][:-1] + b"?"]}
    with pytest.raises(SampleError, match="sample 2 .*column 'subtok'.*damaged"):
        SubobjectDataset(rows, tokens_column="subtok")[2]


def test_what_is_no_column_of_tokens_is_refused(tokenizer, tokens):
    with pytest.raises(ConfigError, match=r"no column 'subtok'.*\['caption', 'label'\].*as_column"):
        SubobjectDataset(make_rows([0]), tokens_column="subtok")[0]
    with pytest.raises(ConfigError, match="column 'label' holds no tokens"):
        SubobjectDataset(make_rows([0]), tokens_column="label")[0]
    with pytest.raises(ConfigError, match="give one of them"):
        SubobjectDataset(make_rows([0]), tokens_column="subtok", tokens=tokens)
    with pytest.raises(ConfigError, match="no image column 'image'.*'pic'"):
        tokenizer.as_column()({"pic": [1]})
    with pytest.raises(ConfigError, match="batched=True"):
        tokenizer.as_column()(make_rows([0])[0])
