"""Stores on fsspec's file systems: the same as in a folder, retried, and named when they fail."""

from __future__ import annotations

import errno
import os
import pickle
import warnings
from datetime import timedelta
from pathlib import Path

import fsspec
import numpy as np
import pytest
from helpers.fake_hub import fake_hub
from helpers.stores import store_rows

from subtok_data import PatchSegmenter, SubobjectDataset, SubobjectTokenizer
from subtok_data.data import StoredTokens, tokenize_dataset
from subtok_data.data.store import FsspecStorage, LocalStorage, StoredRow, TokenWriter, open_storage
from subtok_data.errors import ConfigError, SampleError, StoreError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SUBTOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    yield
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def make_rows(count):
    rng = np.random.default_rng(0)
    return [
        StoredRow.of(index, [rng.integers(0, 9, (8, 8)).astype(np.int16)], key=bytes([index] * 16))
        for index in range(count)
    ]


def copies(tmp_path):
    folder = tmp_path / "cache" / "files"
    return sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)


def test_a_folder_or_a_uri_is_opened():
    assert isinstance(open_storage("a/b"), LocalStorage)
    assert isinstance(open_storage(Path("a")), LocalStorage)
    assert str(open_storage("file:///a/b")) == "/a/b"
    storage = open_storage("memory://a/b/")
    assert isinstance(storage, FsspecStorage)
    assert str(storage) == "memory://a/b"
    assert open_storage(storage) is storage


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("https://example.org/tokens", "address of a web page.*s3://BUCKET/PATH"),
        ("https://huggingface.co/datasets/me/it/tree/main", "give 'hf://datasets/me/it'"),
        ("nonsense://tokens", "nonsense.*Give a folder, or s3://"),
    ],
)
def test_an_address_that_is_no_storage_is_refused_with_the_remedy(uri, says):
    with pytest.raises(ConfigError, match=says):
        open_storage(uri)


def test_a_file_is_created_whole_replaced_listed_and_deleted(tmp_path):
    storage = FsspecStorage("memory://place")
    assert storage.size("data/a") is None
    assert storage.names("data") == []
    with pytest.raises(FileNotFoundError):
        storage.read("data/a")
    with storage.create("data/a") as file:
        file.write(b"some content")
        file.seek(0)
        assert file.read(4) == b"some"
        assert storage.size("data/a") is None
    with storage.create("data/b/c") as file:
        file.write(b"")
    assert storage.size("data/a") == 12
    assert storage.size("data/b") is None
    assert storage.names("data") == ["a", "b"]
    assert storage.read("data/a", 5) == b"content"
    assert storage.read("data/a", 5, 3) == b"con"
    assert storage.read("data/a", 5, 300) == b"content"
    assert storage.local("data/a").read_bytes() == b"some content"
    with storage.create("data/a") as file:
        file.write(b"other content")
    assert storage.read("data/a", 0, 5) == b"other"
    storage.delete("data/a")
    storage.delete("data/a")
    assert storage.names("data") == ["b"]
    assert not list((tmp_path / "cache" / "uploads").iterdir())


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    storage = FsspecStorage("memory://place")
    with storage.create("a") as file:
        file.write(b"old")

    def fail():
        with storage.create("a") as file:
            file.write(b"new")
            raise FileNotFoundError("of the caller")

    with pytest.raises(FileNotFoundError, match="of the caller"):
        fail()
    assert storage.read("a") == b"old"
    assert not list((tmp_path / "cache" / "uploads").iterdir())


