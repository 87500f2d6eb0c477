"""A large JPEG file has the same tokens on every way to a batch, and the same as its parts say."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch.utils.data import DataLoader

from subtok_data import (
    PixelConfig,
    PromptColumns,
    SubobjectCollator,
    SubobjectDataset,
    SubobjectIterableDataset,
    SubobjectLoader,
    SubobjectTokenizer,
    SuperpixelSegmenter,
)
from subtok_data.data import RegionColumns, RegionDataset, tokenize_dataset
from subtok_data.errors import SampleError
from subtok_data.images import to_rgb

SIZE = (1101, 1401)
SIDEWAYS = 6


def content_of(image: np.ndarray, orientation: int = 1) -> bytes:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    large = Image.fromarray(image).resize(SIZE[::-1], Image.Resampling.BICUBIC)
    large.save(buffer, "JPEG", quality=90, exif=exif)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    (folder / "0.jpg").write_bytes(content_of(data.astronaut()))
    (folder / "1.jpg").write_bytes(content_of(data.chelsea(), SIDEWAYS))
    return folder


@pytest.fixture(scope="module")
def paths(folder):
    return [str(path) for path in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def tokenizer():
    return SubobjectTokenizer(SuperpixelSegmenter(n_segments=20), size=128)


@pytest.fixture(scope="module")
def expected(tokenizer, paths):
    tokens = tokenizer(paths)
    whole = tokenizer([to_rgb(path) for path in paths])
    assert any((one.image != other.image).any() for one, other in zip(tokens, whole, strict=True))
    return tokens


@pytest.fixture
def broken(paths):
    with open(paths[0], "rb") as file:
        whole = file.read()
    return [paths[0], whole[: len(whole) // 2], paths[1]]


def same(batches, expected):
    found = [
        (batch["visual_token_map"][place], batch["source_sizes"][place].tolist(), size)
        for batch in batches
        for place, size in enumerate(batch["map_sizes"].tolist())
    ]
    assert len(found) == len(expected)
    for (token_map, source_size, (height, width)), tokens in zip(found, expected, strict=True):
        assert (token_map[:height, :width].numpy() == tokens.token_map).all()
        assert source_size == list(tokens.source_size)
    return [batch["pixel_values"] for batch in batches]


def rows(paths):
    return [{"image": path} for path in paths]


def test_sizes_are_those_of_the_source(expected):
    assert [tokens.source_size for tokens in expected] == [SIZE, SIZE[::-1]]


def test_bytes_and_paths(tokenizer, paths, expected):
    for path, tokens in zip(paths, expected, strict=True):
        with open(path, "rb") as file:
            found = tokenizer(file.read())
        assert (found.image == tokens.image).all()
        assert (found.token_map == tokens.token_map).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_collators_and_loaders(tokenizer, paths, expected, workers):
    collator = SubobjectCollator(tokenizer)
    same([collator(rows(paths))], expected)
    for dataset in (SubobjectDataset(paths), SubobjectIterableDataset(paths)):
        batches = list(DataLoader(dataset, collate_fn=collator, num_workers=workers))
        same(batches, expected)
        with SubobjectLoader(
            dataset, tokenizer, num_workers=workers, executor="inline", batch_size=2 - workers // 2
        ) as loader:
            same(list(loader), expected)


def test_stored_tokens_and_their_pixels(tokenizer, paths, expected, tmp_path):
    tokenize_dataset(paths, tokenizer, tmp_path, executor="inline")
    live = same([SubobjectCollator(tokenizer)(rows(paths))], expected)
    stored = SubobjectDataset(paths, tokens=tmp_path)
    found = same([SubobjectCollator(tokenizer)([stored[0], stored[1]])], expected)
    assert torch.equal(live[0], found[0])


def test_stored_tokens_of_full_decoding(paths, tmp_path):
    tokenizer = SubobjectTokenizer(SuperpixelSegmenter(n_segments=20), size=128, full_decode=True)
    whole = tokenizer([to_rgb(path) for path in paths])
    tokenize_dataset(paths, tokenizer, tmp_path, executor="inline")
    live = same([SubobjectCollator(tokenizer)(rows(paths))], whole)
    stored = SubobjectDataset(paths, tokens=tmp_path)
    found = same([SubobjectCollator(tokenizer)([stored[0], stored[1]])], whole)
    assert torch.equal(live[0], found[0])


def test_tokens_in_a_column(tokenizer, paths, expected, broken):
    column = tokenizer.as_column()({"image": [*paths, broken[1]]})["subtok"]
    assert "truncated" in column[2]["error"]
    live = same([SubobjectCollator(tokenizer)(rows(paths))], expected)
    rows_with_tokens = [{"image": paths[place], "subtok": column[place]} for place in (0, 1)]
    stored = SubobjectDataset(rows_with_tokens, tokens_column="subtok")
    found = same([SubobjectCollator(tokenizer)([stored[0], stored[1]])], expected)
    assert torch.equal(live[0], found[0])


def test_tokens_of_decoded_images_are_found_for_their_files(tokenizer, paths, tmp_path):
    decoded = [to_rgb(path) for path in paths]
    tokenize_dataset(decoded, tokenizer, tmp_path, executor="inline")
    stored = SubobjectDataset(paths, tokens=tmp_path)
    same([SubobjectCollator(tokenizer)([stored[0], stored[1]])], tokenizer(decoded))


def test_the_cache_of_a_loader(tokenizer, paths, expected, tmp_path):
    for _ in range(2):
        with SubobjectLoader(
            paths, tokenizer, cache=tmp_path, executor="inline", batch_size=2
        ) as loader:
            same(list(loader), expected)
            stats = loader.stats()
    assert stats.images == 2


@pytest.mark.parametrize("size", [64, 512, (300, 300)])
def test_pixel_values_never_change_the_tokens(tokenizer, paths, expected, size):
    pixels = PixelConfig(size=size, dtype="uint8")
    (values,) = same([SubobjectCollator(tokenizer, pixels=pixels)(rows(paths))], expected)
    arrays = [{"image": to_rgb(path)} for path in paths]
    whole = SubobjectCollator(tokenizer, pixels=pixels)(arrays)["pixel_values"]
    assert values.shape == whole.shape
    assert (values.int() - whole.int()).abs().float().mean() < 1


def test_prompts_and_regions_are_in_pixels_of_the_source(paths, tokenizer):
    box = [100, 200, 900, 1000]
    one = SubobjectDataset([{"image": paths[1], "b": [box]}], prompts=PromptColumns(boxes="b"))[0]
    assert one.prompts[0].size == SIZE[::-1]
    assert one.prompts[0].boxes.tolist() == [box]
    regions = RegionDataset(
        [{"image": paths[1], "regions": [{"bbox": box, "name": "a cat"}]}],
        columns=RegionColumns("regions", box_format="xyxy"),
        train=False,
    )
    raw = SubobjectCollator(tokenizer).worker.collate([regions[0]])
    assert raw.samples[0].source_sizes == [SIZE[::-1]]
    height, width = raw.images.shapes[0][:2]
    scale = [width / SIZE[0], height / SIZE[1]] * 2
    assert raw.samples[0].prompts[0].boxes[0] == pytest.approx(np.multiply(box, scale), abs=1e-3)


def test_a_transform_sees_the_whole_image(paths):
    sizes = []

    def transform(image):
        sizes.append(tuple(image.shape[1:]))
        return image[:, ::4, ::4]

    sample = SubobjectDataset(paths, transform=transform)[1]
    assert sizes == [SIZE[::-1]]
    assert (sample.image == to_rgb(paths[1])[::4, ::4]).all()


def test_broken_pixels_raise_with_their_index(tokenizer, broken):
    for dataset in (SubobjectDataset(broken), SubobjectIterableDataset(broken)):
        loader = SubobjectLoader(dataset, tokenizer, executor="inline")
        with loader, pytest.raises(SampleError, match=r"sample 1.*truncated"):
            list(loader)
    with pytest.raises(SampleError, match=r"sample 1.*truncated"):
        SubobjectDataset(broken)[1].image  # noqa: B018
    with pytest.raises(SampleError, match="truncated"):
        SubobjectCollator(tokenizer)(rows(broken))


def test_broken_pixels_are_replaced_by_the_dataset(tokenizer, broken, tmp_path):
    for wrap in (SubobjectDataset, SubobjectIterableDataset):
        dataset = wrap(broken, on_error="replace")
        with SubobjectLoader(dataset, tokenizer, executor="inline") as loader:
            indices = [batch["sample_index"].item() for batch in loader]
            assert len(indices) == 3
            assert 1 not in indices
            assert [one.index for one in loader.stats().replaced] == [1]
    collator = SubobjectCollator(tokenizer, on_error="replace")
    assert len(collator(rows(broken))["num_visual_tokens"]) == 3
    assert len(collator.replaced) == 1
    report = tokenize_dataset(broken, tokenizer, tmp_path, executor="inline")
    assert [row.index for row in report.failed] == [1]


def test_the_hash_tells_full_decoding_apart(tokenizer, tmp_path):
    options = {"segmenter": tokenizer.segmenter, "size": 128}
    full = SubobjectTokenizer(**options, full_decode=True)
    assert full.config_hash != SubobjectTokenizer(**options).config_hash
    full.save_pretrained(tmp_path)
    assert SubobjectTokenizer.from_pretrained(tmp_path).config_hash == full.config_hash
