"""Stored tokens: what comes back, what is refused, what an interruption leaves."""

from __future__ import annotations

import json
import os
import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from subtok_data import PatchSegmenter, SubobjectTokenizer
from subtok_data.data import StoredTokens
from subtok_data.data.datasets.sample import decode_row
from subtok_data.data.store import writer as store_writer
from subtok_data.data.store.format import decode_record, encode_record
from subtok_data.data.store.writer import StoredRow, TokenWriter
from subtok_data.errors import ConfigError, SampleError, SubtokError

maps = st.sampled_from([np.int16, np.int32]).flatmap(
    lambda dtype: arrays(dtype, array_shapes(min_dims=2, max_dims=2, max_side=20))
)
fields = st.dictionaries(
    st.text(min_size=1, max_size=5),
    st.sampled_from([np.int64, np.float32, np.uint8]).flatmap(
        lambda dtype: arrays(dtype, array_shapes(min_dims=1, max_dims=2, max_side=5))
    ),
    max_size=3,
)


@given(maps, fields)
def test_records_round_trip(token_map, token_fields):
    found, found_fields = decode_record(encode_record(token_map, token_fields))
    assert found.dtype == token_map.dtype
    np.testing.assert_array_equal(found, token_map)
    assert list(found_fields) == list(token_fields)
    for name, values in token_fields.items():
        assert found_fields[name].dtype == values.dtype
        np.testing.assert_array_equal(found_fields[name], values)
    found[...] = 0  # writable, as torch asks


@given(st.data())
def test_a_damaged_record_is_never_read_as_another_map(data):
    token_map = np.repeat(np.arange(12, dtype=np.int16), 32).reshape(24, 16)
    record = bytearray(encode_record(token_map, {"class": np.arange(12)}))
    place = data.draw(st.integers(0, len(record) - 1))
    record[place] ^= data.draw(st.integers(1, 255))
    try:
        found, found_fields = decode_record(bytes(record))
    except SubtokError:
        return
    np.testing.assert_array_equal(found, token_map)
    np.testing.assert_array_equal(found_fields["class"], np.arange(12))


@pytest.mark.parametrize("record", [b"", b"nothing", zlib.compress(b"[1]\n"), zlib.compress(b"{}")])
def test_what_is_no_record_is_refused(record):
    with pytest.raises(SubtokError, match="damaged"):
        decode_record(record)


def test_a_cut_record_is_refused():
    record = encode_record(np.arange(400, dtype=np.int32).reshape(20, 20))
    for length in range(len(record)):
        with pytest.raises(SubtokError, match="damaged"):
            decode_record(record[:length])


# --- folders -----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(store_writer, "SHARD_ROWS", 4)


@pytest.fixture
def tokenizer():
    return SubobjectTokenizer(PatchSegmenter(16), size=32)


def writer_for(folder, tokenizer, num_rows=6):
    return TokenWriter(
        folder,
        config=tokenizer.config(),
        config_hash=tokenizer.config_hash,
        num_rows=num_rows,
    )


def rows_of(indices):
    token_map = np.repeat([[0, 1], [2, 3]], 16, axis=0).repeat(16, axis=1).astype(np.int16)
    return [StoredRow(index, f"{index}.png", [token_map]) for index in indices]


def test_shards_appear_one_by_one_and_the_index_last(tmp_path, tokenizer):
    writer = writer_for(tmp_path, tokenizer)
    assert list(writer.missing()) == [range(4), range(4, 6)]
    writer.write(rows_of(range(4, 6)))
    assert list(writer.missing()) == [range(4)]
    with pytest.raises(ValueError, match=r"rows 0–3 are not written"):
        writer.finish()
    with pytest.raises(ConfigError, match="no finished tokens"):
        StoredTokens(tmp_path)
    writer.write(rows_of(range(4)))
    assert writer.finish() == []
    tokens = StoredTokens(tmp_path)
    assert len(tokens) == 6
    assert tokens.lengths().tolist() == [4] * 6
    assert tokens.config == tokenizer.config()


@pytest.mark.parametrize("indices", [range(3), range(1, 5), [1, 0, 2, 3], range(4, 8)])
def test_only_whole_shards_in_order_are_written(tmp_path, tokenizer, indices):
    writer = writer_for(tmp_path, tokenizer)
    with pytest.raises(ValueError, match="a shard holds"):
        writer.write(rows_of(indices))


def test_a_write_that_fails_leaves_no_shard(tmp_path, tokenizer, monkeypatch):
    writer = writer_for(tmp_path, tokenizer)

    def fail(self, target):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="no space"):
            writer.write(rows_of(range(4)))
    assert list(writer.missing()) == [range(4), range(4, 6)]
    assert not list(tmp_path.glob("*.arrow"))
    writer.write(rows_of(range(4)))
    assert list(writer.missing()) == [range(4, 6)]


@pytest.mark.parametrize(
    ("other", "name"),
    [({"size": 64}, "size 32, asked for size 64"), ({}, "num_rows 6, asked for num_rows 7")],
)
def test_another_configuration_or_length_is_refused(tmp_path, tokenizer, other, name):
    writer_for(tmp_path, tokenizer)
    options = {"size": 32, **other}
    with pytest.raises(ConfigError, match=name):
        writer_for(tmp_path, SubobjectTokenizer(PatchSegmenter(16), **options), num_rows=7)


def test_another_format_version_is_refused(tmp_path, tokenizer):
    writer = writer_for(tmp_path, tokenizer, num_rows=2)
    writer.write(rows_of(range(2)))
    writer.finish()
    meta = json.loads((tmp_path / "tokens.json").read_text())
    (tmp_path / "tokens.json").write_text(json.dumps({**meta, "store_version": 99}))
    with pytest.raises(ConfigError, match="version 99"):
        StoredTokens(tmp_path)
    with pytest.raises(ConfigError, match="store_version"):
        writer_for(tmp_path, tokenizer, num_rows=2)


def test_tokens_are_attached_by_index_also_after_pickling(tmp_path, tokenizer):
    writer = writer_for(tmp_path, tokenizer)
    writer.write(rows_of(range(4)))
    writer.write([*rows_of([4]), StoredRow(5, "5.png", error="the file is empty")])
    assert writer.finish() == [(5, "5.png", "the file is empty")]
    tokens = StoredTokens(tmp_path)
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
    writer.write(rows_of(range(1)))
    writer.finish()
    image = np.zeros((32, 32, 3), np.uint8)
    sample = decode_row([image, image], image_column="image", index=0)
    with pytest.raises(SampleError, match="1 stored maps for 2 images"):
        sample.attach(StoredTokens(tmp_path))


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
