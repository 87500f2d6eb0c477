"""The documentation site: ``sphinx-build -W -n docs docs/_build/html``.

``pip install -e '.[docs]'`` brings what it needs.
Needs no network. With ``SUBTOK_DOCS_INTERSPHINX=1`` names of Python, NumPy, PyTorch, transformers
and Pillow become links to their sites.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE / "_extensions")]

from numpydoc.xref import DEFAULT_LINKS

import subtok_data

project = "subtok_data"
author = "The subtok-data authors"
project_copyright = author
release = version = subtok_data.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "myst_parser",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "api_pages",
]
# `reference/` says what the one page for readers of the repository says, and more.
exclude_patterns = ["_build", "api.md", "gallery", "**/README.md"]
root_doc = "index"
nitpicky = True

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

# API --------------------------------------------------------------------------------------------

autosummary_generate = False  # `api_pages` writes the pages, from the sections of build_api.py
autodoc_typehints = "none"  # docstrings say types, shapes and ranges
python_maximum_signature_line_length = 72
numpydoc_show_class_members = False
numpydoc_attributes_as_param_list = True
numpydoc_xref_param_type = True
numpydoc_xref_ignore = "all"  # only names of `numpydoc_xref_aliases`, which `api_pages` adds to
numpydoc_xref_aliases = {
    "bool": ":class:`python:bool`",
    "scalar": "scalar",
    "Tensor": "torch.Tensor",
    "Path": "pathlib.Path",
}

_inventories = {
    "python": ("https://docs.python.org/3", None),
    "numpy": ("https://numpy.org/doc/stable", None),
    "torch": ("https://docs.pytorch.org/docs/stable", None),
    "transformers": ("https://huggingface.co/docs/transformers/main/en", None),
    "PIL": ("https://pillow.readthedocs.io/en/stable", None),
    "matplotlib": ("https://matplotlib.org/stable", None),
}
if os.environ.get("SUBTOK_DOCS_INTERSPHINX"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = _inventories
else:  # types stay words: numpydoc would make them labels and terms of sites that are not there
    numpydoc_xref_aliases |= {
        name: name for name in DEFAULT_LINKS if name not in ("ndarray", "bool")
    }
    numpydoc_xref_aliases["bool"] = "bool"
nitpick_ignore_regex = [
    (r"py:.*", r"(numpy|torch|torchvision|transformers|PIL|matplotlib|datasets|pathlib)\..+"),
    (
        r"py:.*",
        r"(bool|bytes|complex|dict|float|frozenset|int|list|object|range|set|slice|str|tuple|type|None)",
    ),
    (r"(py:.*|std:term)", r"(python:|collections\.|numpy:).+"),
    (r"py:exc", r"[A-Z]\w*(Error|Exception|Warning)"),
]

# Gallery ----------------------------------------------------------------------------------------

# What Windows, macOS and Linux agree on; figures never wait for a window.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TQDM_DISABLE", "1")
warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive")
sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": ("matplotlib", "api_pages.scrape_figures"),
    "capture_repr": (),
    "abort_on_example_error": True,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
    "download_all_examples": False,
    "remove_config_comments": True,
    "min_reported_time": 1000,
    "doc_module": ("subtok_data",),
    "backreferences_dir": None,
    "reset_modules": ("matplotlib",),
    "default_thumb_file": str(HERE / "images" / "tokens.jpg"),
}

# Pages ------------------------------------------------------------------------------------------

html_theme = "pydata_sphinx_theme"
html_title = "subtok_data"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/logo.svg"
html_copy_source = False
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system is
html_show_sourcelink = False
html_theme_options = {
    "logo": {
        "text": "subtok_data",
        "image_light": "_static/logo.svg",
        "image_dark": "_static/logo.svg",
        "alt_text": "subtok_data, first page",
    },
    "navbar_align": "left",
    "show_toc_level": 2,
    "show_prev_next": True,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "pygments_light_style": "tango",
    "pygments_dark_style": "github-dark",
}
html_sidebars = {"index": []}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