def test_an_upload_that_is_cut_off_is_not_seen(monkeypatch):
    storage = FsspecStorage("memory://place", attempts=1)
    system = fsspec.filesystem("memory")
    whole = type(system).put_file

    def half(self, source, path, **options):
        whole(self, source, path, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(type(system), "put_file", half)
    with pytest.raises(KeyboardInterrupt):
        with storage.create("data/a") as file:
            file.write(b"content")
    assert storage.size("data/a") is None
    assert system.find("/place") == []
    system.pipe_file("/place/data/.unfinished-a.host-1", b"killed")
    assert storage.names("data") == []
    storage.clean("data")
    assert len(system.find("/place")) == 1  # it may be at work
    system.store["/place/data/.unfinished-a.host-1"].modified -= timedelta(hours=2)
    storage.clean("data")
    assert system.find("/place") == []


@pytest.mark.parametrize("fails", [1, 5])
def test_a_failure_of_the_moment_is_tried_again(monkeypatch, fails):
    storage = FsspecStorage("memory://place")
    with storage.create("a") as file:
        file.write(b"content")
    system, waits, left = fsspec.filesystem("memory"), [], [fails]
    whole = type(system).cat_file

    def sometimes(self, path, **options):
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(5, "injected")
        return whole(self, path, **options)

    monkeypatch.setattr(type(system), "cat_file", sometimes)
    monkeypatch.setattr("time.sleep", waits.append)
    assert storage.read("a") == b"content"
    assert len(waits) == fails
    bounds = [(0.25 * 2**n, 0.75 * 2**n) for n in range(fails)]
    assert all(low <= seconds <= high for seconds, (low, high) in zip(waits, bounds, strict=True))
    left[0] = 6
    with pytest.raises(
        StoreError, match=r"'memory://place/a': cannot read it after 6 attempts: .*injected.*again"
    ):
        storage.read("a")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError("not for you"), "cannot read it: PermissionError: not for you. Give"),
        (ValueError("bad name"), "cannot read it: ValueError: bad name. Correct"),
    ],
)
def test_what_lasts_is_not_tried_again(monkeypatch, error, says):
    storage = FsspecStorage("memory://place")
    asked = []

    def refuse(self, path, **options):
        asked.append(path)
        raise error

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", refuse)
    with pytest.raises(StoreError, match=says):
        storage.read("a")
    assert len(asked) == 1


@pytest.mark.parametrize("kind", ["no folder", "full"])
def test_a_local_cache_that_takes_nothing_is_named(tmp_path, monkeypatch, kind):
    store_rows("memory://place", make_rows(2))
    (tmp_path / "file").write_text("no folder")
    storage = FsspecStorage("memory://place", cache_dir=tmp_path / "file")
    if kind == "full":
        storage = FsspecStorage("memory://place")

        def full(self, path, target, **options):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(type(fsspec.filesystem("memory")), "get_file", full)
    with pytest.raises(SampleError, match=r"cannot fetch it: .*(directory|space).*SUBTOK_CACHE"):
        StoredTokens(storage).row(1)


def test_a_shard_is_fetched_once_and_the_cache_is_bounded(tmp_path, monkeypatch):
    store_rows("memory://place", make_rows(12), shard_rows=4)
    assert not (tmp_path / "cache" / "files").exists()  # writers fetch nothing
    system, fetched = fsspec.filesystem("memory"), []
    whole = type(system).get_file

    def counted(self, path, *args, **options):
        fetched.append(path)
        return whole(self, path, *args, **options)

    monkeypatch.setattr(type(system), "get_file", counted)
    tokens = StoredTokens("memory://place")
    for row in make_rows(12) * 2:
        assert tokens.row(row.index) == row
    assert len(fetched) == 3
    tokens = pickle.loads(pickle.dumps(tokens))
    assert tokens.row(0) == make_rows(1)[0]
    assert tokens.lengths().tolist() == [len(np.unique(r.decode()[0][0])) for r in make_rows(12)]
    assert len(fetched) == 4  # the lengths

    size = copies(tmp_path)[0].stat().st_size
    small = FsspecStorage("memory://place", cache_gb=1.5 * size / 1e9)
    fetched.clear()
    for path in copies(tmp_path):
        path.unlink()
    for row in make_rows(12):
        assert StoredTokens(small).row(row.index) == row
    assert len(fetched) == 3
    assert len(copies(tmp_path)) == 1


def test_a_store_that_was_made_anew_is_fetched_anew():
    store_rows("memory://place", make_rows(2))
    assert StoredTokens("memory://place").row(1) == make_rows(2)[1]
    other = make_rows(3)[2]
    other = StoredRow(1, None, other.key, other.num_visual_tokens, other.sizes, other.records)
    store_rows("memory://place", [make_rows(1)[0], other])
    assert StoredTokens("memory://place").row(1) == other


