"""Images by where they are: folders, files, patterns, tar, Parquet, datasets, local and remote."""

from __future__ import annotations

import io
import tarfile

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from subtok_data import ImageFiles, PatchSegmenter, SubobjectDataset, SubobjectTokenizer
from subtok_data.data import StoredTokens, open_images, tokenize_dataset
from subtok_data.data.datasets import ParquetImages, StoredImages, TarImages
from subtok_data.errors import ConfigError


def png(number):
    file = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), number, np.uint8)).save(file, "PNG")
    return file.getvalue()


def tar_of(numbers, mode="w"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for number in numbers:
            for suffix, content in (("json", b"{}"), ("png", png(number)), ("seg.png", b"mask")):
                member = tarfile.TarInfo(f"set/{number:03d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def parquet_of(numbers, column="image", *, struct=True):
    values = [{"bytes": png(n), "path": f"{n}.png"} if struct else png(n) for n in numbers]
    file = io.BytesIO()
    table = pa.table({column: values, "label": list(numbers)})
    pq.write_table(table, file, row_group_size=2)
    return file.getvalue()


def shades(dataset):
    samples = SubobjectDataset(dataset)
    return [int(samples[index].image[0, 0, 0]) for index in range(len(samples))]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for number in (3, 1, 2):
        file = folder / ("sub" if number == 2 else "") / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(number))
    return folder


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    for number, rows in enumerate(([0, 1, 2], [3], [4, 5])):
        (folder / f"{number}.tar").write_bytes(tar_of(rows))
        (folder / f"{number}.parquet").write_bytes(parquet_of(rows))
    return folder


@pytest.fixture(autouse=True)
def _memory(tmp_path, monkeypatch):
    monkeypatch.setenv("SUBTOK_CACHE", str(tmp_path / "cache"))
    yield
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def test_folders_files_and_patterns_of_images(photos):
    assert isinstance(open_images(photos), ImageFiles)
    assert shades(open_images(str(photos))) == [1, 3, 2]
    several = open_images([photos / "3.png", photos / "sub" / "2.png"])
    assert shades(several) == [3, 2]
    assert [row["path"] for row in several] == ["3.png", "sub/2.png"]
    assert shades(open_images(str(photos / "*.png"))) == [1, 3]
    assert shades(open_images(str(photos / "**" / "*.png"))) == [1, 3, 2]


@pytest.mark.parametrize("kind", [TarImages, ParquetImages])
def test_shards_are_read_in_order_and_by_index(shards, kind):
    suffix = "tar" if kind is TarImages else "parquet"
    for source in (str(shards / f"*.{suffix}"), sorted(shards.glob(f"*.{suffix}"))):
        dataset = open_images(source)
        assert isinstance(dataset, kind)
        assert dataset.shard_lengths == [3, 1, 2]
        assert shades(dataset) == list(range(6))
        assert [shades([dataset[index]])[0] for index in (5, 0, 3, 2)] == [5, 0, 3, 2]
    assert dataset[1]["image"]["bytes"] == png(1)
    for path in shards.glob("*.tar" if kind is ParquetImages else "*.parquet"):
        path.unlink()
    assert shades(open_images(shards)) == list(range(6))  # a folder of shards


@pytest.mark.parametrize("name", ["photos", "shards/*.tar", "shards/*.parquet", "photos/*.png"])
def test_the_same_is_read_from_another_file_system(photos, shards, name):
    memory = fsspec.filesystem("memory")
    for path in [*photos.rglob("*.png"), *shards.iterdir()]:
        relative = path.relative_to(photos.parent).as_posix()
        memory.pipe_file(f"/place/{relative}", path.read_bytes())
    remote = open_images(f"memory://place/{name}")
    local = open_images(str(photos.parent / name))
    assert shades(remote) == shades(local)
    if name.startswith("photos"):
        assert isinstance(remote, StoredImages)
        assert remote[0]["image"]["path"] == "memory://place/photos/1.png"


def test_stored_tokens_keep_the_shards_of_the_dataset(shards, tmp_path):
    tokenizer = SubobjectTokenizer(PatchSegmenter(16), size=32)
    out = tmp_path / "tokens"
    report = tokenize_dataset(str(shards / "*.tar"), tokenizer, out, executor="inline")
    assert (report.images, report.finished) == (6, True)
    files = sorted((out / "data/part=000").iterdir())
    assert [pq.read_table(file).num_rows for file in files] == [3, 1, 2]
    tokens = StoredTokens(out)
    assert [row.index for row in tokens.rows()] == list(range(6))
    assert [tokens.meta.find(row) for row in range(6)] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (1, 0),
        (2, 0),
        (2, 1),
    ]
    again = tokenize_dataset(str(shards / "*.tar"), tokenizer, out, executor="inline")
    assert again.rows_done_before == 6
    # The same images from Parquet have the same keys.
    stored = SubobjectDataset(open_images(str(shards / "*.parquet")), tokens=out)
    assert stored[4].token_maps[0].shape == (32, 32)
    fewer = str(shards / "[01].tar")
    with pytest.raises(ConfigError, match="of 6 rows, the dataset has 4: a part of what"):
        tokenize_dataset(fewer, tokenizer, out, executor="inline")


