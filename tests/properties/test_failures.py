"""What happens when something dies, hangs, raises, or stops early: a clean error or a clean end."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
import weakref
from pathlib import Path

import psutil
import pytest
from helpers.batches import assert_same_batches, faulty_tokenizer
from helpers.faulty import (
    HANG,
    KILL,
    KILL_ONCE,
    NO_MEMORY,
    RAISE,
    BreaksDecoder,
    CodedImages,
    FaultyPartitioner,
    HangsDecoder,
    KillsDecoder,
    coded_image,
)
from helpers.workers import start_fork_server

from subtok_data import (
    SampleError,
    SubobjectCollator,
    SubobjectDataset,
    SubobjectLoader,
    SubobjectTokenizer,
    TextConfig,
    WorkerCrashError,
)
from subtok_data.data.pool import ProcessSegmentPool, SegmentJob, make_pool, worker_process
from subtok_data.errors import ConfigError, SubtokError
from subtok_data.segment import Budget, SegmentTask, Slot, allocate_slot

pytestmark = [pytest.mark.usefixtures("no_leaks"), pytest.mark.timeout(120)]


def loader_of(codes, folder, **options) -> SubobjectLoader:
    return SubobjectLoader(
        CodedImages(16, codes, options.pop("corrupt", ())),
        faulty_tokenizer(folder, fail_on=options.pop("fail_on", -1)),
        **{"batch_size": 4, "segment_workers": 2, **options},
    )


def indices(batches) -> list[int]:
    return [i for batch in batches for i in batch["sample_index"].tolist()]


# --- segment workers ------------------------------------------------------------------------------


def test_killed_worker_is_replaced_and_nothing_is_lost(tmp_path):
    with loader_of({}, tmp_path) as loader:
        expected = list(loader)
    with loader_of({}, tmp_path) as loader:
        seen = []
        for batch in loader:
            seen.append(batch)
            if len(seen) == 1:
                os.kill(loader._segment_pool().pids[0], signal.SIGKILL)
        assert_same_batches(seen, expected)


def test_image_that_kills_its_worker_once_is_cut_again(tmp_path):
    with loader_of({6: KILL_ONCE, 11: KILL_ONCE}, tmp_path) as loader:
        batches = list(loader)
        assert indices(batches) == list(range(16))
        assert [b["num_visual_tokens"].tolist() for b in batches][1] == [5, 1, 2, 3]
        assert loader.stats().restarts == 2
        assert "2 segment workers died" in loader.stats().report()


def test_image_that_kills_its_worker_twice_is_a_sample_error(tmp_path):
    with loader_of({6: KILL}, tmp_path) as loader:
        with pytest.raises(
            SampleError, match=r"sample 6 failed in segment.*twice.*signal 9"
        ) as info:
            list(loader)
        assert info.value.index == 6
        assert loader.stats().restarts == 1  # the second death is the image's fault


def test_image_that_kills_its_worker_is_replaced(tmp_path):
    with loader_of({6: KILL}, tmp_path, on_error="replace") as loader:
        batches = list(loader)
        again = list(loader)
    found = indices(batches)
    assert len(found) == 16
    assert 6 not in found
    assert found[6] == loader.stats().replaced[0].used
    assert_same_batches(batches, again)


def test_too_many_deaths(tmp_path):
    codes = dict.fromkeys(range(8), KILL_ONCE)
    with loader_of(codes, tmp_path, max_restarts=2) as loader:
        with pytest.raises(
            WorkerCrashError, match="3 segment workers were lost, 2 may be replaced"
        ):
            list(loader)


def test_hung_worker_is_killed(tmp_path):
    with loader_of({2: HANG}, tmp_path, timeout_s=1.0) as loader:
        assert indices(list(loader)) == list(range(16))
        assert loader.stats().restarts == 1


def test_worker_that_cannot_start(monkeypatch):
    monkeypatch.setattr("subtok_data.data.pool.worker_process._ENTRY", "import sys; sys.exit(3)")
    task = SegmentTask(FaultyPartitioner(), Budget())
    with ProcessSegmentPool(1, max_restarts=1) as pool:
        future = pool.submit(SegmentJob(task, {"image": coded_image(0)}, (64, 64)))
        with pytest.raises(WorkerCrashError, match="exited with code 3"):
            future.result(60)
        with pytest.raises(WorkerCrashError, match="2 segment workers were lost"):
            pool.submit(SegmentJob(task, {"image": coded_image(0)}, (64, 64)))


@pytest.mark.slow
def test_worker_may_take_long_to_start_while_it_gives_signs_of_life(monkeypatch):
    slow = (
        "import time, subtok_data.segment.worker.main as worker; "
        "worker._BEAT_S = 0.5; worker.warm_up = lambda: time.sleep(25); "
    )
    module = "subtok_data.data.pool.worker_process"
    monkeypatch.setattr(f"{module}._START_TIMEOUT_S", 20.0)
    head, tail = worker_process._ENTRY.split("from subtok_data.segment", 1)
    monkeypatch.setattr(f"{module}._ENTRY", f"{head}{slow}from subtok_data.segment{tail}")
    task = SegmentTask(FaultyPartitioner(), Budget())
    with ProcessSegmentPool(1, max_restarts=0, timeout_s=20.0) as pool:
        job = SegmentJob(task, {"image": coded_image(0)}, (64, 64))
        assert pool.submit(job).result(100).num_tokens == 1


def test_closed_pool_fails_what_waits(tmp_path):
    task = SegmentTask(FaultyPartitioner(str(tmp_path)), Budget())
    pool = ProcessSegmentPool(1)
    job = SegmentJob(task, {"image": coded_image(0, code=HANG)}, (64, 64))
    futures = [pool.submit(job) for _ in range(5)]
    time.sleep(0.1)
    pool.close()
    pool.close()
    assert all(future.done() for future in futures)
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(SegmentJob(task, {"image": coded_image(0)}, (64, 64)))


# --- exceptions in each stage ---------------------------------------------------------------------


@pytest.mark.parametrize("executor", ["inline", "thread", "process"])
def test_exception_in_the_partitioner(tmp_path, executor):
    with loader_of({9: RAISE}, tmp_path, executor=executor) as loader:
        with pytest.raises(
            SampleError, match="sample 9 failed in segment: .*cannot be cut"
        ) as info:
            list(loader)
        assert isinstance(info.value.__cause__, ValueError)
    with loader_of({9: RAISE}, tmp_path, executor=executor, on_error="replace") as loader:
        assert len(indices(list(loader))) == 16
        (replaced,) = loader.stats().replaced
        assert (replaced.index, "cannot be cut" in replaced.reason) == (9, True)


@pytest.mark.parametrize("look_ahead", [0, 3])
def test_exception_in_inference(tmp_path, look_ahead):
    options = {"fail_on": 7, "executor": "thread", "prefetch_batches": look_ahead}
    with loader_of({}, tmp_path, **options) as loader:
        iterator = iter(loader)
        assert next(iterator)["sample_index"].tolist() == [0, 1, 2, 3]
        with pytest.raises(SampleError, match="sample 7 failed in infer: .*no evidence"):
            next(iterator)
    with loader_of({}, tmp_path, on_error="replace", **options) as loader:
        found = indices(list(loader))
    assert len(found) == 16
    assert 7 not in found


def test_model_that_never_works_is_not_blamed_on_the_images(tmp_path, monkeypatch):
    with loader_of({}, tmp_path, on_error="replace", executor="inline") as loader:

        def broken(*args, **kwargs):
            raise RuntimeError("no weights")

        monkeypatch.setattr(loader.tokenizer.segmenter, "infer", broken)
        with pytest.raises(SubtokError, match="every image of a batch: no weights"):
            list(loader)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_corrupt_file(tmp_path, num_workers):
    options = {"corrupt": {5}, "num_workers": num_workers, "executor": "thread"}
    with loader_of({}, tmp_path, **options) as loader:
        with pytest.raises(SampleError, match="sample 5 failed in decode") as info:
            list(loader)
        assert info.value.index == 5
        assert info.value.stage == "decode"
    with loader_of({}, tmp_path, on_error="replace", **options) as loader:
        found = indices(list(loader))
        (replaced,) = loader.stats().replaced
    assert len(found) == 16
    assert found[5] == replaced.used != 5


def test_replacement_is_the_same_in_a_rebuilt_loader(tmp_path):
    """Failures after collation are replaced alike by look-ahead and by self-finishing batches."""
    from torch.utils.data import DataLoader

    with loader_of({9: RAISE}, tmp_path, executor="thread", on_error="replace") as loader:
        expected = list(loader)
        rebuilt = DataLoader(
            loader.dataset, batch_sampler=loader.batch_sampler, collate_fn=loader.collate_fn
        )
        assert_same_batches(list(rebuilt), expected)


def test_text_that_does_not_fit(tmp_path):
    from helpers.tiny_tokenizers import word_tokenizer

    text = TextConfig(word_tokenizer(), caption="caption", max_length=5)
    images = SubobjectDataset(CodedImages(8), on_error="replace")
    for on_error in ("raise", "replace"):
        collator = SubobjectCollator(faulty_tokenizer(tmp_path), text=text, on_error=on_error)
        with SubobjectLoader(images, collator=collator, batch_size=4, executor="thread") as loader:
            if on_error == "raise":
                with pytest.raises(SampleError, match="max_length"):
                    list(loader)
            else:
                found = indices(list(loader))
                assert len(found) == 8
                assert all(1 + i % 5 <= 3 for i in found)


@pytest.mark.parametrize("executor", ["inline", "process"])
def test_image_that_needs_too_much_memory(tmp_path, executor):
    with loader_of({9: NO_MEMORY}, tmp_path, executor=executor) as loader:
        with pytest.raises(SampleError, match="sample 9 failed in segment: MemoryError: no 99 GB"):
            list(loader)
    with loader_of({9: NO_MEMORY}, tmp_path, executor=executor, on_error="replace") as loader:
        assert len(indices(list(loader))) == 16


def test_image_that_finds_no_shared_memory(tmp_path, monkeypatch):
    """It fails alone, be it on its way to the worker or on its way back."""
    put = Slot.put

    def full(self, arrays):
        if arrays["image"][0, 0, 0] == 6:
            raise MemoryError("no 99 bytes of shared memory")
        return put(self, arrays)

    monkeypatch.setattr(Slot, "put", full)
    with loader_of({}, tmp_path) as loader:
        with pytest.raises(SampleError, match="sample 6 failed in segment: MemoryError"):
            list(loader)
        assert loader.stats().restarts == 0
    monkeypatch.undo()
    slot = Slot(allocate_slot())
    with pytest.raises(MemoryError, match="bytes of shared memory"):
        slot.memory(1 << 62)
    slot.close()


def test_place_of_a_failure_is_named_once(tmp_path):
    with loader_of({6: KILL}, tmp_path) as loader:
        with pytest.raises(SampleError) as info:
            list(loader)
    assert str(info.value).count("failed") == 1
    assert str(info.value).startswith("sample 6 failed in segment: an image of 64×96 pixels")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells that a process is stopped")
def test_stopped_worker_does_not_make_its_image_guilty(tmp_path):
    """Also not when it happens twice to the same image, the first one."""
    task = SegmentTask(FaultyPartitioner(str(tmp_path), 3.0), Budget())
    with ProcessSegmentPool(1, timeout_s=4.0, max_restarts=2) as pool:
        assert pool.submit(SegmentJob(task, {"image": coded_image(0)}, (64, 64))).result(100)
        future = pool.submit(SegmentJob(task, {"image": coded_image(1)}, (64, 64)))
        for restarts in (1, 2):
            while not (pool._processes and pool._processes[0].jobs):
                time.sleep(0.01)
            os.kill(pool.pids[0], signal.SIGSTOP)
            while pool.restarts < restarts:
                time.sleep(0.01)
        assert future.result(100).num_tokens == 2


def test_entries_of_the_search_path_may_be_path_objects(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, Path(__file__).parent])
    task = SegmentTask(FaultyPartitioner(), Budget())
    with ProcessSegmentPool(1) as pool:
        job = SegmentJob(task, {"image": coded_image(0)}, (64, 64))
        assert pool.submit(job).result(100).num_tokens == 1


# --- DataLoader workers ---------------------------------------------------------------------------


def test_killed_dataloader_worker(tmp_path):
    with SubobjectLoader(
        KillsDecoder(16), faulty_tokenizer(tmp_path), batch_size=4, num_workers=1, executor="thread"
    ) as loader:
        with pytest.raises(WorkerCrashError, match="worker died or did not answer: DataLoader"):
            list(loader)


def test_error_in_a_dataloader_worker_is_no_crash(tmp_path):
    with SubobjectLoader(
        BreaksDecoder(8), faulty_tokenizer(tmp_path), batch_size=4, num_workers=1, executor="thread"
    ) as loader:
        with pytest.raises(RuntimeError, match="no such disk") as info:
            list(loader)
    assert not isinstance(info.value, WorkerCrashError)


def test_hung_dataloader_worker(tmp_path):
    start_fork_server()
    with SubobjectLoader(
        HangsDecoder(8),
        faulty_tokenizer(tmp_path),
        batch_size=4,
        num_workers=1,
        executor="thread",
        timeout_s=4.0,
    ) as loader:
        with pytest.raises(WorkerCrashError, match="no batch within timeout_s=4 s"):
            list(loader)


# --- ends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_early_break_and_second_epoch(tmp_path, executor):
    with loader_of({}, tmp_path, executor=executor) as loader:
        for _ in range(3):
            for _batch in loader:
                break
        assert indices(list(loader)) == list(range(16))


def test_old_iterator_ends_when_a_new_one_starts(tmp_path):
    with loader_of({}, tmp_path, executor="thread") as loader:
        old = iter(loader)
        next(old)
        new = iter(loader)
        next(new)
        with pytest.raises(RuntimeError, match="iterated again"):
            next(old)
        assert len(list(new)) == 3


def test_two_loaders_at_once(tmp_path):
    with loader_of({}, tmp_path) as one, loader_of({}, tmp_path) as two:
        for a, b in zip(one, two, strict=True):
            assert_same_batches([a], [b])


def test_loader_dropped_without_close(tmp_path):
    loader = loader_of({}, tmp_path)
    next(iter(loader))
    gone = weakref.ref(loader)
    del loader
    gc.collect()
    assert gone() is None


def test_loader_is_usable_after_an_error_and_after_close(tmp_path):
    with loader_of({9: RAISE}, tmp_path, executor="process") as loader:
        with pytest.raises(SampleError, match="sample 9 failed in segment"):
            list(loader)
        assert indices(next(iter(loader)) for _ in range(1)) == [0, 1, 2, 3]
        loader.close()
        assert indices([next(iter(loader))]) == [0, 1, 2, 3]


def test_shared_memory_too_small(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: _Usage)
    with SubobjectLoader(
        CodedImages(4), faulty_tokenizer(tmp_path, size=512), num_workers=1, batch_size=4
    ) as loader:
        with pytest.raises(ConfigError, match=r"/dev/shm has 1 MB free, but .* may need 22.02 MB"):
            next(iter(loader))


class _Usage:
    free = 1_000_000


SCRIPTS = {
    "imports torch, has no main guard": """
        import torch
        {body}
    """,
    "with a main guard": """
        if __name__ == "__main__":
            {body}
    """,
}
BODY = (
    "import psutil; "
    "from helpers.batches import faulty_tokenizer; from helpers.faulty import CodedImages; "
    "from subtok_data import SubobjectLoader; "
    "loader = SubobjectLoader(CodedImages(8), faulty_tokenizer(), batch_size=4, "
    "segment_workers=2); "
    "print(sum(len(b['sample_index']) for b in loader)); "
    "pids = loader._segment_pool().pids; "
    "maps = [m.path for p in pids for m in psutil.Process(p).memory_maps()]; "
    "print(any('libtorch' in m for m in maps), any('numpy' in m for m in maps)); loader.close()"
)


def run_python(arguments, tmp_path, **options):
    here = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": here}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        **options,
    )


@pytest.mark.skipif(sys.platform == "darwin", reason="psutil lists no memory maps on macOS")
@pytest.mark.parametrize(
    "kind",
    [
        "standard input",
        *(pytest.param(name, marks=pytest.mark.slow) for name in SCRIPTS),
    ],
)
def test_workers_never_import_the_users_main(tmp_path, kind):
    if kind == "standard input":
        done = run_python(["-"], tmp_path, input=BODY)
    else:
        script = tmp_path / "train.py"
        script.write_text(textwrap.dedent(SCRIPTS[kind]).format(body=BODY))
        done = run_python([str(script)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["8", "False", "True"], done.stderr


def test_ctrl_c_and_kill_leave_no_worker(tmp_path):
    script = (
        # Started in the background of a shell, a process inherits that Ctrl-C is ignored.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys, time; from helpers.batches import faulty_tokenizer\n"
        "from helpers.faulty import CodedImages\n"
        "from subtok_data import SubobjectLoader\n"
        "tokenizer = faulty_tokenizer(sleep_s=0.2)\n"
        "loader = SubobjectLoader(CodedImages(800), tokenizer, segment_workers=2)\n"
        "for batch in loader:\n"
        "    print(*loader._segment_pool().pids, flush=True)\n"
        "    time.sleep(60)\n"
    )
    here = str(Path(__file__).parents[1])
    for sign in (signal.SIGINT, signal.SIGKILL):
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONPATH": here},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2
        # As a terminal does: to the whole process group. SIGKILL only to the main process.
        if sign == signal.SIGINT:
            os.killpg(process.pid, sign)
        else:
            process.send_signal(sign)
        _, errors = process.communicate(timeout=60)
        assert ("KeyboardInterrupt" in errors) == (sign == signal.SIGINT)
        deadline = time.monotonic() + 15
        while any(map(psutil.pid_exists, pids)):
            assert time.monotonic() < deadline, "workers outlived the main process"
            time.sleep(0.05)


# --- forks ----------------------------------------------------------------------------------------

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")


def in_fork(work) -> object:
    """What a function gives in a forked child, or how it failed; a child that hangs is killed."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def run() -> None:
        try:
            sender.send(work())
        except Exception as error:
            sender.send(error)

    child = context.Process(target=run)
    child.start()
    sender.close()
    try:
        assert receiver.poll(60), "the child hangs"
        return receiver.recv()
    finally:
        child.join(5)
        if child.is_alive():
            child.kill()
            child.join()
        receiver.close()


