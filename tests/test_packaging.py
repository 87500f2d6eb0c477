"""What is installed: every file of the package, and nothing beside it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """Files of the checkout that git knows and that are there."""
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def settings() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_package_data_covers_every_file_that_is_not_python(tracked, settings):
    package = ROOT / "subtok_data"
    patterns = settings["tool"]["setuptools"]["package-data"]["subtok_data"]
    covered = {file for pattern in patterns for file in package.glob(pattern)}
    files = {ROOT / name for name in tracked if name.startswith("subtok_data/")}
    data = {file for file in files if file.suffix != ".py"}
    assert package / "py.typed" in data
    assert not data - covered, "add a pattern to [tool.setuptools.package-data]"


def test_every_folder_of_modules_is_a_package_with_a_stub(tracked):
    folders = {Path(name).parent for name in tracked if name.startswith("subtok_data/")}
    for folder in folders:
        if any((ROOT / folder).glob("*.py")):
            assert (ROOT / folder / "__init__.py").is_file(), folder
            # The commands are started, not imported.
            assert (ROOT / folder / "__init__.pyi").is_file() or folder.name == "cli", folder


def test_python_versions_are_those_that_are_tested(settings):
    named = [c.rsplit(" ", 1)[1] for c in settings["project"]["classifiers"] if " :: 3." in c]
    assert settings["project"]["requires-python"] == f">={named[0]}"
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    for version in (named[0], named[-1]):
        assert f'python: "{version}"' in workflow


def test_oldest_torch_of_the_workflow_is_the_oldest_that_is_allowed(settings):
    constraints = (ROOT / ".ci" / "oldest.txt").read_text(encoding="utf-8").splitlines()
    oldest = [line.removesuffix(".*").replace("==", ">=") for line in constraints if "==" in line]
    assert len(oldest) == 2
    assert set(oldest) <= set(settings["project"]["dependencies"])


@pytest.mark.slow
def test_wheel_has_the_package_and_nothing_else(tracked, tmp_path):
    pytest.importorskip("setuptools", minversion="77", reason="older ones cannot build this")
    for name in tracked:
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "source" / name)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=tmp_path / "source", check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert sorted(names) == sorted(name for name in tracked if name.startswith("subtok_data/"))


USER = """
from subtok_data import SubobjectCollator, SubobjectLoader, SubobjectTokenizer
from subtok_data.batch import Batch

tokenizer = SubobjectTokenizer()
for batch in SubobjectLoader(["a.png"], tokenizer):
    reveal_type(batch["num_visual_tokens"])
    reveal_type(batch["of the dataset"])
collated: Batch = SubobjectCollator(tokenizer)([])
"""


@pytest.mark.slow
def test_an_editable_install_is_seen_by_type_checkers(tmp_path):
    """Editors complete ``batch["``: the package is found by a path, not by an import hook."""
    pytest.importorskip("setuptools", minversion="77", reason="older ones cannot build this")
    build = "import sys; from setuptools import build_meta; build_meta.build_editable(sys.argv[1])"
    source = tmp_path / "source"
    shutil.copytree(
        ROOT / "subtok_data",
        source / "subtok_data",
        ignore=shutil.ignore_patterns("__pycache__", "weights"),
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        paths = {name: archive.read(name).decode() for name in archive.namelist() if ".pth" in name}
    (path,) = paths.values()
    assert path.strip() == str(source)
    (tmp_path / "user.py").write_text(USER)
    (tmp_path / "pyrightconfig.json").write_text(f'{{"extraPaths": ["{path.strip()}"]}}')
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "user.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert 'Type of "batch["num_visual_tokens"]" is "Tensor"' in done.stdout, done.stdout
    assert 'Type of "batch["of the dataset"]" is "Any"' in done.stdout
    assert "0 errors" in done.stdout
