"""Start of DataLoader workers in tests."""

from __future__ import annotations

import multiprocessing

_IMPORTS = (
    "torch",
    "torchvision.transforms.v2",
    "transformers",
    "datasets",
    "subtok_data.data.collation.collator",
)


def preload_worker_imports() -> None:
    """Import once, in the server that workers are forks of, what each would import anew.

    The tests start hundreds of workers, and torch alone takes each of them seconds.
    """
    multiprocessing.set_forkserver_preload(list(_IMPORTS))


def start_fork_server() -> None:
    """Wait until workers start fast, so that a test with a time-out measures only them."""
    from subtok_data.data.dataloader_workers import worker_start_method

    if worker_start_method() == "fork":
        return
    process = multiprocessing.get_context("forkserver").Process(target=int)
    process.start()
    process.join()
