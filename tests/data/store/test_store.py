"""Stores of tokens: what comes back, what is refused, what an interruption leaves."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from subtok_data import PatchSegmenter, SubobjectTokenizer
from subtok_data.data import StoredTokens
from subtok_data.data.datasets.sample import decode_row
from subtok_data.data.store import (
    LocalStorage,
    ShardWriter,
    StoredRow,
    StoreMeta,
    TokenWriter,
    shard_name,
)
from subtok_data.errors import ConfigError, SampleError, StoreError


@pytest.fixture
def tokenizer():
    return SubobjectTokenizer(PatchSegmenter(16), size=32)


def writer_for(folder, tokenizer, num_rows=6, **options):
    meta = {
        "config": tokenizer.config(),
        "config_hash": tokenizer.config_hash,
        "rows": num_rows,
        "shard_rows": 4,
        "device": "cpu",
        "dtype": "float32",
        **options,
    }
    return TokenWriter(folder, StoreMeta(**meta))


def rows_of(indices):
    token_map = np.repeat([[0, 1], [2, 3]], 16, axis=0).repeat(16, axis=1).astype(np.int16)
    return [StoredRow.of(index, [token_map], path=f"{index}.png") for index in indices]


def write_all(writer):
    for number in range(writer.meta.num_shards):
        writer.write(number, rows_of(writer.meta.shard_range(number)))
    writer.finish()


def test_shards_appear_one_by_one_and_the_index_last(tmp_path, tokenizer):
    writer = writer_for(tmp_path, tokenizer)
    assert writer.missing() == [0, 1]
    writer.write(1, rows_of(range(4, 6)))
    assert writer.missing() == [0]
    with pytest.raises(ConfigError, match=r"1 of 2 shards are missing .* 0 \(rows 0 to 3\)"):
        writer.finish()
    with pytest.raises(ConfigError, match="no finished tokens"):
        StoredTokens(tmp_path)
    writer.write(0, rows_of(range(4)))
    writer.finish()
    tokens = StoredTokens(tmp_path)
    assert len(tokens) == 6
    assert tokens.lengths().tolist() == [4] * 6
    assert tokens.config == tokenizer.config()
    assert [row.index for row in tokens.rows(1, 6)] == [1, 2, 3, 4, 5]
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert {name for name in files if (tmp_path / name).is_file()} == {
        "subtok.json",
        "provenance.jsonl",
        "keys.bin",
        "lengths.u2",
        "index/index.json",
        "index/part=000.parquet",
        "data/part=000/tokens-000000.parquet",
        "data/part=000/tokens-000001.parquet",
    }
    lines = (tmp_path / "provenance.jsonl").read_text().splitlines()
    assert [json.loads(line)["shard"] for line in lines] == [0, 1]
    assert json.loads(lines[0]).keys() >= {"versions", "device", "dtype", "seconds", "failed"}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [1100, pytest.param(100_000, marks=pytest.mark.slow)])
def test_many_shards_need_few_files_at_a_time(tmp_path, tokenizer, monkeypatch, count):
    """In folders of fewer than a thousand, open and mapped by the dozen."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    most = 0
    read = LocalStorage.read

    def counted(self, *args):
        nonlocal most
        found = read(self, *args)
        if random.random() < 0.02:
            maps = Path("/proc/self/maps").read_text().count(str(tmp_path))
            most = max(most, maps + len(os.listdir("/proc/self/fd")))
        return found

    random = np.random.default_rng(0)
    before = len(os.listdir("/proc/self/fd"))
    writer = writer_for(tmp_path, tokenizer, num_rows=count, shard_rows=1)
    token_map = np.zeros((2, 2), np.int16)
    for number in range(count):
        with (
            writer.storage.create(shard_name(number)) as file,
            ShardWriter(file, writer.meta.shard_info(number, 1)) as shard,
        ):
            shard.add(StoredRow.of(number, [token_map]))
            shard.close()
    monkeypatch.setattr(LocalStorage, "read", counted)
    writer.finish()
    for folder, _, names in os.walk(tmp_path):
        assert len(names) < 1000, folder
    assert len(list((tmp_path / "index").glob("*.parquet"))) == -(-count // 512)
    tokens = StoredTokens(tmp_path)
    assert (tokens.lengths() == 1).all()
    assert len(tokens.places()) == count
    for index in random.integers(0, count, 2000).tolist():
        assert tokens.row(index).index == index
    start = max(0, count - 3000)
    assert [row.index for row in tokens.rows(start)] == list(range(start, count))
    assert before < most < before + 140  # 64 of each storage


def test_a_write_that_fails_leaves_no_shard(tmp_path, tokenizer, monkeypatch):
    writer = writer_for(tmp_path, tokenizer)

    def fail(self, target):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="no space"):
            writer.write(0, rows_of(range(4)))
    assert writer.missing() == [0, 1]
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"subtok.json"}
    writer.write(0, rows_of(range(4)))
    assert writer.missing() == [1]