def test_a_download_that_ends_early_is_tried_again(monkeypatch):
    store_rows("memory://place", make_rows(2))
    system, left = fsspec.filesystem("memory"), [1]
    whole = type(system).get_file

    def short(self, path, target, **options):
        whole(self, path, target, **options)
        if left[0]:
            left[0] -= 1
            os.truncate(target, 100)

    monkeypatch.setattr(type(system), "get_file", short)
    assert StoredTokens("memory://place").row(1) == make_rows(2)[1]
    assert left == [0]


def test_a_dataset_is_tokenized_to_a_uri_and_read_back_as_from_a_folder(tmp_path):
    images = [np.full((40, 30, 3), 20 * shade, np.uint8) for shade in range(9)]
    tokenizer = SubobjectTokenizer(PatchSegmenter(16), size=64)
    options = {"executor": "inline", "shard_rows": 4}
    report = tokenize_dataset(images, tokenizer, "memory://place/tokens", **options)
    assert (report.folder, report.images, report.finished) == ("memory://place/tokens", 9, True)
    tokenize_dataset(images, tokenizer, tmp_path / "tokens", **options)
    system = fsspec.filesystem("memory")
    names = {path.removeprefix("/place/tokens/") for path in system.find("/place/tokens")}
    folder = tmp_path / "tokens"
    assert names == {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    for name in names - {"provenance.jsonl"}:
        assert system.cat_file(f"/place/tokens/{name}") == (folder / name).read_bytes(), name
    again = tokenize_dataset(images, tokenizer, "memory://place/tokens", **options)
    assert (again.rows_done_before, again.images) == (9, 0)
    remote = SubobjectDataset(images, tokens="memory://place/tokens")
    local = SubobjectDataset(images, tokens=folder)
    for index in range(9):
        assert (remote[index].token_maps[0] == local[index].token_maps[0]).all()


def test_a_missing_store_is_named():
    with pytest.raises(ConfigError, match="no finished tokens in 'memory://nowhere'"):
        StoredTokens("memory://nowhere")


# --- the hub ------------------------------------------------------------------------------------


def test_tokens_go_to_the_hub_and_are_read_from_there(tmp_path, monkeypatch):
    store_rows(tmp_path / "t", make_rows(6), shard_rows=4)
    (tmp_path / "t" / "progress").mkdir()
    (tmp_path / "t" / "progress" / "left").write_text("over")
    with fake_hub(tmp_path / "hub", monkeypatch) as hub:
        address = StoredTokens(tmp_path / "t").push_to_hub("somebody/tokens")
        assert address.startswith(f"{hub.endpoint}/somebody/tokens/commit/")
        files = hub.repositories["somebody/tokens"]
        local = {p.relative_to(tmp_path / "t").as_posix() for p in (tmp_path / "t").rglob("*.*")}
        assert set(files) == {*local, "README.md", ".gitattributes"}
        for name in local:
            assert files[name] == (tmp_path / "t" / name).read_bytes()
        assert b'tokens="hf://datasets/somebody/tokens"' in files["README.md"]
        fsspec.get_filesystem_class("hf").clear_instance_cache()
        tokens = StoredTokens("hf://datasets/somebody/tokens")
        assert list(tokens.rows()) == make_rows(6)
        assert tokens.row(5) == make_rows(6)[5]
        with pytest.raises(ConfigError, match="from a local folder only"):
            tokens.push_to_hub("somebody/again")
        with pytest.raises(StoreError, match="there is no repository 'datasets/somebody/absent'"):
            StoredTokens("hf://datasets/somebody/absent")
        fsspec.get_filesystem_class("hf").clear_instance_cache()


# --- a real S3 server ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("s3fs", reason="the S3 server needs: pip install 'subtok-data[test]'")
    pytest.importorskip("moto", reason="the S3 server needs: pip install 'subtok-data[test]'")
    pytest.importorskip("flask", reason="the S3 server needs: pip install 'subtok-data[test]'")
    from helpers.s3 import S3Server

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server = S3Server()
    yield server
    server.close()


@pytest.fixture
def s3(server):
    server.clear()

    def storage(path="tokens/run", **options):
        return FsspecStorage(f"s3://{path}", options=server.options, **options)

    storage.server = server
    yield storage
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_s3_holds_what_a_folder_holds(s3, tmp_path):
    storage = s3()
    store_rows(storage, make_rows(12), shard_rows=4)
    store_rows(tmp_path / "t", make_rows(12), shard_rows=4)
    for number in range(3):
        name = f"data/part=000/tokens-{number:06d}.parquet"
        assert storage.read(name) == (tmp_path / "t" / name).read_bytes()
        assert storage.read(name, 7, 90) == (tmp_path / "t" / name).read_bytes()[7:97]
    assert storage.names("") == [
        "data",
        "index",
        "keys.bin",
        "lengths.u2",
        "provenance.jsonl",
        "subtok.json",
    ]
    tokens = StoredTokens(storage)
    assert list(tokens.rows()) == make_rows(12)
    assert TokenWriter.open(s3(cached=False)).status().finished
    storage.delete("data/part=000/tokens-000001.parquet")
    assert TokenWriter.open(s3(cached=False)).missing() == [1]


def test_s3_errors_of_the_moment_are_tried_again(s3):
    rng, failed = np.random.default_rng(0), []

    def fault(method, path):
        if path.startswith("/tokens/run") and rng.random() < 0.25:
            failed.append(path)
            return int(rng.choice([500, 503]))
        return None

    s3.server.fault = fault
    store_rows(s3(attempts=10), make_rows(8), shard_rows=4)
    assert list(StoredTokens(s3(attempts=10)).rows()) == make_rows(8)
    assert len(failed) >= 5


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (500, "cannot write it after 3 attempts: .*The server or the network is at fault"),
        (403, "cannot write it: PermissionError: .*Give this process credentials"),
    ],
)
def test_an_s3_write_that_fails_for_good_is_named(s3, status, says):
    storage = s3(attempts=3)
    s3.server.fault = lambda method, path: status if method == "PUT" else None
    with pytest.raises(StoreError, match=f"'s3://tokens/run/a': {says}"):
        with storage.create("a") as file:
            file.write(b"content")
    puts = [path for method, path in s3.server.requests if method == "PUT"]
    assert len(puts) == (3 if status == 500 else 1)
    s3.server.fault = lambda method, path: None
    assert storage.size("a") is None


