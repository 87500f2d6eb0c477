"""Parts, interruptions and damage: the files are those of one undisturbed run."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import time
import warnings
import zlib
from dataclasses import replace

import numpy as np
import pytest
from helpers.batches import assert_same_batches
from helpers.stores import store_rows

from subtok_data import PatchSegmenter, SubobjectDataset, SubobjectLoader, SubobjectTokenizer
from subtok_data.data import (
    StoredTokens,
    TokenWriter,
    check_tokens,
    tokenize_dataset,
    verify_tokens,
)
from subtok_data.data.store import LocalStorage, ShardReport, StoredRow
from subtok_data.data.store.layout import read_json, write_json
from subtok_data.data.tokenize import LocalEngine, make_shards
from subtok_data.errors import ConfigError, SampleError, StoreError, SubtokError

ROWS = 46


class Images:
    """Images of many sizes, some bad, each after a pause."""

    def __init__(self, pause=0.0, stop_at=None):
        self.pause = pause
        self.stop_at = stop_at
        self.read = []

    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        if index == self.stop_at:
            raise KeyboardInterrupt
        self.read.append(index)
        time.sleep(self.pause)
        if index % 11 == 7:
            return {"image": b"no image"}
        random = np.random.default_rng(index)
        return {"image": random.integers(0, 256, (20 + index % 7, 30, 3), np.uint8)}


def run(images, out, **options):
    tokenizer = SubobjectTokenizer(PatchSegmenter(8), size=32)
    options = {"executor": "inline", "batch_size": 3, "shard_rows": 10, **options}
    return tokenize_dataset(images, tokenizer, out, **options)


def files_of(folder):
    """Content of every file but the provenance, which has times."""
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name != "provenance.jsonl"
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Files of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    run(Images(), folder)
    return files_of(folder)


def in_child(target, *args):
    """Start a process that this one has forked: it needs no second to import torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        process = multiprocessing.get_context("fork").Process(target=target, args=args)
        process.start()
    return process


# --- parts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_parts_make_the_same_files(tmp_path, whole, parts):
    for number in reversed(range(parts)):
        report = run(Images(), tmp_path, part=(number, parts))
        assert not report.finished
    with pytest.raises(ConfigError, match="no finished tokens .*--finish"):
        StoredTokens(tmp_path)
    TokenWriter.open(tmp_path).finish()
    assert files_of(tmp_path) == whole
    assert StoredTokens(tmp_path).num_failed == 4


def test_a_part_reports_on_its_own_rows(tmp_path):
    report = run(Images(), tmp_path, part=(1, 2))
    assert (report.rows, report.images, report.num_failed) == (20, 19, 1)
    assert [row.index for row in report.failed] == [18]
    status = TokenWriter.open(tmp_path).status()
    assert (status.missing, status.damaged, status.finished) == ((0, 2, 4), (), False)
    with pytest.raises(ConfigError, match="3 of 5 shards are missing"):
        TokenWriter.open(tmp_path).finish()


@pytest.mark.parametrize("part", [(2, 2), (-1, 2), (0, 0)])
def test_impossible_parts_are_refused(tmp_path, part):
    with pytest.raises(ConfigError, match="parts count from 0"):
        run(Images(), tmp_path, part=part)


class Shuffled:
    """An engine of fifteen lines: shards in any order, some of them twice."""

    def map_shards(self, job, shards):
        for number in [*reversed(shards), *shards[:2]]:
            yield from make_shards(job, [number])


class Lazy:
    """An engine that loses a shard."""

    def map_shards(self, job, shards):
        return make_shards(job, shards[1:])


class Liar:
    """An engine that reports what it has not made."""

    def map_shards(self, job, shards):
        for number in shards:
            yield ShardReport(number, 1, 1, 1, 0, 1, "", 0.0, "cpu", "float32")


def test_any_engine_makes_the_same_files(tmp_path, whole):
    progress = []
    run(Images(), tmp_path, engine=Shuffled(), on_progress=lambda *done: progress.append(done))
    assert files_of(tmp_path) == whole
    assert sum(rows for rows, _ in progress) == ROWS
    assert sum(failed for _, failed in progress) == 4
    assert LocalEngine().on_rows is None