@pytest.mark.parametrize(
    ("other", "options", "name"),
    [
        ({"size": 64}, {}, "size 32, asked for size 64"),
        ({}, {"num_rows": 7}, "rows 6, asked for rows 7"),
        ({}, {"shard_rows": 3}, "shard_rows 4, asked for shard_rows 3"),
        ({}, {"dtype": "bfloat16"}, "made on cpu in float32, asked for cpu in bfloat16"),
        ({}, {"device": "cuda"}, "made on cpu in float32, asked for cuda"),
    ],
)
def test_another_configuration_length_or_device_is_refused(
    tmp_path, tokenizer, other, options, name
):
    writer_for(tmp_path, tokenizer)
    tokenizer = SubobjectTokenizer(PatchSegmenter(16), **{"size": 32, **other})
    with pytest.raises(ConfigError, match=name):
        writer_for(tmp_path, tokenizer, **options)


def test_devices_are_mixed_only_on_request(tmp_path, tokenizer):
    writer = writer_for(tmp_path, tokenizer)
    writer.write(0, rows_of(range(4)))
    other = writer_for(tmp_path, tokenizer, device="cuda", dtype="float16", mixed=True)
    other.write(1, rows_of(range(4, 6)))
    other.finish()
    assert StoredTokens(tmp_path).read(5)[0][0].shape == (32, 32)
    lines = (tmp_path / "provenance.jsonl").read_text().splitlines()
    assert [json.loads(line)["device"] for line in lines] == ["cpu", "cuda"]


def test_a_shard_of_another_device_is_refused(tmp_path, tokenizer):
    """Two machines may begin a store at the same moment: what their shards say counts."""
    writer = writer_for(tmp_path / "a", tokenizer)
    writer.write(0, rows_of(range(4)))
    other = writer_for(tmp_path / "b", tokenizer, device="cuda")
    other.write(1, rows_of(range(4, 6)))
    name = "data/part=000/tokens-000001.parquet"
    (tmp_path / "b" / name).rename(tmp_path / "a" / name)
    for step in (writer.missing, writer.finish):
        with pytest.raises(StoreError, match="000001.parquet has device 'cuda', the store 'cpu'"):
            step()


def test_another_format_version_is_refused(tmp_path, tokenizer):
    writer = writer_for(tmp_path, tokenizer, num_rows=2)
    write_all(writer)
    from subtok_data.data.store.layout import read_json, write_json

    meta = read_json(writer.storage, "subtok.json")
    write_json(writer.storage, "subtok.json", {**meta, "format": 99})
    with pytest.raises(ConfigError, match="version 99"):
        StoredTokens(tmp_path)
    with pytest.raises(ConfigError, match="version 99"):
        writer_for(tmp_path, tokenizer, num_rows=2)


def test_format_1_says_what_to_do(tmp_path, tokenizer):
    (tmp_path / "tokens.json").write_text('{"store_version": 1}')
    (tmp_path / "tokens-00000.arrow").write_bytes(b"")
    for step in (lambda: StoredTokens(tmp_path), lambda: writer_for(tmp_path, tokenizer)):
        with pytest.raises(ConfigError, match="format 1, .* make them again, with `subtok tok"):
            step()
    assert not (tmp_path / "subtok.json").exists()


def read_around(folder):
    """Lengths of a store, or the error that its damage is."""
    try:
        tokens = StoredTokens(folder)
        list(tokens.failures())
        tokens.places()
        return tokens.lengths().tolist()
    except (StoreError, ConfigError) as error:
        return error


@pytest.mark.parametrize(
    "name", ["subtok.json", "index/index.json", "lengths.u2", "index/part=000.parquet"]
)
def test_damage_outside_the_shards_is_a_named_error(tmp_path, tokenizer, name):
    writer = writer_for(tmp_path, tokenizer)
    write_all(writer)
    content = (tmp_path / name).read_bytes()
    random = np.random.default_rng(0)
    versions = [bytes(content[: random.integers(len(content))]) for _ in range(10)]
    for place in random.integers(0, len(content), 60).tolist():
        damaged = bytearray(content)
        damaged[place] ^= int(random.integers(1, 256))
        versions.append(bytes(damaged))
    for damaged in versions:
        (tmp_path / name).write_bytes(damaged)
        found = read_around(tmp_path)
        if isinstance(found, Exception):
            assert Path(name).name in str(found)
        else:  # white space between the values of a JSON file
            assert name.endswith(".json")
            assert found == [4] * 6
    (tmp_path / name).unlink()
    assert isinstance(read_around(tmp_path), (StoreError, ConfigError))


