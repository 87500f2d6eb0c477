"""Compiled code: where it is kept, what loads it, and that it frees the interpreter lock."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.boundary_maps import smooth_noise

import subtok_data
from subtok_data import watershed_tokens
from subtok_data.segment import warm_up
from subtok_data.segment.kernels.flood import run_queues
from subtok_data.segment.kernels.merging import merge_phase
from subtok_data.segment.kernels.tokens import look_up

PACKAGE = Path(subtok_data.__file__).parent
# Decorates all kernels of the flood, and compiles a small one.
CALL = (
    "import numpy as np\n"
    "from subtok_data import watershed_tokens\n"
    "from subtok_data.segment.kernels.components import join_rows\n"
    "runs, first_run = np.array([[0, 2], [1, 3]], np.int32), np.array([0, 1, 2], np.int32)\n"
    "print(join_rows(runs, first_run, np.zeros(2, np.int32)))\n"
)


def run(code: str, **environment: str) -> str:
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA", "XDG", "PYTHON"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=keep | environment,
        cwd="/",  # not where the package lies: the working folder comes first in the search path
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A copy of the package in which numba cannot write beside the kernels."""
    skip = shutil.ignore_patterns("__pycache__", "boundary", "training")
    shutil.copytree(PACKAGE, tmp_path / "site" / "subtok_data", ignore=skip)
    # Folders without write permission would not stop a root user; a file in the way does.
    (tmp_path / "site" / "subtok_data" / "segment" / "kernels" / "__pycache__").touch()
    return tmp_path / "site"


def test_warm_up_leaves_nothing_to_compile() -> None:
    warm_up()
    kernels = (run_queues, merge_phase, look_up)
    before = [len(k.signatures) for k in kernels]
    levels = smooth_noise(np.random.default_rng(0), (60, 70), 2)
    watershed_tokens(levels, 0.3, max_tokens=5)
    watershed_tokens(levels, num_tokens=[4, 2], merge="boundary", order="raster", min_area=5)
    frozen = levels.copy()
    frozen.flags.writeable = False
    watershed_tokens(frozen[:, ::2], 0.2)
    assert [len(k.signatures) for k in kernels] == before


def test_read_only_install_caches_in_the_users_folder(installed: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    site = str(installed)
    assert run(CALL, PYTHONPATH=site, XDG_CACHE_HOME=str(cache)) == "1\n"
    assert list(cache.rglob("components.join_rows*.nbc"))


def test_read_only_install_and_home_cache_in_a_private_temporary_folder(
    installed: Path, tmp_path: Path
) -> None:
    nowhere = {"XDG_CACHE_HOME": "/dev/null/cache", "HOME": "/dev/null", "TMPDIR": str(tmp_path)}
    assert run(CALL, PYTHONPATH=str(installed), **nowhere) == "1\n"
    (folder,) = tmp_path.glob("subtok-data-kernels-*")
    assert folder.stat().st_mode & 0o077 == 0
    assert list(folder.rglob("components.join_rows*.nbc"))
    shutil.rmtree(folder)
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)  # others could put code here
    assert run(CALL, PYTHONPATH=str(installed), **nowhere) == "1\n"
    assert not list(folder.rglob("*.nbc"))


def test_no_writable_folder_compiles_anew(installed: Path, tmp_path: Path) -> None:
    (tmp_path / f"subtok-data-kernels-{os.getuid()}").touch()
    code = "import logging\nlogging.basicConfig(level='INFO', format='%(message)s')\n" + CALL
    nowhere = {"XDG_CACHE_HOME": "/dev/null/cache", "HOME": "/dev/null", "TMPDIR": str(tmp_path)}
    assert run(code, PYTHONPATH=str(installed), **nowhere) == "1\n"


def test_disk_that_fills_up_costs_the_cache_only(installed: Path, tmp_path: Path) -> None:
    full = "import os\ndef replace(*_): raise OSError(28, 'No space left on device')\n"
    code = full + "os.replace = replace\n" + CALL
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    assert run(code, PYTHONPATH=str(installed), **cache) == "1\n"
    assert not [file for file in tmp_path.rglob("components.join_rows*") if file.is_file()]