def test_a_job_goes_to_other_processes(tmp_path, whole):
    class Elsewhere:
        def map_shards(self, job, shards):
            for number in shards:
                yield from make_shards(pickle.loads(pickle.dumps(job)), [number])

    run(Images(), tmp_path, engine=Elsewhere())
    assert files_of(tmp_path) == whole


def test_a_damaged_shard_is_read_anew_once_another_process_has_made_it(tmp_path, whole):
    class Elsewhere:
        def map_shards(self, job, shards):
            for number in shards:  # a job in another process has opened no file yet
                yield from make_shards(pickle.loads(pickle.dumps(job)), [number])

    run(Images(), tmp_path)
    damage(tmp_path / "data/part=000/tokens-000002.parquet", "truncated")
    run(Images(), tmp_path, engine=Elsewhere())
    assert files_of(tmp_path) == whole


def test_dataloader_workers_read_stored_tokens(tmp_path):
    run(Images(), tmp_path)
    tokenizer = SubobjectTokenizer(PatchSegmenter(8), size=32)
    dataset = SubobjectDataset(Images(), tokens=tmp_path, on_error="replace")
    dataset[0]  # a file is open in this process when the workers fork
    batches = []
    for workers in (0, 2):
        options = {"batch_size": 8, "num_workers": workers, "executor": "inline"}
        with SubobjectLoader(dataset, tokenizer, **options) as loader:
            batches.append(list(loader))
    assert_same_batches(*batches)


@pytest.mark.parametrize(("engine", "lost"), [(Lazy(), 1), (Liar(), 5)])
def test_an_engine_that_loses_shards_is_an_error(tmp_path, whole, engine, lost):
    with pytest.raises(SubtokError, match=f"{lost} of 5 shards were not made"):
        run(Images(), tmp_path, engine=engine)
    run(Images(), tmp_path)
    assert files_of(tmp_path) == whole


def test_two_writers_at_once_are_harmless(tmp_path, whole):
    writers = [in_child(run, Images(pause=0.002), tmp_path) for _ in range(2)]
    for writer in writers:
        writer.join(120)
    run(Images(), tmp_path)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert files_of(tmp_path) == whole


# --- interruptions ------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [4, 19, 20, 28, 45])
def test_an_interrupted_run_loses_the_batch_under_way(tmp_path, whole, row):
    with pytest.raises(KeyboardInterrupt):
        run(Images(stop_at=row), tmp_path)
    again = Images()
    calls = []
    run(again, tmp_path, on_progress=lambda *done: calls.append(done))
    assert files_of(tmp_path) == whole
    # Pixels have no fingerprint, so rows of whole shards are read to compare them; of the others
    # only those of the batch in which the row is.
    made = [index for index in again.read if index >= row - row % 10]
    assert min(made) == row - row % 10 % 3
    assert sum(rows for rows, _ in calls) == ROWS
    assert sum(failed for _, failed in calls) <= 4


def test_a_slow_run_that_is_killed_loses_the_batch_under_way(tmp_path, whole, monkeypatch):
    """Batches that take seconds do not wait for others."""
    monkeypatch.setattr("subtok_data.data.tokenize.shards._SLOW_S", 0.0)

    class Deadly(Images):
        def __getitem__(self, index):
            if index == 28:
                os._exit(9)
            return super().__getitem__(index)

    child = in_child(run, Deadly(), tmp_path)
    child.join(60)
    assert child.exitcode == 9
    again = Images()
    run(again, tmp_path)
    assert files_of(tmp_path) == whole
    assert min(index for index in again.read if index >= 20) == 26


