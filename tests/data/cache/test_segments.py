"""Segments and their index: what several writers have put is found, whatever happens to files."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from subtok_data import PatchSegmenter, SubobjectTokenizer
from subtok_data.data.cache import (
    SegmentIndex,
    SegmentWriter,
    TokenCache,
    clear_cache,
    compact_cache,
    describe_cache,
)
from subtok_data.data.store import LocalStorage, ShardInfo
from subtok_data.errors import ConfigError
from subtok_data.segment import Segmented, segment_image

INFO = ShardInfo(0, 0, 0, "a1b2", "cpu", "float32", 1)
KEYS = st.binary(min_size=16, max_size=16) | st.sampled_from(
    # Equal first halves, equal second halves, the smallest and the largest.
    [bytes(16), b"\xff" * 16, bytes(15) + b"\1", b"\1" + bytes(15), b"\xff" * 8 + bytes(8)]
)


def token_map_of(key: bytes) -> np.ndarray:
    """A map that only this key has."""
    return np.frombuffer(key, np.uint8).astype(np.int16).reshape(4, 4)


@pytest.fixture
def tokenizer() -> SubobjectTokenizer:
    return SubobjectTokenizer(PatchSegmenter(2), size=None)


def segmented(tokenizer: SubobjectTokenizer, size=(4, 4)) -> list[Segmented]:
    return [segment_image(tokenizer.segment_task(), {}, size)]


def filled(folder, tokenizer, keys, **options) -> TokenCache:
    cache = TokenCache(folder, tokenizer, **options)
    cache.begin()
    for key in keys:
        cache.put(key, None, segmented(tokenizer))
    cache.close()
    return cache


def segments(folder: Path) -> list[Path]:
    return sorted(folder.rglob("seg-*.parquet"))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(KEYS, max_size=40), min_size=1, max_size=5), st.lists(KEYS, max_size=10))
def test_every_key_of_every_writer_is_found_and_no_other(tmp_path_factory, writers, others):
    folder = tmp_path_factory.mktemp("cache")
    storage = LocalStorage(folder)
    for keys in writers:
        writer = SegmentWriter(storage, INFO)
        for number, key in enumerate(keys):
            writer.put(key, [token_map_of(key)], [{}])
            if number % 7 == 6:
                writer.flush()
        writer.flush()
    cache = TokenCache(folder / "new", SubobjectTokenizer(PatchSegmenter(2), size=None))
    cache._index = SegmentIndex(folder)
    cache._read_new(storage, INFO)
    saved = folder / "index"
    with saved.open("wb") as file:
        cache._index.save(file)
    for index in (cache._index, SegmentIndex.map(saved)):
        cache.reader.take(index)
        written = {key for keys in writers for key in keys}
        for key in written | {*others}:
            found = cache.reader.read(key, None, [(4, 4)])
            if key in written:
                assert (found[0][0] == token_map_of(key)).all()
            else:
                assert found is None
        # Duplicates of one writer are dropped, those of several are kept.
        assert len(index) == sum(len({*keys}) for keys in writers)
    assert cache.take_notices() == []


def test_other_processes_read_what_one_has_shared(tmp_path, tokenizer):
    cache = filled(tmp_path, tokenizer, [bytes(16)])
    cache.begin(share=True)
    copy = pickle.loads(pickle.dumps(cache.reader))
    # The counter that workers share is that of the copy in a spawned worker.
    copy.generation = cache.reader.generation
    assert copy.read(bytes(16), None, [(4, 4)]) is not None
    assert copy.read(b"\1" * 16, None, [(4, 4)]) is None
    cache.put(b"\1" * 16, None, segmented(tokenizer))
    cache.begin(share=True)
    assert copy.read(b"\1" * 16, None, [(4, 4)]) is not None
    shared = cache.reader.shared_file(cache.reader.number)
    assert shared.exists()
    cache.close()
    assert not shared.exists()


def test_maps_of_another_size_are_a_miss_that_is_told(tmp_path, tokenizer):
    cache = filled(tmp_path, tokenizer, [bytes(16)])
    cache.begin()
    assert cache.reader.read(bytes(16), None, [(4, 6)]) is None
    (notice,) = cache.take_notices()
    assert "seg-" in notice
    assert "(4, 6)" in notice
    assert cache.reader.read(bytes(16), None, [(4, 4), (4, 4)]) is None


def test_tokens_of_less_room_are_those_of_that_room_only(tmp_path):
    tokenizer = SubobjectTokenizer(PatchSegmenter(2), size=None)
    cache = TokenCache(tmp_path, tokenizer)
    cache.begin()
    room = [
        segment_image(
            tokenizer.segment_task(max_tokens=3), {}, (4, 4), np.zeros((4, 4, 3), np.uint8)
        )
    ]
    assert room[0].num_tokens == 3
    cache.put(bytes(16), 3, room)
    cache.begin()
    sizes = [(4, 4)]
    assert cache.reader.read(bytes(16), 3, sizes) is not None
    assert cache.reader.read(bytes(16), None, sizes) is None
    assert cache.reader.read(bytes(16), 5, sizes) is None
    cache.put(bytes(16), 5, segmented(tokenizer))  # 4 tokens: the room changed nothing
    cache.begin()
    for enough in (None, 4, 5, 100):
        assert len(np.unique(cache.reader.read(bytes(16), enough, sizes)[0][0])) == 4
    assert len(np.unique(cache.reader.read(bytes(16), 3, sizes)[0][0])) == 3


@pytest.mark.parametrize("change", ["flip", "truncate", "empty"])
def test_a_damaged_segment_is_a_miss_that_names_the_file(tmp_path, tokenizer, change):
    keys = [bytes([number]) * 16 for number in range(20)]
    filled(tmp_path, tokenizer, keys)
    (path,) = segments(tmp_path)
    content = path.read_bytes()
    right = segmented(tokenizer)[0].token_map
    for at in range(0, len(content), 97 if change == "flip" else len(content) // 5):
        if change == "flip":
            damaged = content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :]
        else:
            damaged = content[:at] if change == "truncate" else b""
        path.write_bytes(damaged)
        cache = TokenCache(tmp_path, tokenizer)
        cache.begin()
        found = [cache.reader.read(key, None, [(4, 4)]) for key in keys]
        assert all(one is None or (one[0][0] == right).all() for one in found)
        notices = cache.take_notices()
        assert all(path.name in notice for notice in notices)
        assert (None in found) == bool(notices)
        cache.close()


def test_another_segment_has_what_a_damaged_one_lost(tmp_path, tokenizer):
    for _ in range(2):
        filled(tmp_path, tokenizer, [bytes(16)])
    cache = TokenCache(tmp_path, tokenizer)
    cache.begin()
    (first, *_) = cache._index.find(bytes(16))
    path = next(one for one in segments(tmp_path) if one.name == first.segment)
    content = bytearray(path.read_bytes())
    content[first.begin + 20] ^= 1
    path.write_bytes(content)
    assert cache.reader.read(bytes(16), None, [(4, 4)]) is not None
    assert len(cache.take_notices()) == 1


_WRITES_FOR_EVER = """
import sys, itertools
import numpy as np
from subtok_data import PatchSegmenter, SubobjectTokenizer
from subtok_data.data.cache import TokenCache
from subtok_data.segment import segment_image

