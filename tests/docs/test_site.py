"""The site: a place for every page, a build without a warning, links, and a look by a browser."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SCRIPTS = sorted((DOCS / "gallery").glob("*.py"))
_TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def toctree(page: str) -> list[str]:
    found = _TOCTREE.findall((DOCS / page).read_text(encoding="utf-8"))
    lines = [line.strip() for block in found for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(":")]


def test_every_page_is_in_a_toctree_once():
    named = toctree("index.md") + toctree("guide.md")
    # The site has the docstrings themselves instead of the page that lists them.
    pages = {page.stem for page in DOCS.glob("*.md")} - {"index", "api"}
    generated = {"auto_gallery/index", "reference/index"}
    assert sorted(named) == sorted(pages | generated)


def test_gallery_has_scripts_with_a_title_and_a_text():
    assert 6 <= len(SCRIPTS) <= 10
    for script in SCRIPTS:
        assert script.name.startswith("plot_"), f"{script.name} would not be run"
        text = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8")))
        title, line, empty, *rest = text.splitlines()
        assert line == "=" * len(title), script.name
        assert empty == "", script.name
        assert rest, script.name


def test_what_a_build_writes_is_not_committed():
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert {"docs/_build/", "docs/auto_gallery/", "docs/reference/"} <= set(ignored)


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    for module in ("sphinx", "myst_parser", "numpydoc", "pydata_sphinx_theme", "sphinx_gallery"):
        pytest.importorskip(module, reason="pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site") / "html"
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    environment.pop("SUBTOK_DOCS_INTERSPHINX", None)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", str(DOCS), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-5000:] or done.stdout[-5000:]
    return folder


class Page(HTMLParser):
    """Ids of a page, and what it links to or shows."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.targets: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        for key, value in attributes:
            if key in ("id", "name") and value:
                self.ids.add(value)
            elif key in ("href", "src") and value:
                self.targets.append(value)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_site_builds_and_its_links_lead_somewhere(site):
    files = [file for file in site.rglob("*.html") if "_static" not in file.parts]
    pages = {file: Page(file) for file in files}
    assert len(pages) > 100
    wrong = []
    for file, page in pages.items():
        for target in page.targets:
            link = urlsplit(target)
            if link.scheme or link.netloc:
                continue
            aim = (file.parent / unquote(link.path)).resolve() if link.path else file
            if not aim.exists():
                wrong.append(f"{file.relative_to(site)}: {target}")
            elif link.fragment and aim in pages and unquote(link.fragment) not in pages[aim].ids:
                wrong.append(f"{file.relative_to(site)}: {target} has no such anchor")
    assert not wrong, "\n".join(sorted(set(wrong))[:40])


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_site_in_a_browser(site):
    pytest.importorskip("playwright", reason="pip install -e '.[docs]'")
    done = subprocess.run(
        [sys.executable, str(DOCS / "check_site.py"), str(site)], capture_output=True, text=True
    )
    if done.returncode == 2:
        pytest.skip(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_browser_check_notices_what_is_wrong(tmp_path):
    pytest.importorskip("playwright", reason="pip install -e '.[docs]'")
    spec = importlib.util.spec_from_file_location("check_site", DOCS / "check_site.py")
    check_site = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check_site)
    browser = check_site.find_browser()
    if browser is None:
        pytest.skip("no Chromium or Chrome on this machine")
    wrong = {
        "wide": "<div style='width: 500px'>wide</div>",
        "image": "<img src='none.png'>",
        "script": "<script>nothing.here()</script>",
        "far": "<img src='https://example.invalid/a.png'>",
    }
    for name, body in wrong.items():
        text = f"<!doctype html><link rel=icon href='data:,'><body>{body}"
        (tmp_path / f"{name}.html").write_text(text)
    (tmp_path / "index.html").write_text("<!doctype html><link rel=icon href='data:,'>")
    check_site.SEARCHES = {}
    found = "\n".join(check_site.check_site(tmp_path, browser))
    assert "wide, 390 px: wider than the window" in found
    assert "wide, 1300 px" not in found
    assert "image, 390 px: image does not load: none.png" in found
    assert "script, 1300 px: error" in found
    assert "far, 390 px: leaves the site" in found
    assert "light and dark look the same" in found
