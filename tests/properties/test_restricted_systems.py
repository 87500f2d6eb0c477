"""Systems that grant less: no shared memory, a full temporary folder, no further processes.

Each is made for one child process, in mount namespaces and by limits, which only root may set.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

HELPERS = str(Path(__file__).parents[1])
SCRIPT = """
import os, resource, sys, tempfile
from helpers.batches import faulty_tokenizer
from helpers.faulty import CodedImages
from subtok_data import SubobjectLoader

workers, executor, limit, size = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
if limit:
    resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
if "ONLY_FOLDER" in os.environ:  # after the imports: torch's own need a folder
    tempfile.tempdir = None
    tempfile._candidate_tempdir_list = lambda: [os.environ["ONLY_FOLDER"]]
with SubobjectLoader(
    CodedImages(6), faulty_tokenizer(size=size or None), batch_size=2,
    num_workers=workers, segment_workers=2, executor=executor,
) as loader:
    print([index for _ in range(2) for batch in loader for index in batch["sample_index"].tolist()])
"""
TWO_EPOCHS = str(list(range(6)) * 2)
SHARED_MEMORY = {
    "missing": (
        "bare=$(mktemp -d); mount -t tmpfs none $bare; "
        "cp -a /dev/null /dev/zero /dev/random /dev/urandom $bare; mount --bind $bare /dev"
    ),
    "read-only": "mount -o remount,ro,bind /dev/shm",
    "of 8 KB": "mount -t tmpfs -o size=8k none /dev/shm",
}
FULL_FOLDER = (
    "mkdir -p full; mount -t tmpfs -o size=16k none full; export ONLY_FOLDER=$PWD/full; "
    "cat /dev/zero > full/all 2>/dev/null; test $(df --output=avail full | tail -1) -eq 0"
)
NOBODY = [
    *("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"),
    *("--inh-caps=-all,+dac_override", "--ambient-caps=-all,+dac_override"),
]
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def run(command: list[str], folder: Path) -> tuple[int, str, str]:
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **ONE_THREAD, "PYTHONPATH": HELPERS},
        capture_output=True,
        text=True,
        timeout=200,
    )
    return done.returncode, done.stdout.strip(), done.stderr.strip()


@functools.cache
def works(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=20).returncode == 0
    except OSError:
        return False


def run_mounted(
    mounts: str, folder: Path, workers: int, executor: str, size: int = 0
) -> tuple[int, str, str]:
    if not works("unshare", "-m", "mount", "--make-rprivate", "/"):
        pytest.skip("mounts of one process need Linux, unshare and root")
    (folder / "script.py").write_text(SCRIPT)
    child = f"{sys.executable} script.py {workers} {executor} 0 {size}"
    shell = f"mount --make-rprivate / && {mounts} && exec {child}"
    return run(["unshare", "-m", "bash", "-c", shell], folder)


@pytest.mark.parametrize(
    "kind",
    ["missing", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("read-only", "of 8 KB"))],
)
@pytest.mark.parametrize("executor", ["inline", pytest.param("process", marks=pytest.mark.slow)])
def test_without_workers_no_shared_memory_is_needed(tmp_path, kind, executor):
    """Token maps of segment workers travel in memory without a name, which is not limited."""
    code, output, errors = run_mounted(SHARED_MEMORY[kind], tmp_path, 0, executor)
    assert (code, output) == (0, TWO_EPOCHS), errors


@pytest.mark.parametrize("kind", SHARED_MEMORY)
def test_workers_without_shared_memory_are_refused(tmp_path, kind):
    code, _, errors = run_mounted(SHARED_MEMORY[kind], tmp_path, 2, "inline")
    assert code == 1
    last = errors.splitlines()[-1]
    assert "ConfigError: DataLoader workers hand their batches over in shared memory" in last
    assert "or take num_workers=0" in last


def test_shared_memory_is_measured_where_the_size_of_images_is_known(tmp_path):
    code, _, errors = run_mounted(SHARED_MEMORY["of 8 KB"], tmp_path, 2, "inline", size=64)
    assert code == 1
    last = errors.splitlines()[-1]
    assert "ConfigError: /dev/shm has 0.00" in last
    assert "may need 0." in last


@pytest.mark.slow
def test_temporary_folder_is_full(tmp_path):
    code, output, errors = run_mounted(FULL_FOLDER, tmp_path, 0, "process")
    assert (code, output) == (0, TWO_EPOCHS), errors
    code, _, errors = run_mounted(FULL_FOLDER, tmp_path, 2, "inline")
    assert code == 1
    assert "workers keep their sockets in a temporary folder" in errors.splitlines()[-1]


@pytest.mark.parametrize(
    ("limit", "workers", "executor"), [(2, 0, "process"), (4, 0, "process"), (3, 2, "inline")]
)
def test_no_further_processes(tmp_path, limit, workers, executor):
    if not works(*NOBODY, "true"):
        pytest.skip("a limit of processes needs setpriv, and root to become nobody")
    (tmp_path / "script.py").write_text(SCRIPT)
    tmp_path.chmod(0o777)
    child = [sys.executable, "script.py", str(workers), executor, str(limit), "0"]
    code, _, errors = run([*NOBODY, *child], tmp_path)
    assert code == 1
    last = errors.splitlines()[-1]
    assert "ConfigError: the system starts no further thread or process" in last
    assert "raise the limit (ulimit -u" in last