def test_another_batch_size_does_not_go_on_within_a_shard(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(Images(stop_at=38), tmp_path)
    run(Images(), tmp_path, batch_size=4)
    run(Images(), tmp_path / "other", batch_size=4)
    last = "data/part=000/tokens-000004.parquet"
    assert files_of(tmp_path)[last] == files_of(tmp_path / "other")[last]


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_killed_at_any_moment_the_rest_goes_on(tmp_path, whole, seed):
    random = np.random.default_rng(seed)
    killed = 0
    for _ in range(60):
        child = in_child(run, Images(pause=0.004), tmp_path)
        child.join(float(random.uniform(0.01, 0.25)))
        child.kill()  # nothing, if it has ended
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        killed += 1
    assert killed
    run(Images(), tmp_path)
    assert files_of(tmp_path) == whole


@pytest.mark.parametrize("limit", [200, 1500, 2472])
def test_a_full_disk_leaves_no_unfinished_file(tmp_path, whole, limit):
    def fill(folder):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            run(Images(), folder)
        except OSError:
            os._exit(3)
        os._exit(0)

    child = in_child(fill, tmp_path)
    child.join(60)
    assert child.exitcode == 3
    assert not list(tmp_path.rglob("*.part"))
    run(Images(), tmp_path)
    assert files_of(tmp_path) == whole


# --- damage -------------------------------------------------------------------------------------


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = bytearray()
    elif how == "records":
        content[content.rindex(b"\x28\xb5\x2f\xfd") + 6] ^= 4  # in the last zstd frame
    else:
        content[-20] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "empty", "records", "footer"])
def test_a_damaged_shard_is_noticed_and_made_anew(tmp_path, whole, how):
    run(Images(), tmp_path)
    path = tmp_path / "data/part=000/tokens-000002.parquet"
    damage(path, how)
    status = TokenWriter.open(tmp_path).status()
    ((number, why),) = status.damaged
    assert number == 2
    assert "tokens-000002.parquet is damaged" in why
    report = run(Images(), tmp_path)
    assert report.rows_done_before == ROWS - 10
    assert files_of(tmp_path) == whole


def read_bytes(monkeypatch, action):
    """How many bytes of shards an action reads, beside the 8 KB of each end."""
    total = 0
    read = LocalStorage.read

    def counted(self, name, start=0, length=None):
        nonlocal total
        found = read(self, name, start, length)
        total += len(found) if name.startswith("data/") else 0
        return found

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "read", counted)
        assert action() == []
    return total


@pytest.mark.parametrize("finished", [True, False])
def test_shards_that_are_as_they_were_written_are_not_read_again(tmp_path, monkeypatch, finished):
    run(Images(), tmp_path, part=None if finished else (0, 1))
    writer = TokenWriter.open(tmp_path)
    shards = [tmp_path / name for name in files_of(tmp_path) if name.startswith("data/")]
    footers = sum(4 + 8 + int.from_bytes(s.read_bytes()[-8:-4], "little") + 8 for s in shards)
    assert read_bytes(monkeypatch, writer.missing) == footers
    every = sum(shard.stat().st_size for shard in shards)
    os.utime(shards[0])  # written by somebody else, perhaps
    assert footers < read_bytes(monkeypatch, writer.missing) < every
    assert read_bytes(monkeypatch, lambda: list(writer.status().damaged)) > every


