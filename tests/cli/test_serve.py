"""The page of ``subtok demo --serve``: what its controls do, and the page in a real browser."""

from __future__ import annotations

import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from skimage import data

from subtok_data import PatchSegmenter, SubobjectTokenizer
from subtok_data.cli import main
from subtok_data.cli.serve import CONTROLS, Photo, cut, describe, next_box, serve
from subtok_data.errors import ConfigError


@pytest.fixture(scope="module")
def tokenizer():
    return SubobjectTokenizer(size=128, device="cpu")


@pytest.fixture(scope="module")
def photo(tokenizer):
    return Photo.read(tokenizer, data.coffee())


def test_strength_is_what_the_tokenizer_does(photo):
    for strength in (0.2, 0.4):
        tokens = SubobjectTokenizer(size=128, strength=strength, device="cpu")(data.coffee())
        found = cut(photo, "strength", strength)
        np.testing.assert_array_equal(found.token_map, tokens.token_map)


def test_each_control_decides(photo):
    assert cut(photo, "count", 17.0).num_tokens == 17
    fine, coarse = (cut(photo, "strength", s).num_tokens for s in (0.1, 0.8))
    assert fine > coarse
    assert cut(photo, "threshold", 0.05).num_tokens != cut(photo, "threshold", 0.6).num_tokens
    with pytest.raises(ConfigError, match="expected one of"):
        cut(photo, "color", 1)


@pytest.mark.parametrize("control", CONTROLS)
def test_boxes_become_tokens(photo, control):
    value = {"strength": 0.4, "count": 20, "threshold": 0.1}[control]
    found = cut(photo, control, value, [(10, 10, 50, 60), (70, 20, 100, 40)])
    assert {0, 1} <= set(found.token_fields["prompt"])
    token = int(np.flatnonzero(found.token_fields["prompt"] == 0)[0])
    y, x = np.argwhere(found.token_map == token)[0]
    assert describe(found, x, y).endswith("; from a box")


def test_a_click_names_the_token_of_the_pixel(photo):
    found = cut(photo, "count", 9)
    for token in range(9):
        y, x = np.argwhere(found.token_map == token)[0]
        area = (found.token_map == token).sum()
        assert describe(found, int(x), int(y)).startswith(f"token {token} of 9: {area} pixels")
    assert describe(found, 10_000, -3) == describe(found, found.token_map.shape[1] - 1, 0)


def test_two_clicks_are_a_box():
    corner, box = next_box(None, 5, 5)
    assert (corner, box) == ((5, 5), None)
    assert next_box(corner, 5, 5) == (None, (5, 5, 6, 6))


def test_a_segmenter_without_a_boundary_map_is_refused():
    with pytest.raises(ConfigError, match="leave out --segmenter"):
        Photo.read(SubobjectTokenizer(PatchSegmenter(16), size=32), data.coffee())


def test_without_gradio_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", "--serve", "--size", "64"]) == 2
    assert "pip install 'subtok-data[demo]'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of gradio and what it stands on
def test_the_page_in_a_browser(tokenizer, tmp_path):
    """Controls, clicks and boxes; nothing but this machine is asked for anything."""
    pytest.importorskip("gradio", reason="pip install 'subtok-data[demo]'")
    sync_api = pytest.importorskip("playwright.sync_api", reason="drives the browser")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    import gradio

    before = os.environ.get("GRADIO_ANALYTICS_ENABLED")
    address = serve(tokenizer, data.coffee(), 0, block=False)
    try:
        assert address.startswith("http://127.0.0.1:")
        with sync_api.sync_playwright() as tools:
            browser = tools.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1300, "height": 1100})
            asked: list[str] = []
            problems: list[str] = []
            page.on("request", lambda request: asked.append(request.url))
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
            page.goto(address)
            words = page.get_by_label("what is there")
            words.wait_for()

            def until(text: str) -> None:
                page.wait_for_function(
                    "t => [...document.querySelectorAll('textarea, input')]"
                    ".some(e => e.value.includes(t))",
                    arg=text,
                    timeout=60_000,
                )

            until("tokens, 0 from boxes")
            page.get_by_role("radio", name="count").click()
            until("60 tokens, 0 from boxes")
            drawn = page.locator("img").nth(1)
            drawn.click(position={"x": 100, "y": 60})
            until("of 60: ")
            page.get_by_role("radio", name="draw a box").click()
            drawn.click(position={"x": 60, "y": 40})
            until("first corner at x ")
            drawn.click(position={"x": 150, "y": 120})
            until("60 tokens, 1 from boxes")
            page.get_by_role("button", name="remove the boxes").click()
            until("60 tokens, 0 from boxes")
            Image.fromarray(np.rot90(data.chelsea())).save(tmp_path / "cat.png")
            page.get_by_label("Remove Image").click()
            page.locator("input[type=file]").first.set_input_files(tmp_path / "cat.png")
            page.wait_for_function(  # upright: 128 pixels high, drawn at twice that
                "[...document.querySelectorAll('img')].some(e => e.naturalHeight === 256)",
                timeout=60_000,
            )
            until("60 tokens, 0 from boxes")
            browser.close()
        outside = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
        assert outside == []
        assert problems == []
    finally:
        gradio.close_all()
        if before is None:
            os.environ.pop("GRADIO_ANALYTICS_ENABLED", None)
