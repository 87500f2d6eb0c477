"""Threads of the look-ahead: the same feeder in every epoch, one torch thread, and a quiet end."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch
from helpers.batches import faulty_tokenizer
from helpers.fake_cuda import FakeCuda
from helpers.faulty import CodedImages, FaultyPartitioner, FaultySegmenter

from subtok_data import SubobjectCollator, SubobjectLoader, SubobjectTokenizer
from subtok_data.data import SubobjectDataset
from subtok_data.data.loader.stage_threads import LastingThread, use_one_torch_thread
from subtok_data.data.loader.stats import StatsRecorder


class Watched(FaultySegmenter):
    """Remembers which threads infer."""

    def infer(self, images, sizes, prompts=None):
        self.threads.append(threading.get_ident())
        return super().infer(images, sizes, prompts)


def test_one_feeder_for_all_epochs():
    segmenter = Watched(FaultyPartitioner())
    segmenter.threads = []
    tokenizer = SubobjectTokenizer(segmenter, size=None)
    with SubobjectLoader(CodedImages(6), tokenizer, batch_size=2, executor="inline") as loader:
        list(loader)
        next(iter(loader))  # and is left
        list(loader)
        assert len(set(segmenter.threads)) == 1
        assert set(segmenter.threads) != {threading.get_ident()}
    assert not [one for one in threading.enumerate() if one.name == "subtok-feeder"]


def test_a_loader_may_be_used_again_after_close():
    loader = SubobjectLoader(CodedImages(4), faulty_tokenizer(), batch_size=2, executor="inline")
    loader.close()
    assert len(list(loader)) == 2
    loader.close()
    loader.close()
    assert len(list(loader)) == 2
    loader.close()


def test_work_that_hangs_does_not_hold_up_the_next():
    thread, go_on = LastingThread("subtok-test"), threading.Event()
    hanging = thread.begin(lambda: bool(go_on.wait(20)))
    found: list[int] = []
    thread.begin(lambda: found.append(1)).join(10)
    assert found == [1]
    assert hanging.is_alive()
    go_on.set()
    hanging.join(10)
    thread.close()


def test_torch_computes_with_one_thread_in_the_finisher_alone(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        found: dict[str, int] = {}
        finish = SubobjectCollator(faulty_tokenizer()).stages().__class__.build

        def build(stages, batch):
            found[threading.current_thread().name] = torch.get_num_threads()
            return finish(stages, batch)

        monkeypatch.setattr("subtok_data.data.collation.stages.BatchStages.build", build)
        with SubobjectLoader(CodedImages(2), faulty_tokenizer(), executor="inline") as loader:
            list(loader)
        assert found == {"subtok-finisher": 1}
        assert torch.get_num_threads() == 3

        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [3], "threads that begin later are not limited"
    finally:
        torch.set_num_threads(before)


def test_one_torch_thread_is_left_alone_where_there_is_one_already(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(torch, "set_num_threads", pytest.fail)
    use_one_torch_thread()


# --- pinned memory ------------------------------------------------------------------------------


def pinned_keys(cuda: FakeCuda, batch: dict) -> tuple[set[str], set[str]]:
    tensors = {key for key, value in batch.items() if isinstance(value, torch.Tensor)}
    return {key for key in tensors if cuda.is_pinned(batch[key])}, tensors


@pytest.mark.parametrize("look_ahead", [0, 3])
def test_finished_batches_are_pinned(monkeypatch, look_ahead):
    cuda = FakeCuda(monkeypatch)
    collator = SubobjectCollator(faulty_tokenizer())
    options = {"executor": "inline", "prefetch_batches": look_ahead, "pin_memory": True}
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    with SubobjectLoader(CodedImages(2), collator=collator, batch_size=2, **options) as loader:
        (batch,) = loader
    pinned, tensors = pinned_keys(cuda, batch)
    assert pinned == tensors
    assert len(cuda.pinned) == len(tensors), "nothing else"


def test_a_pending_batch_is_pinned_when_it_is_finished(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    collator = SubobjectCollator(faulty_tokenizer())
    rows = SubobjectDataset(CodedImages(2))
    with collator.deferred():
        pending = collator([rows[0], rows[1]])
    pending = pending.pin_memory()
    assert not pending.is_finished
    assert not cuda.pinned
    pinned, tensors = pinned_keys(cuda, dict(pending))
    assert pinned == tensors


# --- statistics ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("infers_on", "stage", "word"),
    [
        ("cpu", "infer", "Use a GPU"),
        ("cuda", "infer", "larger batches"),
        ("cuda", "device", "size"),
    ],
)
def test_nobody_on_a_gpu_is_told_to_use_one(infers_on, stage, word):
    recorder = StatsRecorder(batches=1, images=10, infers_on=infers_on)
    recorder.add("elapsed", 1.0)
    recorder.add("wait", 0.9)
    recorder.add(stage, 0.8)
    recorder.add("finish", 0.1)
    stats = recorder.stats(segment_s=0.1, segment_workers=1, restarts=0)
    assert stats.bottleneck == stage
    assert word in stats.report()
    assert ("Use a GPU" in stats.report()) == (infers_on == "cpu")
    assert ("waiting for the device" in stats.report()) == (stage == "device")


class Launched:
    def __init__(self, evidence) -> None:
        self.evidence = evidence

    def result(self):
        time.sleep(0.05)
        return self.evidence


class Asynchronous(FaultySegmenter):
    is_asynchronous = True

    def launch(self, images, sizes, prompts=None):
        return Launched(self.infer(images, sizes))


def test_launching_and_waiting_are_told_apart():
    tokenizer = SubobjectTokenizer(Asynchronous(FaultyPartitioner()), size=None)
    with SubobjectLoader(CodedImages(4), tokenizer, batch_size=2, executor="inline") as loader:
        list(loader)
        stats = loader.stats()
    assert stats.device_wait_s > 0.09
    assert stats.infer_s < 0.05


# --- the end ------------------------------------------------------------------------------------

SCRIPT = """
import sys, time
import numpy as np
from helpers.batches import faulty_tokenizer
from helpers.faulty import CodedImages
from subtok_data import SubobjectLoader

def main():
    loader = SubobjectLoader(
        CodedImages(64), faulty_tokenizer(), batch_size=2, num_workers={workers},
        executor={executor!r}, segment_workers=1,
    )
    batches = iter(loader)
    next(batches)
    {end}
    globals().update(kept=(loader, batches))  # alive until the interpreter is torn down

if __name__ == "__main__":
    main()
"""
ENDS = {
    "end": ("pass", 0, ""),
    "exit": ("sys.exit(3)", 3, ""),
    "error": ("raise ValueError('a step fails')", 1, "ValueError: a step fails"),
    "ctrl-c": ("raise KeyboardInterrupt", 130, "KeyboardInterrupt"),
}


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(("executor", "workers"), [("process", 1), ("thread", 0), ("inline", 1)])
def test_a_process_that_ends_in_the_middle_of_an_epoch_ends_quietly(end, executor, workers):
    statement, code, last_line = ENDS[end]
    script = textwrap.dedent(SCRIPT).format(workers=workers, executor=executor, end=statement)
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": "tests", "PYTHONWARNINGS": "error"},
        check=False,
    )
    assert done.returncode in (code, -2 if end == "ctrl-c" else code), done.stderr
    lines = done.stderr.splitlines()
    if last_line:
        assert lines[-1] == last_line
        assert done.stderr.count("Traceback") == 1
    else:
        assert not lines
    assert time.monotonic() - started < 40, "no thread is waited for in vain"