def test_a_store_that_was_copied_is_read_and_whole(tmp_path, whole, monkeypatch):
    run(Images(), tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    assert read_bytes(monkeypatch, TokenWriter.open(tmp_path / "b").missing) > 5000
    assert run(Images(), tmp_path / "b").rows_done_before == ROWS
    assert files_of(tmp_path / "b") == whole


@pytest.mark.parametrize("how", ["truncated", "records"])
def test_damaged_rows_are_named_and_can_be_replaced(tmp_path, how):
    run(Images(), tmp_path)
    damage(tmp_path / "data/part=000/tokens-000002.parquet", how)
    dataset = SubobjectDataset(Images(), tokens=tmp_path)
    with pytest.raises(SampleError, match=r"sample 28 .*000002\.parquet.* damaged") as caught:
        dataset[28]
    assert caught.value.index == 28
    tokenizer = SubobjectTokenizer(PatchSegmenter(8), size=32)
    replacing = SubobjectDataset(Images(), tokens=tmp_path, on_error="replace")
    with SubobjectLoader(replacing, tokenizer, batch_size=10, executor="inline") as loader:
        assert len(list(loader)) == 5
        reasons = {replaced.index: replaced.reason for replaced in loader.stats().replaced}
    assert "tokens-000002.parquet" in reasons[28]


def test_a_shard_that_is_missing_is_named(tmp_path):
    run(Images(), tmp_path)
    (tmp_path / "data/part=000/tokens-000002.parquet").unlink()
    with pytest.raises(SampleError, match=r"sample 21 .*tokens-000002\.parquet is missing"):
        SubobjectDataset(Images(), tokens=tmp_path)[21]
    with pytest.raises(StoreError, match=r"tokens-000002\.parquet is missing"):
        list(StoredTokens(tmp_path).rows())


# --- verify -------------------------------------------------------------------------------------


def test_stored_rows_are_recomputed_and_compared(tmp_path):
    tokenizer = SubobjectTokenizer(PatchSegmenter(8), size=32)
    run(Images(), tmp_path)
    before = files_of(tmp_path)
    report = verify_tokens(Images(), tokenizer, tmp_path, 1000, executor="inline")
    assert (report.rows, report.differing) == (ROWS, ())
    assert verify_tokens(Images(), tokenizer, tmp_path, 5, executor="inline").rows == 5
    assert files_of(tmp_path) == before

    class Shifted(Images):
        def __getitem__(self, index):
            row = super().__getitem__(index)
            if index == 12:
                row["image"] = row["image"] + np.uint8(1)
            return row

    report = verify_tokens(Shifted(), tokenizer, tmp_path, 1000, executor="inline")
    assert [(row.index, row.what) for row in report.differing] == [(12, "the image is another one")]
    with pytest.raises(ConfigError, match="asked for"):
        verify_tokens(Images(), SubobjectTokenizer(PatchSegmenter(4), size=32), tmp_path, 5)
    with pytest.raises(ConfigError, match="no finished tokens"):
        verify_tokens(Images(), tokenizer, tmp_path / "nothing", 5)
    assert not (tmp_path / "nothing").exists()


def test_tokens_are_checked_without_their_images(tmp_path):
    run(Images(), tmp_path)
    before = files_of(tmp_path)
    report = check_tokens(tmp_path, 1000)
    assert (report.rows, report.shards, report.problems) == (ROWS, 5, ())
    assert check_tokens(tmp_path, 3).rows == 3
    assert files_of(tmp_path) == before
    with pytest.raises(ConfigError, match="no finished tokens"):
        check_tokens(tmp_path / "nothing", 3)


def test_what_is_wrong_with_tokens_is_listed(tmp_path):
    run(Images(), tmp_path)
    damage(tmp_path / "data/part=000/tokens-000002.parquet", "records")
    (tmp_path / "data/part=000/tokens-000003.parquet").unlink()
    (tmp_path / "lengths.u2").write_bytes(bytes(2 * ROWS))
    report = check_tokens(tmp_path, 1000)
    assert (report.rows, report.shards) == (26, 3)
    missing, damaged, lengths = report.problems
    assert missing.startswith("1 of 5 shards are missing, the first is 3")
    assert "tokens-000002.parquet is damaged" in damaged
    assert "lengths.u2 is damaged" in lengths


def test_what_was_written_wrongly_is_found_too(tmp_path):
    """Checksums fit, since they are of what was written."""
    one = np.zeros((4, 4), np.int16)
    wrong = replace(StoredRow.of(1, [one], key=b"k" * 16), num_visual_tokens=(2,))
    writer = store_rows(tmp_path, [StoredRow.of(0, [one]), wrong], config={"size": 4})
    keys, lengths = (np.zeros((2, 16), np.uint8), np.array([7, 2], np.uint16))
    for kind, values in (("keys", keys), ("lengths", lengths)):
        manifest = read_json(writer.storage, "index/index.json")
        (tmp_path / manifest[kind]["name"]).write_bytes(values.tobytes())
        manifest[kind]["crc32"] = zlib.crc32(values.tobytes())
        write_json(writer.storage, "index/index.json", manifest)
    config, index, row = check_tokens(tmp_path, 2).problems
    assert "is not that of its hash" in config
    assert index.startswith("lengths or keys of the rows 0 to 1 are not those in data/part=000/")
    assert row.startswith("row 1 in data/part=000/tokens-000000.parquet: it says (2,) tokens")


def test_what_is_not_finished_says_so(tmp_path):
    run(Images(), tmp_path, part=(0, 1))
    (problem,) = check_tokens(tmp_path, 4).problems
    assert "--finish" in problem
