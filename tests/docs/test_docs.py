"""README and docs: code runs, links lead somewhere, every public name is described."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

import subtok_data

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = [*sorted((ROOT / "examples").glob("*.md")), *sorted((ROOT / "examples").glob("*.py"))]
EXTRAS = ("trl",)
"""Pages about a package that comes with an extra of the same name."""
_BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_OBJECT = re.compile(r"(?<!-m )\bsubtok_data(?:\.[A-Za-z_]\w*)+(?!\w|/|\.py)")


def code_of(page: Path) -> str:
    """Python blocks of a page, each on the lines where it stands, so that errors point there."""
    text = page.read_text(encoding="utf-8")
    lines = [""] * (text.count("\n") + 1)
    for found in _BLOCK.finditer(text):
        if found[1].strip() == "python":
            first = text.count("\n", 0, found.start(2))
            block = found[2].splitlines()
            lines[first : first + len(block)] = block
    return "\n".join(lines)


@pytest.mark.parametrize("page", [p for p in PAGES if code_of(p).strip()], ids=lambda p: p.name)
def test_code_runs_and_prints_what_its_comments_say(page, tmp_path, monkeypatch, capsys):
    if page.stem in EXTRAS:
        pytest.importorskip(page.stem, reason=f"pip install 'subtok-data[{page.stem}]'")
    code = code_of(page)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUBTOK_CACHE", str(tmp_path / "cache"))
    exec(compile(code, str(page), "exec"), {"__name__": f"docs_{page.stem}"})
    printed = capsys.readouterr().out
    for comment in re.findall(r"  # prints (.*)$", code, re.MULTILINE):
        pieces = [re.escape(piece.strip()) for piece in comment.split("…")]  # … is anything
        assert re.search(".*".join(pieces), printed, re.DOTALL), f"{comment!r} not in {printed!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in _LINK.findall(page.read_text(encoding="utf-8")):
        if not target.startswith(("http", "#")):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES + EXAMPLES, ids=lambda p: p.name)
def test_objects_are_named_by_the_face_of_their_folder(page):
    for found in _OBJECT.finditer(page.read_text(encoding="utf-8")):
        parts = found[0].split(".")
        for depth in range(3, len(parts) + 1):
            file = ROOT.joinpath(*parts[:depth]).with_suffix(".py")
            assert not file.is_file(), f"{page.name}: {found[0]}"
        assert _exists(parts), f"{page.name}: there is no {found[0]}"


def _exists(parts: list[str]) -> bool:
    value = importlib.import_module(parts[0])
    for depth, name in enumerate(parts[1:], start=2):
        if not hasattr(value, name) and importlib.util.find_spec(".".join(parts[:depth])):
            importlib.import_module(".".join(parts[:depth]))
        if not hasattr(value, name):
            return False
        value = getattr(value, name)
    return True


def test_paths_of_tests_lead_somewhere():
    for page in PAGES:
        for found in re.findall(r"`(tests/[\w/.]+)", page.read_text(encoding="utf-8")):
            assert (ROOT / found).exists(), f"{page.name}: {found}"


def test_readme_leads_to_every_page():
    linked = set(_LINK.findall((ROOT / "README.md").read_text(encoding="utf-8")))
    pages = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")}
    assert pages <= linked, pages - linked


def test_api_page_is_up_to_date_and_complete():
    spec = importlib.util.spec_from_file_location("build_api", ROOT / "docs" / "build_api.py")
    build_api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build_api)
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for name in subtok_data.__all__:
        assert f"### `{name}`" in page, f"{name} has no entry: run python docs/build_api.py"
    assert page == build_api.render(), "run python docs/build_api.py"


def test_every_error_class_is_documented():
    from subtok_data import errors

    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    assert [name for name in errors.__all__ if f"`{name}`" not in page] == []


def test_readme_shows_the_two_commands():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "pip install -e . && subtok demo" in readme
    assert "pip install -e '.[test]' && pytest" in readme
    assert "pip install --quiet -e '.[test]'" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