def test_an_s3_server_that_does_not_answer_is_named(s3, monkeypatch):
    monkeypatch.undo()  # the server waits
    options = {**s3.server.options, "config_kwargs": {"read_timeout": 0.2}}
    options["config_kwargs"]["retries"] = {"total_max_attempts": 1}
    storage = FsspecStorage("s3://tokens/run", options=options, attempts=2, wait=0.01)
    s3.server.fault = lambda method, path: 1.0
    with pytest.raises(StoreError, match="'s3://tokens/run/a': cannot look up it after 2 attempts"):
        storage.size("a")


def test_a_missing_bucket_is_named_by_reader_and_writer(s3):
    with pytest.raises(StoreError, match="'s3://absent/run': there is no bucket 'absent'"):
        StoredTokens(s3("absent/run"))
    with pytest.raises(StoreError, match="there is no bucket 'absent'"):
        store_rows(s3("absent/run"), make_rows(2))
    with pytest.raises(ConfigError, match="no finished tokens in 's3://tokens/absent'"):
        StoredTokens(s3("tokens/absent"))


def test_workers_read_from_s3_with_connections_of_their_own(s3):
    from torch.utils.data import DataLoader

    images = [np.full((8, 8, 3), 20 * shade, np.uint8) for shade in range(8)]
    tokenizer = SubobjectTokenizer(PatchSegmenter(16), size=32)
    storage = s3()
    tokenize_dataset(images, tokenizer, storage, executor="inline", shard_rows=4)
    dataset = SubobjectDataset(images, tokens=storage)
    expected = [dataset[index].token_maps[0].tolist() for index in range(8)]  # connects here
    loader = DataLoader(dataset, batch_size=None, num_workers=2)
    assert [sample.token_maps[0].tolist() for sample in loader] == expected
