"""DataLoader workers: scripts and notebooks as users write them; the end of the main process."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from helpers.batches import faulty_tokenizer
from helpers.faulty import CodedImages

from subtok_data import SubobjectDataset, SubobjectLoader
from subtok_data.data.dataloader_workers import (
    WorkerDataLoader,
    accelerator_in_use,
    worker_start_method,
)
from subtok_data.errors import ConfigError

linux = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
HELPERS = str(Path(__file__).parents[1])
OPTIONS = {"batch_size": 2, "executor": "inline", "num_workers": 1}


def start(script: str, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    file = folder / "train.py"
    file.write_text(textwrap.dedent(script))
    return subprocess.Popen(
        [sys.executable, str(file), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": HELPERS},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(script: str, folder: Path, *arguments: str) -> tuple[int, str, str]:
    process = start(script, folder, *arguments)
    output, errors = process.communicate(timeout=200)
    return process.returncode, output, errors


# --- scripts as users write them ------------------------------------------------------------------


@linux
def test_script_without_main_guard(tmp_path):
    """Lambdas, classes of the script and open handles reach workers as with a plain DataLoader."""
    code, output, errors = run(
        """
        import sqlite3
        import numpy as np
        from helpers.batches import faulty_tokenizer
        from subtok_data import SubobjectDataset, SubobjectLoader

        database = sqlite3.connect("rows.db", check_same_thread=False)
        database.execute("create table rows (name text)")

        class Mine:
            def __len__(self):
                return 6

            def __getitem__(self, index):
                assert database.execute("select count(*) from rows").fetchone() == (0,)
                return {"image": np.full((32, 32, 3), index, np.uint8)}

        dataset = SubobjectDataset(Mine(), transform=lambda sample: sample)
        loader = SubobjectLoader(dataset, faulty_tokenizer(), batch_size=2, num_workers=2)
        for epoch in range(2):
            print([batch["sample_index"].tolist() for batch in loader])
        """,
        tmp_path,
    )
    assert code == 0, errors
    assert output.splitlines() == ["[[0, 1], [2, 3], [4, 5]]"] * 2


@pytest.mark.slow  # the notebook among the examples does the same
@linux
def test_notebook(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    cells = [
        f"import sys; sys.path.append({HELPERS!r})\nimport numpy as np\n"
        "from helpers.batches import faulty_tokenizer\n"
        "from subtok_data import SubobjectDataset, SubobjectLoader",
        "class Mine:\n"
        "    def __len__(self):\n        return 6\n"
        "    def __getitem__(self, index):\n"
        "        return {'image': np.full((32, 32, 3), index, np.uint8)}",
        "dataset = SubobjectDataset(Mine(), transform=lambda sample: sample)\n"
        "options = {'batch_size': 2, 'num_workers': 2}\n"
        "with SubobjectLoader(dataset, faulty_tokenizer(), **options) as loader:\n"
        "    found = [batch['sample_index'].tolist() for batch in loader]\n"
        "found",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(one) for one in cells])
    client = nbclient.NotebookClient(
        notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    done = client.execute()
    assert done.cells[-1].outputs[-1]["data"]["text/plain"] == "[[0, 1], [2, 3], [4, 5]]"


def test_method_follows_the_accelerator(monkeypatch):
    assert (worker_start_method() == "fork") == (sys.platform == "linux")
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    assert accelerator_in_use()
    assert worker_start_method() in ("forkserver", "spawn")


def test_given_method_is_obeyed_and_nothing_set_by_the_user_is_lost():
    def init(worker_id: int) -> None: ...

    loader = WorkerDataLoader(range(4), num_workers=1, worker_init_fn=init)
    assert sorted(int(one) for one in loader) == [0, 1, 2, 3]
    assert loader.multiprocessing_context is None
    assert loader.worker_init_fn is init
    given = WorkerDataLoader(range(4), num_workers=1, multiprocessing_context="spawn")
    assert given.multiprocessing_context.get_start_method() == "spawn"


def mark_worker(worker_id: int) -> None:
    os.environ["MARKED_BY_THE_USER"] = str(worker_id)


class Marked:
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> str:
        return os.environ["MARKED_BY_THE_USER"]


@pytest.mark.parametrize("method", ["forkserver", pytest.param("fork", marks=linux)])
def test_worker_init_fn_of_the_user_is_called(method):
    loader = WorkerDataLoader(
        Marked(), num_workers=1, worker_init_fn=mark_worker, multiprocessing_context=method
    )
    assert list(loader) == [["0"], ["0"]]


class WithConnection(CodedImages):
    def __init__(self) -> None:
        super().__init__(4)
        self.options = {"database": sqlite3.connect(":memory:")}


@pytest.mark.parametrize(
    ("dataset", "named"),
    [
        (WithConnection, r"dataset\.dataset\.options\['database'\] cannot be sent"),
        (
            lambda: SubobjectDataset(CodedImages(4), transform=lambda sample: sample),
            r"dataset\.transform cannot be sent to the DataLoader workers: <function",
        ),
    ],
)
def test_what_cannot_be_pickled_is_named(dataset, named):
    options = {**OPTIONS, "multiprocessing_context": "spawn"}
    with SubobjectLoader(dataset(), faulty_tokenizer(), **options) as loader:
        with pytest.raises(ConfigError, match=named) as info:
            next(iter(loader))
    assert "functions of a module" in str(info.value)
    assert "'spawn'" in str(info.value)


def test_worker_that_cannot_start_is_no_lack_of_memory(tmp_path):
    code, _, errors = run(
        """
        from helpers.batches import faulty_tokenizer
        from helpers.faulty import CodedImages
        from subtok_data import SubobjectLoader

        loader = SubobjectLoader(
            CodedImages(4), faulty_tokenizer(), num_workers=1, multiprocessing_context="spawn",
            executor="inline",
        )
        next(iter(loader))
        """,
        tmp_path,
    )
    assert code == 1
    assert "WorkerCrashError" in errors
    assert "if __name__ == '__main__':` around what it runs" in errors
    assert "memory" not in errors


@linux
def test_workers_fork_while_another_loader_iterates():
    from subtok_data import SubobjectTokenizer

    tokenizer = SubobjectTokenizer(size=64, num_tokens=4, device="cpu")
    options = {**OPTIONS, "num_workers": 2, "executor": "thread", "segment_workers": 1}
    with SubobjectLoader(CodedImages(12), tokenizer, **options) as train:
        for number, _ in enumerate(train):
            with SubobjectLoader(CodedImages(4), tokenizer, **options) as validation:
                assert len(list(validation)) == 2
            if number == 2:
                break


# --- the end of the main process ------------------------------------------------------------------

TRAINER = """
    import os, signal, sys, time
    import psutil
    from helpers.batches import faulty_tokenizer
    from helpers.faulty import CodedImages, HangsDecoder
    from subtok_data import SubobjectLoader
    from subtok_data.data import tokenize_dataset

    def main(method, end, what):
        if what == "tokenize":
            from subtok_data.data import dataloader_workers
            dataloader_workers.worker_start_method = lambda: method
            import threading
            threading.Thread(
                target=tokenize_dataset, args=(HangsDecoder(64), faulty_tokenizer(), "out"),
                kwargs=dict(num_workers=2, batch_size=1, executor="inline"), daemon=True,
            ).start()
            while len(psutil.Process().children(recursive=True)) < 2:
                time.sleep(0.1)
            time.sleep(2)
        else:
            loader = SubobjectLoader(
                HangsDecoder(64), faulty_tokenizer(), num_workers=2,
                multiprocessing_context=method, segment_workers=1,
            )
            next(iter(loader))
        print(*(p.pid for p in psutil.Process().children(recursive=True)), flush=True)
        if end == "exit":
            os._exit(3)
        os.kill(os.getpid(), getattr(signal, end))
        time.sleep(60)

    if __name__ == "__main__":
        main(*sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("method", "end", "what"),
    [
        pytest.param("fork", "SIGKILL", "loader", marks=linux),
        ("forkserver", "SIGKILL", "loader"),
        pytest.param("spawn", "SIGKILL", "loader", marks=pytest.mark.slow),
        pytest.param("fork", "SIGTERM", "loader", marks=[linux, pytest.mark.slow]),
        pytest.param("forkserver", "SIGTERM", "loader", marks=pytest.mark.slow),
        pytest.param("forkserver", "SIGABRT", "loader", marks=pytest.mark.slow),
        pytest.param("forkserver", "exit", "loader", marks=pytest.mark.slow),
        pytest.param("fork", "exit", "loader", marks=[linux, pytest.mark.slow]),
        pytest.param("forkserver", "SIGKILL", "tokenize", marks=pytest.mark.slow),
    ],
)
def test_workers_end_with_the_main_process(tmp_path, method, end, what):
    """Also workers that are busy, here for ever, with a sample."""
    process = start(TRAINER, tmp_path, method, end, what)
    pids = [int(pid) for pid in process.stdout.readline().split()]
    family = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    process.wait(60)
    ended = time.monotonic()
    _, errors = process.communicate()
    assert len(pids) >= 2, errors
    left = psutil.wait_procs(family, timeout=5)[1]
    for one in left:
        one.send_signal(signal.SIGKILL)
    assert not left, f"alive {time.monotonic() - ended:.0f} s after the main process"
