"""A batch waits for all of its images at once, however each of them ends."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

import pytest

from subtok_data.data.collation import BatchInProgress, RawSample, SampleInProgress


def batch_of(futures: list[Future[Any]]) -> BatchInProgress:
    samples = [
        SampleInProgress(raw=RawSample(index=0, path=None), images=[], futures=list(part))
        for part in (futures[:2], futures[2:])
    ]
    return BatchInProgress(samples=samples)


def waiting(batch: BatchInProgress) -> threading.Thread:
    thread = threading.Thread(target=batch.wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("early", [0, 2, 5])
def test_it_waits_for_results_failures_and_what_is_cancelled(early):
    futures: list[Future[Any]] = [Future() for _ in range(5)]
    ends = [
        lambda: futures[4].set_result(1),
        lambda: futures[0].set_exception(ValueError("an image")),
        lambda: futures[2].cancel(),
        lambda: futures[1].set_result(2),
        lambda: futures[3].set_result(3),
    ]
    for end in ends[:early]:
        end()
    thread = waiting(batch_of(futures))
    for end in ends[early:]:
        assert thread.is_alive()
        end()
    thread.join(10)
    assert not thread.is_alive()


def test_nothing_to_wait_for():
    batch_of([]).wait()
