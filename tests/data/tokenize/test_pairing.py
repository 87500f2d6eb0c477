"""Stored tokens meet only the image that they were made from."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from helpers.batches import assert_same_batches
from PIL import Image

from subtok_data import (
    ImageFiles,
    PatchSegmenter,
    SubobjectDataset,
    SubobjectLoader,
    SubobjectTokenizer,
)
from subtok_data.data import StoredTokens, tokenize_dataset
from subtok_data.data.datasets import sample as sample_module
from subtok_data.errors import ConfigError, SampleError

SIZES = [(40, 60), (60, 40), (64, 64), (30, 64), (64, 30), (50, 50)]


def photo(number, seed=0):
    random = np.random.default_rng([seed, number])
    return random.integers(0, 256, (*SIZES[number % len(SIZES)], 3), np.uint8)


@pytest.fixture
def tokenizer():
    return SubobjectTokenizer(PatchSegmenter(16), size=64)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        Image.fromarray(photo(number)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def paths(folder):
    return sorted(folder.iterdir())


def run(dataset, tokenizer, out, **options):
    options = {"executor": "inline", "batch_size": 2, "shard_rows": 4, **options}
    return tokenize_dataset(dataset, tokenizer, out, **options)


def refused(dataset, index):
    """The error of a row whose image is another one, as it must be."""
    with pytest.raises(SampleError, match="belong to another image") as caught:
        dataset[index]
    words = str(caught.value)
    assert f"row {index}" in words
    keys = [word.strip("., ") for word in words.split() if len(word.strip("., ")) == 32]
    assert len(set(keys)) == 2, words
    assert caught.value.index == index
    return keys


@pytest.mark.parametrize(
    "order", [[5, 4, 3, 2, 1, 0], [1, 2, 3, 4, 5, 0], [4, 2], [3, 3, 0, 0, 5, 1, 4]]
)
def test_a_part_in_another_order_or_with_repeats_finds_its_tokens(
    tokenizer, paths, tmp_path, order
):
    run(paths, tokenizer, tmp_path / "t")
    whole = SubobjectDataset(paths, tokens=tmp_path / "t")
    other = SubobjectDataset([paths[place] for place in order], tokens=tmp_path / "t")
    for dataset in (other, pickle.loads(pickle.dumps(other))):
        for index, place in enumerate(order):
            assert (dataset[index].token_maps[0] == whole[place].token_maps[0]).all()
            assert dataset[index].index == index


def test_workers_find_the_tokens_of_a_shuffled_table_of_captions(tokenizer, paths, tmp_path):
    run(paths, tokenizer, tmp_path / "t")
    rows = [
        {"image": str(path), "caption": f"{path.stem}, {n}"} for path in paths for n in range(5)
    ]
    rows = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]
    options = {"batch_size": 4, "executor": "inline"}
    with SubobjectLoader(SubobjectDataset(rows), tokenizer, **options) as live:
        expected = list(live)
    for workers in (0, 2):
        stored = SubobjectDataset(rows, tokens=tmp_path / "t")
        with SubobjectLoader(stored, tokenizer, num_workers=workers, **options) as loader:
            assert_same_batches(list(loader), expected)


def test_rows_in_order_need_no_table_and_files_no_pixels(tokenizer, paths, tmp_path, monkeypatch):
    run(paths, tokenizer, tmp_path / "t")
    mapped = []
    keys = StoredTokens.keys
    monkeypatch.setattr(StoredTokens, "keys", lambda self: mapped.append(1) or keys(self))
    decoded = []
    of_pixels = sample_module.pixel_key
    monkeypatch.setattr(sample_module, "pixel_key", lambda one: decoded.append(1) or of_pixels(one))
    assert len(SubobjectDataset(paths, tokens=tmp_path / "t")[:]) == 6
    assert (mapped, decoded) == ([], [])
    assert len(SubobjectDataset(paths[::-1], tokens=tmp_path / "t")[:]) == 6
    assert (mapped, decoded) == ([1], [1])  # the first row tells which key the store holds


def test_tokens_of_pixels_are_found_for_files_in_another_order(tokenizer, paths, tmp_path):
    run([np.array(Image.open(path)) for path in paths], tokenizer, tmp_path / "t")
    dataset = SubobjectDataset(paths[::-1], tokens=tmp_path / "t")
    assert [sample.token_maps[0].shape for sample in dataset[:]] == [
        sample.token_maps[0].shape for sample in SubobjectDataset(paths, tokens=tmp_path / "t")[:]
    ][::-1]


def test_a_grown_folder_names_the_image_without_tokens(tokenizer, folder, tmp_path):
    run(folder, tokenizer, tmp_path / "t")
    Image.fromarray(photo(9)).save(folder / "2b.png")
    dataset = SubobjectDataset(folder, tokens=tmp_path / "t")
    assert [dataset[index].token_maps is not None for index in (0, 2, 4, 6)] == [True] * 4
    with pytest.raises(SampleError) as caught:
        dataset[3]
    words = str(caught.value)
    assert words.startswith(f"sample 3 ({str(folder / '2b.png')!r}) failed in decode: the stored")
    assert "has grown since, or is another one: 6 rows were tokenized, it has 7: " in words
    assert f"`subtok tokenize {folder} --out DIR`" in words


def test_without_keys_rows_go_by_number(tokenizer, paths, tmp_path):
    run(paths, tokenizer, tmp_path / "t")
    options = {"tokens": tmp_path / "t", "check_keys": False}
    assert SubobjectDataset(paths[::-1], **options)[0].token_maps is not None
    with pytest.raises(ConfigError, match="has 5 rows, but .* holds tokens of 6, and here row k"):
        SubobjectDataset(paths[:5], **options)


@pytest.mark.parametrize("kind", ["paths", "bytes", "pixels", "pillow", "tensors", "folder", "hf"])
def test_an_image_that_was_overwritten_is_noticed(tokenizer, folder, paths, tmp_path, kind):
    def source():
        if kind == "folder":
            return ImageFiles(folder)
        if kind == "paths":
            return paths
        if kind == "bytes":
            return [{"image": {"bytes": path.read_bytes(), "path": None}} for path in paths]
        if kind == "hf":
            datasets = pytest.importorskip("datasets")
            rows = datasets.Dataset.from_dict({"image": [str(path) for path in paths]})
            return rows.cast_column("image", datasets.Image())
        images = [Image.open(path).convert("RGB") for path in paths]
        if kind == "pillow":
            return images
        arrays = [np.array(image) for image in images]
        if kind == "pixels":
            return arrays
        import torch

        return [torch.from_numpy(array).permute(2, 0, 1) for array in arrays]

    run(source(), tokenizer, tmp_path / "t")
    assert SubobjectDataset(source(), tokens=tmp_path / "t")[3].token_maps is not None
    Image.fromarray(photo(3, seed=1)).save(paths[3])
    dataset = SubobjectDataset(source(), tokens=tmp_path / "t")
    refused(dataset, 3)
    assert dataset[2].token_maps is not None
    unchecked = SubobjectDataset(source(), tokens=tmp_path / "t", check_keys=False)
    assert unchecked[3].token_maps is not None


def test_the_same_image_in_another_file_or_as_pixels_is_the_same(tokenizer, paths, tmp_path):
    run([np.array(Image.open(path)) for path in paths], tokenizer, tmp_path / "t")
    assert SubobjectDataset(paths, tokens=tmp_path / "t")[2].token_maps is not None
    run(paths, tokenizer, tmp_path / "u")
    arrays = [np.array(Image.open(path)) for path in paths]
    with pytest.raises(SampleError, match="the dataset gives pixels where it gave files"):
        SubobjectDataset(arrays, tokens=tmp_path / "u")[2]


def test_rows_of_several_images_are_compared_together(tokenizer, paths, tmp_path):
    rows = [[str(paths[0]), str(paths[1])], [str(paths[2])]]
    run(rows, tokenizer, tmp_path / "t")
    assert len(SubobjectDataset(rows, tokens=tmp_path / "t")[0].token_maps) == 2
    refused(SubobjectDataset([rows[0][::-1], rows[1]], tokens=tmp_path / "t"), 0)


def test_tokenizing_a_grown_dataset_names_the_first_image_without_tokens(
    tokenizer, folder, paths, tmp_path
):
    run(folder, tokenizer, tmp_path / "t")
    with pytest.raises(ConfigError, match=r"tokens of 6 rows, the dataset has 5: a part of what"):
        run(paths[:5], tokenizer, tmp_path / "t")
    images = [np.array(Image.open(path)) for path in paths]
    run(images, tokenizer, tmp_path / "u")
    with pytest.raises(ConfigError, match=r"the first image without tokens is row 6\. "):
        run([*images, photo(9)], tokenizer, tmp_path / "u")
    with pytest.raises(
        ConfigError, match=r"it has grown since, or is another one, but all its images have"
    ):
        run([*images, images[0]], tokenizer, tmp_path / "u")  # which has tokens
    Image.fromarray(photo(9)).save(folder / "2b.png")
    with pytest.raises(ConfigError, match=r"has 7: it has grown .* is '.*2b\.png'\. Subobject"):
        run(folder, tokenizer, tmp_path / "t")


def test_a_replaced_sample_says_why(tokenizer, paths, tmp_path):
    run(paths, tokenizer, tmp_path / "t")
    Image.fromarray(photo(3, seed=1)).save(paths[3])
    options = {"executor": "inline", "batch_size": 3}
    dataset = SubobjectDataset(paths, tokens=tmp_path / "t", on_error="replace")
    with SubobjectLoader(dataset, tokenizer, **options) as loader:
        assert len(list(loader)) == 2
        (replaced,) = loader.stats().replaced
    assert replaced.index == 3
    assert "belong to another image" in replaced.reason


def test_another_dataset_ends_in_an_error_under_replace_too(tokenizer, paths, tmp_path):
    run(paths, tokenizer, tmp_path / "t")
    others = [photo(number, seed=1) for number in range(6)]
    dataset = SubobjectDataset(others, tokens=tmp_path / "t", on_error="replace")
    with pytest.raises(SampleError, match="samples tried in its place are bad too"):
        dataset[0]


@pytest.mark.parametrize("kind", ["folder", "paths"])
def test_tokenizing_again_notices_changed_images(tokenizer, folder, paths, tmp_path, kind):
    source = folder if kind == "folder" else paths
    out = tmp_path / "t"
    run(source, tokenizer, out)
    assert run(source, tokenizer, out).rows_done_before == 6
    Image.fromarray(photo(1, seed=1)).save(paths[1])
    with pytest.raises(ConfigError, match=r"1 images are not those .*row 1: stored .*redo_changed"):
        run(source, tokenizer, out)
    report = run(source, tokenizer, out, redo_changed=True)
    assert (report.rows_done_before, report.images) == (2, 4)
    assert SubobjectDataset(source, tokens=out)[1].token_maps is not None
    assert run(source, tokenizer, out).rows_done_before == 6


def test_a_mended_or_lost_file_is_noticed(tokenizer, folder, paths, tmp_path):
    good = paths[2].read_bytes()
    paths[2].write_bytes(good[:60])
    assert run(paths, tokenizer, tmp_path / "t").num_failed == 1
    paths[2].write_bytes(good)
    with pytest.raises(ConfigError, match="row 2: stored"):
        run(paths, tokenizer, tmp_path / "t")
    refused(SubobjectDataset(paths, tokens=tmp_path / "t"), 2)
    assert run(paths, tokenizer, tmp_path / "t", redo_changed=True).num_failed == 0
    paths[4].unlink()
    with pytest.raises(ConfigError, match="row 4: stored .* now unreadable"):
        run(paths, tokenizer, tmp_path / "t")


def test_the_same_files_with_other_times_are_the_same(tokenizer, folder, paths, tmp_path):
    run(folder, tokenizer, tmp_path / "t")
    for path in paths:
        path.write_bytes(path.read_bytes())
    assert run(folder, tokenizer, tmp_path / "t").rows_done_before == 6