@pytest.mark.parametrize(
    "damage",
    ["a bit", *(pytest.param(damage, marks=pytest.mark.slow) for damage in ("cut off", "emptied"))],
)
def test_damaged_cache_is_compiled_anew(installed: Path, tmp_path: Path, damage: str) -> None:
    options = {"PYTHONPATH": str(installed), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    code = CALL + "print(sum(join_rows.stats.cache_hits.values()))\n"
    assert run(code, **options) == "1\n0\n"
    assert run(code, **options) == "1\n1\n"
    (file,) = (tmp_path / "cache").rglob("components.join_rows*.nbc")
    data = bytearray(file.read_bytes())
    if damage == "a bit":
        data[len(data) // 2] ^= 1
    file.write_bytes({"cut off": data[:-100], "emptied": b"", "a bit": data}[damage])
    assert run(code, **options) == "1\n0\n"
    assert run(code, **options) == "1\n1\n"


def test_one_process_compiles_and_the_others_wait(tmp_path: Path) -> None:
    """Eight processes without a cache, which all call a kernel; one of them says so."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", COLD],
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    printed = [p.communicate() for p in processes]
    said = [out.split() for out, _ in printed]
    assert [words[0] for words in said] == ["1"] * 8
    # Two signatures, by one process or by one each.
    assert sum(int(words[2]) for words in said) == 2
    (line,) = "".join(words for _, words in printed).splitlines()
    assert line.startswith("compiling the kernels that segment images: some ten seconds, once")
    again = subprocess.run(
        [sys.executable, "-c", COLD],
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (again.stdout, again.stderr) == ("1 1 0\n", "")


COLD = (
    "import numpy as np\n"
    "from subtok_data.segment.kernels.cache import _TURN\n"
    "from subtok_data.segment.kernels.components import join_rows\n"
    "compiled = []\n"
    "from numba.core import event\n"
    "class Listener(event.Listener):\n"
    "    def on_start(self, event):\n"
    "        if event.data['dispatcher'] is join_rows: compiled.append(event)\n"
    "    def on_end(self, event): pass\n"
    "event.register('numba:compile', Listener())\n"
    "runs, first_run = np.array([[0, 2], [1, 3]], np.int32), np.array([0, 1, 2], np.int32)\n"
    "sets = [join_rows(runs, first_run, np.zeros(2, kind)) for kind in (np.int32, np.int64)]\n"
    "assert _TURN.depth == 0\n"
    "print(*sets, len(compiled))\n"
)


def test_a_failed_compilation_gives_the_turn_back(tmp_path: Path) -> None:
    code = (
        "from subtok_data.segment.kernels.components import join_rows\n"
        "try:\n"
        "    join_rows('text', 2, 3)\n"
        "except Exception as error:\n"
        "    print(type(error).__name__)\n"
        "from subtok_data.segment.kernels.cache import _TURN\n"
        "print(_TURN.depth, _TURN._descriptor)\n"
    )
    assert run(code, NUMBA_CACHE_DIR=str(tmp_path)).split() == ["TypingError", "0", "None"]


@pytest.mark.slow
def test_cold_cache_is_filled_by_eight_processes_together(tmp_path: Path) -> None:
    code = (
        "from subtok_data.segment import warm_up\n"
        "from numba.core import event\n"
        "class Listener(event.Listener):\n"
        "    def on_start(self, event):\n"
        "        function = event.data['dispatcher'].py_func\n"
        "        # Numpy's functions would take longer to compile than all loops together.\n"
        "        assert not function.__module__.startswith('numba.np'), function\n"
        "        cached = hasattr(event.data['dispatcher']._cache, '_cache_file')\n"
        "        if function.__module__.startswith('subtok_data') and cached:\n"
        "            print(function.__name__, event.data['args'])\n"
        "    def on_end(self, event): pass\n"
        "event.register('numba:compile', Listener())\n"
        "warm_up()\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    compiled = [line for p in processes for line in p.communicate()[0].splitlines()]
    assert len(compiled) > 5
    assert len(set(compiled)) == len(compiled)


def test_a_change_in_any_kernel_file_invalidates_the_cache(tmp_path: Path) -> None:
    """Also of code that another kernel of another file was built into."""
    skip = shutil.ignore_patterns("__pycache__", "boundary", "training")
    shutil.copytree(PACKAGE, tmp_path / "subtok_data", ignore=skip)
    kernels = tmp_path / "subtok_data" / "segment" / "kernels"
    head = "from subtok_data.segment.kernels.jit import kernel\n"
    inner = "@kernel\ndef inner(x):\n    return x + {}\n"
    outer = "from subtok_data.segment.kernels.inner import inner\n"
    outer += "@kernel\ndef outer(x):\n    return 10 * inner(x)\n"
    (kernels / "inner.py").write_text(head + inner.format(1))
    (kernels / "outer.py").write_text(head + outer)
    code = "from subtok_data.segment.kernels.outer import outer as f\n"
    code += "print(f(1), sum(f.stats.cache_hits.values()))\n"
    assert run(code, PYTHONPATH=str(tmp_path)) == "20 0\n"
    assert run(code, PYTHONPATH=str(tmp_path)) == "20 1\n"  # from the cache
    (kernels / "inner.py").write_text(head + inner.format(2))
    assert run(code, PYTHONPATH=str(tmp_path)) == "30 0\n"
    assert run(code, PYTHONPATH=str(tmp_path)) == "30 1\n"
    # The two versions do not disturb each other, where containers share a cache for instance.
    (kernels / "inner.py").write_text(head + inner.format(1))
    assert run(code, PYTHONPATH=str(tmp_path)) == "20 1\n"
    (kernels / "flood.py").write_text((kernels / "flood.py").read_text() + "\n")
    assert run(code, PYTHONPATH=str(tmp_path)) == "20 0\n"


def test_describing_a_partition_loads_neither_torch_nor_a_compiler() -> None:
    modules = sorted(
        f"subtok_data.segment.{file.stem}" for file in (PACKAGE / "segment").glob("*.py")
    )
    imports = "".join(f"import {name.removesuffix('.__init__')}\n" for name in modules)
    code = (
        imports
        + "import sys\nprint([n for n in ('torch', 'numba', 'skimage') if n in sys.modules])"
    )
    assert run(code, PYTHONPATH=str(PACKAGE.parent)) == "[]\n"


def test_threads_run_kernels_at_the_same_time() -> None:
    warm_up()
    levels = smooth_noise(np.random.default_rng(0), (1500, 1500), 3)
    ticks = 0
    stop = threading.Event()

    def cut() -> None:
        watershed_tokens(levels, 0.3)
        stop.set()

    thread = threading.Thread(target=cut)
    thread.start()
    while not stop.is_set():
        ticks += 1
        time.sleep(0.0005)
    thread.join()
    # The main thread would not run before the end if the kernels held the GIL.
    assert ticks > 5