tokenizer = SubobjectTokenizer(PatchSegmenter(2), size=None)
cache = TokenCache(sys.argv[1], tokenizer)
cache.begin()
one = segment_image(tokenizer.segment_task(), {}, (4, 4))
for number in itertools.count():
    cache.put(number.to_bytes(16, "big"), None, [one])
    if number % 3 == 2:
        cache.flush()
        print(number, flush=True)
"""


def test_what_was_flushed_outlives_a_kill_at_any_moment(tmp_path, tokenizer):
    script = tmp_path / "writes.py"
    script.write_text(_WRITES_FOR_EVER)
    folder = tmp_path / "cache"
    random = np.random.default_rng(3)
    flushed = -1
    for _ in range(4):
        writer = subprocess.Popen(
            [sys.executable, str(script), str(folder)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        said = [writer.stdout.readline()]
        time.sleep(float(random.random()) * 0.05)
        os.kill(writer.pid, signal.SIGKILL)
        said += writer.stdout.read().splitlines()
        writer.wait()
        writer.stdout.close()
        flushed = max(flushed, *(int(line) for line in said if line.strip()))
    (kind,) = (part for part in folder.rglob("*-cpu") if part.is_dir())
    left = kind / f".seg-x.parquet.{next(kind.glob('seg-*')).name.split('-')[1]}-999999999-0.part"
    left.write_bytes(b"half of a segment")
    cache = TokenCache(folder, tokenizer)
    cache.begin()
    for number in range(flushed + 1):
        assert cache.reader.read(number.to_bytes(16, "big"), None, [(4, 4)]) is not None
    assert cache.take_notices() == []
    assert not list(kind.glob(".*"))
    cache.close()


def test_a_full_cache_is_said_once_and_stays_within_its_limit(tmp_path, tokenizer):
    cache = TokenCache(tmp_path, tokenizer, limit_gb=20e-6)
    notices = []
    for number in range(300):
        if number % 50 == 0:
            cache.begin()
        cache.put(number.to_bytes(16, "big"), None, segmented(tokenizer))
        if number % 10 == 0:
            cache.flush()
        notices += cache.take_notices()
    cache.close()
    (notice,) = notices
    assert "is full" in notice
    assert "cache_gb=2e-05" in notice
    assert 5_000 < sum(path.stat().st_size for path in tmp_path.rglob("*.parquet")) < 40_000
    cache.begin()
    assert cache.reader.read(bytes(16), None, [(4, 4)]) is not None


@pytest.mark.parametrize("where", ["create", "write"])
def test_a_full_disk_is_said_once_and_nothing_is_left(tmp_path, tokenizer, monkeypatch, where):
    cache = filled(tmp_path, tokenizer, [bytes(16)])

    def fails(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*((Path, "open", fails) if where == "create" else (os, "fsync", fails)))
        notices = []
        for number in range(1, 4):
            cache.begin()
            cache.put(bytes([number]) * 16, None, segmented(tokenizer))
            cache.flush()
            notices += cache.take_notices()
    (notice,) = notices
    assert "No space left on device" in notice
    assert "nothing is added" in notice
    cache.begin()  # there is space again
    assert cache.reader.read(bytes(16), None, [(4, 4)]) is not None
    cache.put(b"\1" * 16, None, segmented(tokenizer))
    cache.close()
    assert len(segments(tmp_path)) == 2
    assert not list(tmp_path.rglob(".*"))


def test_compaction_keeps_one_record_of_each_key(tmp_path, tokenizer):
    keys = [number.to_bytes(16, "big") for number in range(30)]
    for start in (0, 10, 15):
        filled(tmp_path, tokenizer, keys[start : start + 15])
    damaged = segments(tmp_path)[0]
    lost = 15
    damaged.write_bytes(damaged.read_bytes()[:-9])
    before = describe_cache(tmp_path)
    assert (before.segments, before.records) == (3, 45 - lost)
    assert before.parts[0].damaged == (damaged.name,)
    after = compact_cache(tmp_path)
    kept = after.records
    assert after.segments == 1
    assert 20 <= kept <= 30
    assert compact_cache(tmp_path) == after
    cache = TokenCache(tmp_path, tokenizer)
    cache.begin()
    found = [cache.reader.read(key, None, [(4, 4)]) for key in keys]
    assert sum(one is not None for one in found) == kept
    assert cache.take_notices() == []


def test_a_loader_at_work_misses_what_compaction_took_away(tmp_path, tokenizer):
    keys = [number.to_bytes(16, "big") for number in range(4)]
    for key in keys:
        cache = filled(tmp_path, tokenizer, [key])
    cache.begin()
    assert len(cache._index) == 4
    compact_cache(tmp_path)
    assert cache.reader.read(keys[0], None, [(4, 4)]) is None
    assert cache.take_notices() == []
    cache.begin()
    assert all(cache.reader.read(key, None, [(4, 4)]) for key in keys)


def test_other_configurations_go_only_when_asked(tmp_path, tokenizer):
    other = SubobjectTokenizer(PatchSegmenter(2), size=None, max_tokens=2)
    filled(tmp_path, tokenizer, [bytes(16)])
    filled(tmp_path, other, [bytes(16)])
    assert len(compact_cache(tmp_path).parts) == 2
    with pytest.raises(ConfigError, match="'zzz' is no configuration in the cache"):
        compact_cache(tmp_path, only="zzz")
    (left,) = compact_cache(tmp_path, only=other.config_hash).parts
    assert left.config_hash == other.config_hash
    assert left.config == other.config()


def test_clearing_leaves_other_files_alone(tmp_path, tokenizer):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").write_bytes(b"a photo")
    with pytest.raises(ConfigError, match=r"is no cache of tokens: it holds 'cat\.jpg'"):
        clear_cache(photos)
    with pytest.raises(ConfigError, match=r"is no cache of tokens: it holds 'cat\.jpg'"):
        TokenCache(photos, tokenizer)
    folder = tmp_path / "cache"
    filled(folder, tokenizer, [bytes(16)])
    (folder / "notes.txt").write_text("mine")
    assert clear_cache(folder).records == 1
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    with pytest.raises(ConfigError, match="there is no such folder"):
        describe_cache(tmp_path / "none")


@pytest.mark.parametrize(
    ("folder", "options", "message"),
    [
        (3, {}, "cache"),
        ("s3://bucket/cache", {}, "a folder of this machine or of a network disk"),
        ("cache", {"limit_gb": 0}, "cache_gb"),
        ("cache", {"limit_gb": "5"}, "cache_gb"),
    ],
)
def test_what_cannot_be_a_cache_is_refused(
    tmp_path, monkeypatch, tokenizer, folder, options, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        TokenCache(folder, tokenizer, **options)


def test_a_cache_says_what_its_configurations_are(tmp_path, tokenizer):
    filled(tmp_path, tokenizer, [bytes(16)])
    found = json.loads((tmp_path / tokenizer.config_hash / "config.json").read_text())
    assert found == tokenizer.config()
