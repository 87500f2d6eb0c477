"""What may import what, and what the parts need to start."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import subtok_data

PACKAGE = Path(subtok_data.__file__).parent
ROOT = PACKAGE.parent
FOLDERS = {"subtok_data"}
MODULES: list[str] = []
for _module in pkgutil.walk_packages([str(PACKAGE)], prefix="subtok_data."):
    MODULES.append(_module.name)
    if _module.ispkg:
        FOLDERS.add(_module.name)
MODULES.sort()

# From the bottom up: a part may import parts of lower levels of its folder, and itself.
LEVELS: dict[str, list[set[str]]] = {
    "subtok_data": [
        {"errors"},
        {"arguments"},
        {"presets"},
        {"device_streams", "devices", "hub", "images", "transformers_io"},
        {"segment"},
        {"annotations", "boundary", "viz"},
        {"segmenters"},
        {"tokenized_image", "token_record"},
        {"token_column"},
        {"tokenizer"},
        {"batch", "evaluation"},
        {"nn", "text"},
        {"data"},
        {"imagefree", "integrations", "training"},
        {"cli"},
        {"__main__"},
    ],
    "subtok_data.segment": [
        {"kernels"},
        {"partition"},
        {"geometry"},
        {"merging"},
        {"budget"},
        {"watershed"},
        {"masks"},
        {"prompts"},
        {"partitioners"},
        {"task"},
        {"warmup"},
        {"worker"},
    ],
    "subtok_data.data": [
        {"position", "process_limit"},
        {"pool", "dataloader_workers"},
        {"store"},
        {"cache"},
        {"replacement"},
        {"datasets"},
        {"collation", "regions"},
        {"loader", "tokenize"},
    ],
}


@dataclass(frozen=True)
class Import:
    """One name that a module takes from another.

    ``source`` is what the statement names, ``home`` the module that defines the name.
    """

    module: str
    source: str
    name: str
    home: str
    at_load: bool
    typing_only: bool


def path_of(module: str) -> Path:
    base = PACKAGE.joinpath(*module.split(".")[1:])
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def read_face(folder: str) -> dict[str, str]:
    """Names that the stub of a folder gives, and the file or folder below that each comes from."""
    stub = path_of(folder).with_suffix(".pyi")
    if not stub.is_file():
        return {}
    return {
        name.name: f"{folder}.{node.module}"
        for node in ast.parse(stub.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }


FACES = {folder: read_face(folder) for folder in FOLDERS}


def home_of(source: str, name: str) -> str:
    """Module that defines what ``from source import name`` gives."""
    while name in FACES.get(source, {}):
        source = FACES[source][name]
    below = f"{source}.{name}"
    return below if below in MODULES else source


class _Reader(ast.NodeVisitor):
    def __init__(self, module: str) -> None:
        self.module = module
        self.own: list[Import] = []
        self.foreign: list[tuple[str, bool]] = []
        self._inside = self._typing = 0

    def visit_If(self, node: ast.If) -> None:
        typing = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        self._typing += typing
        for statement in node.body:
            self.visit(statement)
        self._typing -= typing
        for statement in node.orelse:
            self.visit(statement)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._inside += 1
        self.generic_visit(node)
        self._inside -= 1

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Import(self, node: ast.Import) -> None:
        for name in node.names:
            assert not name.name.startswith("subtok_data."), f"{self.module}: import from a face"
            self._foreign(name.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, f"{self.module}: imports are absolute"
        source = node.module or ""
        if source.split(".")[0] != "subtok_data":
            self._foreign(source)
            return
        if source == "subtok_data" and {name.name for name in node.names} == {"__version__"}:
            return
        for name in node.names:
            home = home_of(source, name.name)
            at_load = not self._inside and not self._typing
            self.own.append(Import(self.module, source, name.name, home, at_load, self._typing > 0))

    def _foreign(self, name: str) -> None:
        if not self._typing:
            self.foreign.append((name, not self._inside))


def read(module: str) -> _Reader:
    reader = _Reader(module)
    reader.visit(ast.parse(path_of(module).read_text(encoding="utf-8")))
    return reader


READ = {module: read(module) for module in MODULES}


def meeting_point(one: str, other: str) -> tuple[str, str, str]:
    """Deepest folder of both modules, and the file or folder of it that each belongs to."""
    left, right = one.split("."), other.split(".")
    if one in FOLDERS:
        left.append("__init__")  # a folder's own file stands beside its others
    depth = 0
    while depth < min(len(left), len(right)) - 1 and left[depth] == right[depth]:
        depth += 1
    return ".".join(left[:depth]), left[depth], right[depth]


@pytest.mark.parametrize("folder", sorted(LEVELS))
def test_every_part_has_its_level(folder):
    inside = [m.removeprefix(folder + ".") for m in MODULES if m.startswith(folder + ".")]
    parts = {module.split(".")[0] for module in inside}
    assert parts == set().union(*LEVELS[folder])


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    for found in READ[module].own:
        folder, mine, theirs = meeting_point(module, found.home)
        if folder not in LEVELS or mine == theirs:
            continue
        level = {part: at for at, parts in enumerate(LEVELS[folder]) for part in parts}
        assert level[theirs] < level[mine], f"{module} imports {found.name} from {found.home}"


@pytest.mark.parametrize("module", MODULES)
def test_other_folders_are_imported_by_their_face(module):
    for found in READ[module].own:
        folder, _, theirs = meeting_point(module, found.home)
        unit = f"{folder}.{theirs}"
        assert found.source in (unit, folder), (
            f"{module} imports {found.name} from {found.source}: take it from {unit}"
        )


def test_no_circles():
    """Nor by imports inside functions or for type checks only."""
    needs = {m: {f.home for f in READ[m].own if f.home != m} for m in MODULES}
    while free := {module for module in needs if not needs[module] & needs.keys()}:
        for module in free:
            del needs[module]
    # What is left lies on a circle or above one: drop what nobody of the rest needs.
    while top := needs.keys() - set().union(*needs.values()):
        for module in top:
            del needs[module]
    assert not needs, {module: sorted(homes & needs.keys()) for module, homes in needs.items()}


def test_faces_have_no_name_of_a_file_in_them():
    """Importing a file binds its name in the folder, over a function of that name."""
    for folder, face in FACES.items():
        inside = [m.removeprefix(folder + ".") for m in MODULES if m.startswith(folder + ".")]
        files = {module.split(".")[0] for module in inside}
        assert not files & face.keys(), folder


@pytest.mark.parametrize("folder", sorted(FOLDERS - {"subtok_data.cli"}))
def test_every_folder_has_a_lazy_face(folder):
    assert FACES[folder], f"{folder} has no stub"
    loaded = importlib.import_module(folder)
    assert set(loaded.__all__) == set(FACES[folder])
    for name in FACES[folder]:
        assert getattr(loaded, name) is not None


@pytest.mark.parametrize(
    "module", [m for m in MODULES if m.split(".")[1] in ("segment", "arguments", "errors")]
)
def test_what_runs_in_segment_workers_needs_numpy_and_numba_only(module):
    for name, at_load in READ[module].foreign:
        top = name.split(".")[0]
        allowed = {"numpy", "numba", "llvmlite", "lazy_loader"} | set(sys.stdlib_module_names)
        if not at_load:
            allowed |= {"scipy", "skimage", "pycocotools"}
        assert top in allowed, f"{module} imports {name}"


def fresh(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "modules",
    ["subtok_data", "subtok_data.segment.task, subtok_data.segment.worker.main", "subtok_data.cli"],
)
def test_light_parts_import_no_torch(modules):
    fresh(
        f"import sys, {modules}\n"
        "heavy = {'torch', 'transformers', 'datasets', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )


def test_a_loader_starts_without_what_only_some_need():
    """torchvision brings torch's compiler along, which doubles the start of every worker."""
    fresh(
        "import sys, subtok_data\n"
        "subtok_data.SubobjectLoader, subtok_data.SubobjectTokenizer, subtok_data.BoundaryModel\n"
        "heavy = {'torchvision', 'transformers', 'datasets', 'matplotlib', 'torch._dynamo'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )


@pytest.mark.parametrize("segmenter", ["PatchSegmenter(32)", "EPOCSegmenter(device='cpu')"])
def test_first_tokens_come_without_what_only_some_need(segmenter):
    fresh(
        "import sys, numpy as np\n"
        "from subtok_data import EPOCSegmenter, PatchSegmenter, SubobjectTokenizer\n"
        f"SubobjectTokenizer({segmenter}, size=64)(np.zeros((64, 64, 3), np.uint8))\n"
        "heavy = {'torchvision', 'transformers', 'datasets', 'pyarrow', 'skimage', 'matplotlib',\n"
        "         'torch._dynamo', 'accelerate'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )


def test_kernels_run_without_torch():
    fresh(
        "import sys, numpy as np\n"
        "from subtok_data.segment import watershed_tokens\n"
        "watershed_tokens(np.eye(8), num_tokens=3)\n"
        "assert 'torch' not in sys.modules"
    )


@pytest.mark.parametrize("module", [m for m in MODULES if not m.endswith("__main__")])
def test_every_module_can_be_imported_and_says_what_is_public(module):
    loaded = importlib.import_module(module)
    assert loaded.__doc__, f"{module} has no docstring"
    names = getattr(loaded, "__all__", None)
    if module in FOLDERS:
        return
    assert names is not None, f"{module} has no __all__"
    assert list(names) == sorted(names, key=_as_ruff_sorts), f"__all__ of {module} is not sorted"
    missing = [name for name in names if not hasattr(loaded, name)]
    assert not missing, f"{module} lacks {missing}"


def _as_ruff_sorts(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions."""
    return (0 if name.isupper() else 1 if name[:1].isupper() else 2, name)


def test_public_names_are_lazy_and_documented():
    for name in subtok_data.__all__:
        assert getattr(subtok_data, name).__doc__
    with pytest.raises(AttributeError, match="no_such_name"):
        subtok_data.no_such_name  # noqa: B018


def text_files() -> Iterator[Path]:
    suffixes = {".py", ".pyi", ".md", ".toml", ".json", ".txt", ".yml", ".yaml", ".cfg", ".cff", ""}
    folders = ["subtok_data", "tests", "tools", "docs", "examples", "benchmarks", ".ci", ".github"]
    files = [file for folder in folders for file in (ROOT / folder).rglob("*")]
    for file in [*files, *ROOT.glob("*")]:
        if (
            file.name != ".git"
            and file.is_file()
            and file.suffix in suffixes
            and "__pycache__" not in file.parts
        ):
            yield file


def test_nothing_names_the_machine_it_was_written_on():
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("not a source checkout")
    somewhere = re.compile("/" + r"(?:work|opt|root|home/\w+|tmp/\w+)/")
    for file in text_files():
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            assert not somewhere.search(line), f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
