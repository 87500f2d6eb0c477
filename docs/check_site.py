"""Look at every page of the built site in a headless browser, narrow and wide.

    python docs/check_site.py docs/_build/html [--screenshots FOLDER]

Checked on each page, at 390 and 1300 pixels: images load, nothing is wider than the window, no
errors on the console, no request that fails or leaves the site. Once: the search finds what it
shall, and the dark theme is another colour. Needs ``playwright`` and Chromium or Chrome on the
machine (``SUBTOK_BROWSER`` names another binary); exit code 1 with a list of what is wrong, 2
without a browser.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.server
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WIDTHS = (390, 1300)
SEARCHES = {
    "strength": "watershed.html",
    "SubobjectTokenizer": "reference/subtok_data.SubobjectTokenizer.html",
    "overlap masks partition": "segmenters.html",
}
"""Words, and a page that has to be among the results."""
SHOWN = ("index", "guide", "batch_format", "auto_gallery/index", "auto_gallery/plot_7_batch")
SHOWN += (
    "auto_gallery/plot_1_controls",
    "auto_gallery/plot_8_training",
    "reference/index",
    "reference/subtok_data.SubobjectTokenizer",
)
"""Pages of which ``--screenshots`` keeps an image."""
_OVERFLOW = """() => {
    const wide = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth <= wide) return [];
    const inside = (e) => {  // of a box that scrolls by itself
        for (let p = e.parentElement; p && p !== document.body; p = p.parentElement)
            if (getComputedStyle(p).overflowX !== "visible") return true;
        return false;
    };
    return [...document.querySelectorAll("body *")]
        .filter((e) => e.getBoundingClientRect().right > wide + 1 && !inside(e))
        .map((e) => `${e.tagName.toLowerCase()} "${e.textContent.trim().slice(0, 60)}"`)
        .concat([`${document.documentElement.scrollWidth - wide} px`]);
}"""
_BROKEN = """() => [...document.images].filter((i) => i.src && i.loading !== "lazy")
    .filter((i) => !i.complete || !i.naturalWidth).map((i) => i.getAttribute("src"))"""


def find_browser() -> str | None:
    """Return the path of a Chromium or Chrome on this machine, if there is one."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return os.environ.get("SUBTOK_BROWSER") or next(filter(None, map(shutil.which, names)), None)


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder on a free port of this machine; give its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def check_site(folder: Path, browser: str, screenshots: Path | None = None) -> list[str]:
    """Return what is wrong with a built site, one line each, and print what was looked at."""
    from playwright.sync_api import sync_playwright

    problems: list[str] = []
    pages = sorted(p.relative_to(folder).with_suffix("") for p in folder.rglob("*.html"))
    pages = [page for page in pages if not {"_static", "_modules"} & set(page.parts)]
    images = 0
    with serve(folder) as address, sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        for width in WIDTHS:
            tab = chrome.new_context(viewport={"width": width, "height": 900}).new_page()
            found: list[str] = []
            _listen(tab, address, found)
            for page in pages:
                tab.goto(f"{address}/{page}.html", wait_until="load")
                found += [f"wider than the window: {one}" for one in tab.evaluate(_OVERFLOW)]
                found += [f"image does not load: {one}" for one in tab.evaluate(_BROKEN)]
                images += tab.evaluate("document.images.length")
                if screenshots and str(page) in SHOWN:
                    screenshots.mkdir(parents=True, exist_ok=True)
                    name = f"{str(page).replace('/', '_')}_{width}.png"
                    tab.screenshot(path=screenshots / name, full_page=True)
                problems += [f"{page}, {width} px: {one}" for one in found]
                found.clear()
            if width == WIDTHS[-1]:
                problems += _check_search(tab, address) + _check_themes(tab, address, screenshots)
                problems += found
        chrome.close()
    widths = " and ".join(map(str, WIDTHS))
    print(f"{len(pages)} pages at {widths} px, {images // len(WIDTHS)} images: ", end="")
    print(f"{len(problems)} problems; {len(SEARCHES)} searches, two themes")
    return problems


def _listen(tab: Any, address: str, found: list[str]) -> None:
    tab.on("pageerror", lambda error: found.append(f"error: {error}"))
    tab.on(
        "console",
        lambda message: message.type == "error" and found.append(f"console: {message.text}"),
    )
    tab.on(
        "requestfailed",
        # What the next page interrupts is no failure.
        lambda request: (
            "ERR_ABORTED" not in (request.failure or "")
            and found.append(f"request failed: {request.url}")
        ),
    )
    tab.on(
        "request",
        lambda request: (
            not request.url.startswith((address, "data:", "blob:"))
            and found.append(f"leaves the site: {request.url}")
        ),
    )


def _check_search(tab: Any, address: str) -> list[str]:
    problems: list[str] = []
    for words, expected in SEARCHES.items():
        tab.goto(f"{address}/search.html?q={words.replace(' ', '+')}")
        try:
            tab.wait_for_selector(f'ul.search a[href*="{expected}"]', timeout=20_000)
        except Exception:
            hits = tab.eval_on_selector_all("ul.search a", "all => all.map((a) => a.href)")
            problems.append(f"search for {words!r} does not find {expected}, but {hits[:5]}")
    return problems


def _check_themes(tab: Any, address: str, screenshots: Path | None) -> list[str]:
    tab.goto(f"{address}/index.html")
    colours = set()
    for theme in ("light", "dark"):
        tab.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
        colours.add(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
        if screenshots:
            tab.screenshot(path=screenshots / f"index_{theme}.png", full_page=True)
    return [] if len(colours) == 2 else [f"light and dark look the same: {colours}"]


def main(arguments: list[str] | None = None) -> int:
    """Check the site that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--screenshots", type=Path, metavar="FOLDER")
    options = parser.parse_args(arguments)
    if not (options.folder / "index.html").is_file():
        parser.error(f"no site in {options.folder}: sphinx-build -W -n docs {options.folder}")
    browser = find_browser()
    if browser is None:
        print("no Chromium or Chrome on this machine: install one, or set SUBTOK_BROWSER")
        return 2
    problems = check_site(options.folder, browser, options.screenshots)
    print("\n".join(problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
