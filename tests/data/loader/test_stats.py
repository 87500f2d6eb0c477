"""Statistics of a loader: what is counted where."""

from __future__ import annotations

import threading
import time

import pytest

from subtok_data.data.loader.stats import StatsRecorder
from subtok_data.segment import compile_seconds
from subtok_data.segment.kernels.cache import compile_in_turn


def stats_of(recorder: StatsRecorder):
    return recorder.stats(segment_s=0, segment_workers=1, restarts=0)


def test_compiling_is_no_time_of_a_stage():
    recorder = StatsRecorder()
    with recorder.timed("finish"), compile_in_turn():
        with compile_in_turn():  # a kernel that it calls
            time.sleep(0.2)
        time.sleep(0.1)
    found = stats_of(recorder)
    assert found.finish_s < 0.1
    assert found.compile_s == pytest.approx(0.3, abs=0.1)
    assert "compiled" not in found.report()  # too short to be told
    assert stats_of(StatsRecorder()).compile_s == 0  # of a loader that is made later


def test_waiting_for_a_thread_that_compiles_is_no_time_of_a_stage():
    recorder, compiling = StatsRecorder(), threading.Event()

    def compile_for_long() -> None:
        with compile_in_turn():
            compiling.set()
            time.sleep(1.2)

    before = compile_seconds(of_thread=True)
    other = threading.Thread(target=compile_for_long)
    other.start()
    compiling.wait()
    with recorder.timed("finish"), compile_in_turn():
        pass
    other.join()
    found = stats_of(recorder)
    assert found.finish_s < 0.5
    assert compile_seconds(of_thread=True) - before > 0.5
    assert found.compile_s == pytest.approx(1.2, abs=0.5)  # once, not for each thread
    assert "kernels were compiled for 1." in found.report()