def test_reading_imports_neither_pandas_nor_torch(tmp_path, tokenizer):
    write_all(writer_for(tmp_path, tokenizer))
    code = (
        "import sys\nfrom subtok_data.data.store import StoredTokens\n"
        f"tokens = StoredTokens({str(tmp_path)!r})\n"
        "tokens.read(0), tokens.lengths(), tokens.places(), list(tokens.rows())\n"
        "assert not {'pandas', 'torch', 'PIL', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_tokens_are_attached_by_index_also_after_pickling(tmp_path, tokenizer):
    writer = writer_for(tmp_path, tokenizer)
    writer.write(0, rows_of(range(4)))
    failed = StoredRow.failed(5, "the file is empty", path="5.png")
    writer.write(1, [*rows_of([4]), failed])
    writer.finish()
    tokens = StoredTokens(tmp_path)
    assert list(tokens.failures()) == [(5, "5.png", "the file is empty")]
    image = np.zeros((50, 50, 3), np.uint8)
    for reader in (tokens, pickle.loads(pickle.dumps(tokens))):
        sample = decode_row(image, image_column="image", index=4)
        sample.attach(reader)
        assert sample.image.shape == (32, 32, 3)
        assert int(sample.token_maps[0].max()) == 3
        assert sample.tokens_hash == tokenizer.config_hash
    with pytest.raises(SampleError, match="the file is empty"):
        decode_row(image, image_column="image", index=5).attach(tokens)
    assert tokens.lengths().tolist() == [4, 4, 4, 4, 4, 0]
    with pytest.raises(ConfigError, match="7 rows"):
        tokens.check_length(7)


def test_a_row_with_another_number_of_images_is_refused(tmp_path, tokenizer):
    writer = writer_for(tmp_path, tokenizer, num_rows=1)
    write_all(writer)
    image = np.zeros((32, 32, 3), np.uint8)
    sample = decode_row([image, image], image_column="image", index=0)
    with pytest.raises(SampleError, match="1 stored maps for 2 images"):
        sample.attach(StoredTokens(tmp_path))


def test_lengths_beyond_16_bits_are_cut_there(tmp_path, tokenizer):
    writer = writer_for(tmp_path, tokenizer, num_rows=1)
    token_map = np.arange(70_000, dtype=np.int32).reshape(700, 100)
    writer.write(0, [StoredRow.of(0, [token_map])])
    writer.finish()
    assert StoredTokens(tmp_path).lengths().tolist() == [65_535]


def test_file_names_that_are_no_utf8(tmp_path, capsys):
    """Bytes of names that are no text, as old archives have them, in store, messages and JSON."""
    from PIL import Image

    from subtok_data import PatchSegmenter, SubobjectLoader, SubobjectTokenizer
    from subtok_data.cli import main

    folder = tmp_path / "photos"
    folder.mkdir()
    try:
        (folder / os.fsdecode(b"bad\xe9.png")).write_bytes(b"no image")
    except OSError:
        pytest.skip("this file system takes no such names")
    with (folder / os.fsdecode(b"good\xe9.png")).open("wb") as file:
        Image.new("RGB", (40, 30)).save(file, "PNG")
    out = str(tmp_path / "tokens")
    command = ["tokenize", str(folder), "--out", out, "--segmenter", "patch", "--size", "64"]
    assert main([*command, "--json"]) == 1
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["images"] == 1
    assert "udce9.png" in printed.out
    assert main(command) == 1  # nothing to do; the failure again, for people
    assert "bad\\udce9.png" in capsys.readouterr().err
    tokenizer = SubobjectTokenizer(PatchSegmenter(), size=64)
    options = {"executor": "inline", "on_error": "replace", "batch_size": 2}
    with SubobjectLoader(folder, tokenizer, **options) as loader:
        (batch,) = loader
        (replaced,) = loader.stats().replaced
    assert batch["path"] == [os.fsdecode(b"good\xe9.png")] * 2
    assert "bad\\udce9.png" in replaced.reason
