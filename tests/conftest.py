"""The real photos, the order of files, and a check that a test leaves nothing behind.

Nothing is a process, thread, descriptor or shared memory.
"""

from __future__ import annotations

import gc
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from helpers.workers import preload_worker_imports

# Idle threads of torch that spin would slow everything down where cores are scarce.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

preload_worker_imports()

# The longest file and the one that compiles the kernels for all others run first, side by side.
FIRST = ("tests/properties/test_types.py", "tests/segment/kernels/test_kernels.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        file = item.nodeid.split("::")[0]
        return FIRST.index(file) if file in FIRST else len(FIRST)

    items.sort(key=rank)
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu and not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def find_data() -> Path | None:
    """Folder of the real images: $SUBTOK_TEST_DATA, or shared/data beside the checkout."""
    named = os.environ.get("SUBTOK_TEST_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    return folder if (folder / "photos").is_dir() else None


@pytest.fixture(scope="session")
def data_dir() -> Path:
    folder = find_data()
    if folder is None:
        pytest.skip("real images are absent: set SUBTOK_TEST_DATA to their folder")
    return folder


def open_resources() -> dict[str, object]:
    """What a loader could leave behind."""
    process = psutil.Process()
    children = {
        child.pid
        for child in process.children(recursive=True)
        # The fork server and the resource tracker serve the whole test process.
        if not {"forkserver", "resource_tracker"} & set(_words(child))
    }
    return {
        "processes": children,
        "threads": {t.name for t in threading.enumerate() if t.name.startswith("subtok")},
        "shared memory": _shared_memory(),
        "descriptors": _descriptors(),
    }


def _words(child: psutil.Process) -> list[str]:
    try:
        return re.findall(r"forkserver|resource_tracker", " ".join(child.cmdline()))
    except psutil.Error:
        return []


def _shared_memory() -> set[str]:
    """Named shared memory, without what processes that have nothing to do with the tests use."""
    if not os.path.isdir("/dev/shm"):
        return set()
    # By inode: a semaphore is mapped under the name it had before it got its own.
    named = {entry.inode(): entry.name for entry in os.scandir("/dev/shm")}
    if not named:
        return set()
    family = {os.getpid(), *(c.pid for c in psutil.Process().children(recursive=True))}
    for process in psutil.process_iter():
        if process.pid in family or not named:
            continue
        try:
            maps = Path(f"/proc/{process.pid}/maps").read_text()
        except OSError:
            continue
        for inode in re.findall(r" (\d+) +/dev/shm/", maps):
            named.pop(int(inode), None)
    return set(named.values())


def _descriptors() -> int:
    """Sockets and anonymous memory of this process; pipes and files of torch come and go."""
    if not os.path.isdir("/proc/self/fd"):
        return 0
    links = (os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
    targets = [os.readlink(link) for link in links if os.path.islink(link)]
    return sum(target.startswith(("socket:", "/memfd:")) for target in targets)


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fail when a test leaves processes, threads, descriptors or shared memory behind."""
    before = open_resources()
    yield
    deadline = time.monotonic() + 10
    while True:
        gc.collect()
        after = open_resources()
        left = {
            name: after[name] - before[name]  # type: ignore[operator]
            for name in ("processes", "threads", "shared memory")
        }
        left["descriptors"] = max(0, after["descriptors"] - before["descriptors"])  # type: ignore
        if not any(left.values()):
            return
        if time.monotonic() > deadline:
            pytest.fail(f"left behind: { {name: value for name, value in left.items() if value} }")
        time.sleep(0.1)