def test_datasets_on_disk_and_of_the_hub(tmp_path, monkeypatch):
    rows = datasets.Dataset.from_dict({"image": [{"bytes": png(n), "path": None} for n in (7, 8)]})
    rows.save_to_disk(str(tmp_path / "one"))
    assert shades(open_images(tmp_path / "one")) == [7, 8]
    both = datasets.DatasetDict(train=rows, test=rows.select([1]))
    both.save_to_disk(str(tmp_path / "two"))
    assert shades(open_images(tmp_path / "two", split="test")) == [8]
    with pytest.raises(ConfigError, match=r"splits \['test', 'train'\], none was given"):
        open_images(tmp_path / "two")
    asked = []

    def load(name):
        asked.append(name)
        return both if name == "me/two" else datasets.DatasetDict(train=rows)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert shades(open_images("hf://datasets/me/one")) == [7, 8]
    assert shades(open_images("me/two", split="test")) == [8]
    with pytest.raises(ConfigError, match="'all' is none of them"):
        open_images("me/two", split="all")
    assert asked == ["me/one", "me/two", "me/two"]

    def absent(name):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", absent)
    with pytest.raises(ConfigError, match="no folder or file 'my/photos', and the .* hub cannot"):
        open_images("my/photos")


def test_what_cannot_be_read_is_refused_with_the_remedy(photos, shards, tmp_path):
    (tmp_path / "packed.tar").write_bytes(tar_of([1], "w:gz"))
    (tmp_path / "empty.tar").write_bytes(tar_of([]))
    (tmp_path / "none.parquet").write_bytes(b"nothing")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "hollow").mkdir()
    for source, words in [
        ("https://example.org/photos.tar", "web address: download it"),
        (["http://example.org/a.png"], "web address: download it"),
        ([], "name a folder, files, or a dataset"),
        (str(photos / "*.gif"), "no file fits the pattern"),
        (str(photos / "absent.png"), "no folder or file"),
        ([photos / "1.png", photos / "absent.png"], "no folder or file"),
        (tmp_path / "hollow", "no image below"),
        (tmp_path / "notes.txt", "known suffixes|neither an image"),
        (tmp_path / "packed.tar", "no plain tar file.*unpack it"),
        (tmp_path / "empty.tar", "has no rows with images: leave it out"),
        (tmp_path / "none.parquet", "no Parquet file"),
        ([photos / "1.png", shards / "0.tar"], r"several kinds \(.tar, image\)"),
        ("memory://place/absent", "no image, tar or Parquet file at"),
        ("nonsense://place", "nonsense"),
    ]:
        with pytest.raises(ConfigError, match=words):
            open_images(source)
    (tmp_path / "p.parquet").write_bytes(parquet_of([1], "picture"))
    with pytest.raises(ConfigError, match=r"no image column 'image'.*\['label', 'picture'\]"):
        open_images(tmp_path / "p.parquet")
    other = open_images(tmp_path / "p.parquet", image_column="picture")
    assert SubobjectDataset(other, image_column="picture")[0].image[0, 0, 0] == 1
    with pytest.raises(ConfigError, match="only datasets have splits"):
        open_images(photos, split="train")
    (tmp_path / "b.parquet").write_bytes(parquet_of([6, 9], struct=False))
    assert shades(open_images(tmp_path / "b.parquet")) == [6, 9]


def test_a_run_that_read_nothing_leaves_no_folder(tmp_path):
    tokenizer = SubobjectTokenizer(PatchSegmenter(16), size=32)
    rows = [{"picture": png(1)}]
    with pytest.raises(ConfigError, match="no image column"):
        tokenize_dataset(rows, tokenizer, tmp_path / "tokens", executor="inline")
    assert not (tmp_path / "tokens").exists()
    (tmp_path / "own").mkdir()
    with pytest.raises(ConfigError, match="no image column"):
        tokenize_dataset(rows, tokenizer, tmp_path / "own", executor="inline")
    assert list((tmp_path / "own").iterdir()) == []