@needs_fork
@pytest.mark.parametrize(
    ("executor", "num_workers"), [("process", 0), ("thread", 0), ("inline", 1)]
)
def test_used_loader_in_a_forked_child(tmp_path, executor, num_workers):
    """The child starts anew, and the parent goes on as if nothing had happened."""
    with loader_of({}, tmp_path, executor=executor, num_workers=num_workers) as loader:
        iterator = iter(loader)
        seen = [next(iterator)]

        def again():
            found = indices(list(loader))
            loader.close()
            return found

        assert in_fork(again) == list(range(16))
        failed = in_fork(lambda: next(iterator))
        assert isinstance(failed, RuntimeError)
        assert "iterate the loader anew" in str(failed)
        seen += iterator
    assert indices(seen) == list(range(16))


@needs_fork
@pytest.mark.parametrize("executor", ["process", "thread"])
def test_segment_pool_in_a_forked_child(executor):
    task = SegmentTask(FaultyPartitioner(), Budget())
    job = SegmentJob(task, {"image": coded_image(0)}, (64, 64))
    with make_pool(executor, 1) as pool:
        assert pool.submit(job).result(100).num_tokens == 1
        failed = in_fork(lambda: pool.submit(job))
        assert "make one in each process" in str(failed)


@needs_fork
def test_closing_is_not_held_up_by_forks_that_hold_the_sockets():
    task = SegmentTask(FaultyPartitioner(), Budget())
    with make_pool("process", 1) as pool:
        job = SegmentJob(task, {"image": coded_image(0)}, (64, 64))
        assert pool.submit(job).result(100).num_tokens == 1
        (worker,) = pool._processes
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(100,))
        child.start()
    child.kill()
    child.join()
    assert worker._process.returncode == 0  # it ended by itself; one that lingers is killed


@needs_fork
def test_tokenizer_in_datasets_map_with_processes():
    """After it was used in the parent, where torch's threads are, and are not in its children."""
    import datasets

    tokenizer = SubobjectTokenizer(size=64, num_tokens=4, device="cpu")
    tokenizer(coded_image(0))
    rows = datasets.Dataset.from_dict({"index": list(range(4))})

    def count(row):
        return {"count": tokenizer(coded_image(row["index"])).num_tokens}

    assert rows.map(count, num_proc=2)["count"] == [4] * 4
