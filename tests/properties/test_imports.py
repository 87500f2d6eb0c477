"""What may import what, and what the parts need to start."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import subtok_data

PACKAGE = Path(subtok_data.__file__).parent
ROOT = PACKAGE.parent
MODULES = sorted(
    module.name for module in pkgutil.walk_packages([str(PACKAGE)], prefix="subtok_data.")
)

# From the bottom up: a part may import parts of lower levels, and itself.
LEVELS = [
    {"errors"},
    {"decode", "images"},
    {"segment"},
    {"boundary"},
    {"segmenters"},
    {"tokenized"},
    {"tokenizer"},
    {"batch", "contract", "pixels"},
    {"nn", "text"},
    {"data"},
    {"imagefree", "integrations"},
    {"cli"},
]
LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts}
BESIDE = {"training", "evaluation", "viz", "figures"}
"""Beside the data path: they may import from the tokenizer down, and one another."""

ALLOWED = {
    ("images", "decode"),
    ("tokenized", "viz"),  # TokenizedImage.plot draws when it is called
}


def part_of(module: str) -> str:
    """Part of the package that a module belongs to: 'data' for 'subtok_data.data.pool'."""
    return module.split(".")[1] if "." in module else ""


def path_of(module: str) -> Path:
    base = PACKAGE.joinpath(*module.split(".")[1:])
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


class _Imports(ast.NodeVisitor):
    """Modules that a file imports, with whether that happens when the file is loaded."""

    def __init__(self) -> None:
        self.found: list[tuple[str, bool]] = []
        self._inside = 0

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for other in node.orelse:
                self.visit(other)
            return
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._inside += 1
        self.generic_visit(node)
        self._inside -= 1

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [(name.name, not self._inside) for name in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, "imports are absolute"
        module = node.module or ""
        names = [f"{module}.{name.name}" for name in node.names]
        self.found += [(name if name in MODULES else module, not self._inside) for name in names]


def imports_of(module: str) -> list[tuple[str, bool]]:
    visitor = _Imports()
    visitor.visit(ast.parse(path_of(module).read_text(encoding="utf-8")))
    return visitor.found


def test_every_part_has_its_level():
    parts = {part_of(module) for module in MODULES}
    assert parts == set(LEVEL) | BESIDE


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    part = part_of(module)
    for name, _ in imports_of(module):
        other = part_of(name)
        if not name.startswith("subtok_data.") or other == part or (part, other) in ALLOWED:
            continue
        if part in BESIDE:
            fine = other in BESIDE or LEVEL[other] <= LEVEL["tokenizer"]
        elif other in BESIDE:
            fine = LEVEL[part] > LEVEL["data"]
        else:
            fine = LEVEL[other] < LEVEL[part]
        assert fine, f"{module} imports {name}"


@pytest.mark.parametrize("module", [m for m in MODULES if part_of(m) in ("segment", "errors")])
def test_what_runs_in_segment_workers_needs_numpy_and_numba_only(module):
    for name, at_load in imports_of(module):
        top = name.split(".")[0]
        allowed = {"numpy", "numba", "llvmlite", "subtok_data"} | set(sys.stdlib_module_names)
        if not at_load:
            allowed |= {"scipy", "skimage"}
        assert top in allowed, f"{module} imports {name}"


def fresh(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "modules",
    ["subtok_data", "subtok_data.segment.task, subtok_data.segment.worker", "subtok_data.cli"],
)
def test_light_parts_import_no_torch(modules):
    fresh(
        f"import sys, {modules}\n"
        "heavy = {'torch', 'transformers', 'datasets', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )


def test_kernels_run_without_torch():
    fresh(
        "import sys, numpy as np\n"
        "from subtok_data.segment.watershed import watershed_tokens\n"
        "watershed_tokens(np.eye(8), num_tokens=3)\n"
        "assert 'torch' not in sys.modules"
    )


@pytest.mark.parametrize("module", [m for m in MODULES if not m.endswith("__main__")])
def test_every_module_can_be_imported_and_says_what_is_public(module):
    loaded = importlib.import_module(module)
    assert loaded.__doc__, f"{module} has no docstring"
    names = getattr(loaded, "__all__", None)
    if names is None:
        assert path_of(module).name == "__init__.py", f"{module} has no __all__"
        return
    assert list(names) == sorted(names, key=_as_ruff_sorts), f"__all__ of {module} is not sorted"
    missing = [name for name in names if not hasattr(loaded, name)]
    assert not missing, f"{module} lacks {missing}"


def _as_ruff_sorts(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions."""
    return (0 if name.isupper() else 1 if name[:1].isupper() else 2, name)


def test_public_names_are_lazy_and_complete():
    assert set(subtok_data._HOME) == set(subtok_data.__all__)
    assert set(subtok_data.__all__) <= set(dir(subtok_data))
    for name in subtok_data.__all__:
        assert getattr(subtok_data, name).__doc__
    with pytest.raises(AttributeError, match="no_such_name"):
        subtok_data.no_such_name  # noqa: B018


def text_files() -> Iterator[Path]:
    suffixes = {".py", ".md", ".toml", ".json", ".txt", ".yml", ".cfg", ""}
    folders = ["subtok_data", "tests", "docs", "examples", "benchmarks", ".ci"]
    files = [file for folder in folders for file in (ROOT / folder).rglob("*")]
    for file in [*files, *ROOT.glob("*")]:
        if file.is_file() and file.suffix in suffixes and "__pycache__" not in file.parts:
            yield file


def test_nothing_names_the_machine_it_was_written_on():
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("not a source checkout")
    somewhere = re.compile("/" + r"(?:work|opt|root|home/\w+|tmp/\w+)/")
    for file in text_files():
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            assert not somewhere.search(line), f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
