"""Pages of the API for the site, one per public name, and the gallery's scraper of figures.

The names and their sections are those of ``build_api.py``; the text is the docstrings'. Pages are
written below ``docs/reference`` before a build.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import build_api
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx_gallery.scrapers import figure_rst

FOLDER = "reference"
_HEAD = """\
API reference
=============

Every public name, by what it is for. Those of the first sections come from ``subtok_data`` itself.
Public methods and properties are on the page of their class.
"""


def setup(app: Sphinx) -> dict[str, Any]:
    """Write the pages, then let autodoc fill them."""
    app.connect("config-inited", _write_pages)
    app.connect("source-read", _adapt_links)
    app.connect("missing-reference", _find_by_last_part)
    return {"parallel_read_safe": True}


def _write_pages(app: Sphinx, config: Any) -> None:
    folder = Path(app.srcdir) / FOLDER
    folder.mkdir(exist_ok=True)
    pages = {"index": _index(build_api.sections())}
    for names in build_api.sections().values():
        for full_name in names:
            pages[full_name] = _page(full_name)
            config.numpydoc_xref_aliases[full_name.rsplit(".", 1)[1]] = full_name
    for name, text in pages.items():
        file = folder / f"{name}.rst"
        if not file.exists() or file.read_text(encoding="utf-8") != text:  # else read in vain
            file.write_text(text, encoding="utf-8")
    for file in folder.glob("*.rst"):
        if file.stem not in pages:
            file.unlink()


def _index(sections: dict[str, list[str]]) -> str:
    parts = [_HEAD]
    for title, names in sections.items():
        parts.append(f"{title}\n{'-' * len(title)}\n")
        table = "".join(f"   ~{name}\n" for name in names)
        parts.append(f".. autosummary::\n   :nosignatures:\n\n{table}")
        tree = "".join(f"   {name}\n" for name in names)
        parts.append(f".. toctree::\n   :hidden:\n\n{tree}")
    return "\n".join(parts)


def _page(full_name: str) -> str:
    module, name = full_name.rsplit(".", 1)
    value = getattr(importlib.import_module(module), name)
    lines = [name, "=" * len(name), "", f".. currentmodule:: {module}", ""]
    if not inspect.isclass(value):
        return "\n".join([*lines, f".. autofunction:: {name}", ""])
    kind = "autoexception" if issubclass(value, BaseException) else "autoclass"
    lines.append(f".. {kind}:: {name}")
    if members := list(_members(value)):
        lines.append(f"   :members: {', '.join(members)}")
        lines.append("   :member-order: bysource")
    return "\n".join([*lines, ""])


def _members(cls: type) -> Iterator[str]:
    """Documented public methods and properties that are written here, not in a base of torch."""
    own = [vars(base) for base in cls.__mro__ if base.__module__.startswith("subtok_data.")]
    for name in {name: None for found in reversed(own) for name in found}:
        value = inspect.getattr_static(cls, name)
        is_method = isinstance(value, property | classmethod | staticmethod)
        if name.startswith("_") and name != "__call__":
            continue
        if (is_method or inspect.isfunction(value)) and inspect.getdoc(getattr(cls, name)):
            yield name


def _adapt_links(_app: Sphinx, docname: str, source: list[str]) -> None:
    """Lead links that suit readers of the repository to where they lead on the site."""
    if "/" not in docname:
        text = source[0].replace("](api.md)", f"]({FOLDER}/index.rst)")
        # Pages outside docs/ are no pages of the site.
        source[0] = re.sub(r"\[([^\]]+)\]\((\.\./[^)]+\.md)\)", r"{download}`\1 <\2>`", text)


def _find_by_last_part(
    _app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element
) -> nodes.Element | None:
    """Resolve ``Prompts`` and ``subtok_data.segment.Prompts`` to ``subtok_data.Prompts``.

    Names are documented where users import them; docstrings may use another face, or none.
    """
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    domain = env.domains["py"]
    parts = target.split(".")
    for length in (2, 1):
        tail = "." + ".".join(parts[-length:])
        if target.startswith("subtok_data.") or length >= len(parts):
            found = [
                name
                for name, entry in domain.objects.items()
                if name.endswith(tail) and not entry.aliased
            ]
            if len(found) == 1:
                return domain.resolve_xref(
                    env, node["refdoc"], _app.builder, "obj", found[0], node, content
                )
    return None


def scrape_figures(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Save the figure that a block ends with; ``plot_tokens`` makes them without ``pyplot``."""
    kind, code = block[:2]
    if kind != "code" or not isinstance(ast.parse(code).body[-1], ast.Expr):
        return ""
    figure = block_vars["example_globals"].get("___")  # value of the last expression
    if not hasattr(figure, "_repr_png_"):
        return ""
    path = next(block_vars["image_path_iterator"])
    Path(path).write_bytes(figure._repr_png_())
    return figure_rst([path], gallery_conf["src_dir"])
