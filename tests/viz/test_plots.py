"""Pictures of tokens, and the figures made of them."""

from __future__ import annotations

import base64
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from skimage import data
from skimage.segmentation import find_boundaries

from subtok_data import PatchSegmenter, SubobjectTokenizer
from subtok_data.errors import ConfigError
from subtok_data.segment import SegmentTask
from subtok_data.viz import (
    boundary_image,
    mean_color_image,
    outline_image,
    plot_thresholds,
    plot_tokens,
)


@pytest.fixture(scope="module")
def coffee():
    return SubobjectTokenizer(size=128)(data.coffee())


@st.composite
def pictures(draw):
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    image = draw(arrays(np.uint8, (*shape, 3)))
    token_map = draw(arrays(np.int16, shape, elements=st.integers(-1, 5)))
    return image, token_map


@given(pictures())
def test_mean_colors_are_the_means(picture):
    image, token_map = picture
    painted = mean_color_image(image, token_map, empty=(1, 2, 3))
    for token in np.unique(token_map):
        inside = token_map == token
        wanted = (1, 2, 3) if token < 0 else np.rint(image[inside].mean(axis=0))
        assert (painted[inside] == wanted).all()


@given(pictures(), st.integers(1, 3))
def test_outlines_have_the_asked_size_and_leave_one_token_alone(picture, scale):
    image, token_map = picture
    drawn = outline_image(image, token_map, scale=scale)
    assert drawn.shape == (image.shape[0] * scale, image.shape[1] * scale, 3)
    alone = outline_image(image, np.zeros_like(token_map), scale=1)
    assert (alone == image).all()


def test_outlines_lie_on_borders_and_nowhere_else():
    token_map = np.zeros((40, 60), np.int16)
    token_map[10:30, 20:45] = 1
    image = np.full((40, 60, 3), 100, np.uint8)
    drawn = outline_image(image, token_map, color=(255, 0, 0), scale=1)
    assert (drawn[20, 20] == [255, 0, 0]).all()
    near = np.zeros((40, 60), bool)
    for y, x in np.argwhere(find_boundaries(token_map)):
        near[max(0, y - 6) : y + 7, max(0, x - 6) : x + 7] = True
    assert (drawn[~near] == 100).all()


@pytest.mark.parametrize(
    ("options", "words"), [({"width": 0}, "width=0"), ({"scale": 0}, "scale=0")]
)
def test_impossible_lines_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        outline_image(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), int), **options)


def test_image_and_map_must_match():
    with pytest.raises(ConfigError, match=r"\(4, 5, 3\)"):
        mean_color_image(np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4), int))


def test_boundary_image_darkens_with_probability():
    ramp = boundary_image(np.arange(256, dtype=np.uint8)[None])
    assert (np.diff(ramp.astype(int).sum(axis=2)) <= 0).all()


def test_plot_shows_four_panels_and_the_count(coffee, tmp_path):
    figure = coffee.plot()
    assert len(figure.axes) == 4
    words = [text.get_text() for text in figure.texts]
    assert f"{coffee.num_tokens} tokens" in words
    figure.savefig(tmp_path / "coffee.png")
    assert (tmp_path / "coffee.png").stat().st_size > 10_000
    png = figure._repr_png_()  # what notebooks show, alone or in a page
    assert png.startswith(b"\x89PNG")
    address = re.fullmatch(
        r'<img .*max-width: 100%.* src="data:image/png;base64,(.*)">', figure._repr_html_()
    )
    assert base64.b64decode(address[1]) == png


def test_plot_without_boundary_map_has_three_panels():
    tokens = SubobjectTokenizer(PatchSegmenter(16), size=64)(np.zeros((64, 48, 3), np.uint8))
    assert len(plot_tokens(tokens).axes) == 3
    with pytest.raises(ConfigError, match="without a boundary map"):
        plot_thresholds(tokens)


def test_comparison_shows_every_setting(coffee):
    figure = plot_thresholds(
        coffee, thresholds=(0.1, 0.3), strengths=(0.4,), num_tokens=(4, 9, 12), title="cup"
    )
    words = [text.get_text() for text in figure.texts]
    assert len(figure.axes) == 6
    assert {"cup", "t = 0.1", "t = 0.3", "s = 0.4", "N = 4", "4 tokens", "12 tokens"} <= set(words)
    with pytest.raises(ConfigError, match="all empty"):
        plot_thresholds(coffee, thresholds=(), strengths=(), num_tokens=())


def test_plot_of_dropped_tokens(coffee):
    task = SubobjectTokenizer(max_tokens=3, overflow="drop", size=128)
    dropped = task(data.coffee())
    assert (dropped.token_map < 0).any()
    assert len(dropped.plot().axes) == 4
    assert isinstance(task.segment_task(), SegmentTask)


def test_drawing_needs_no_pyplot():
    code = (
        "import sys, numpy as np\n"
        "from subtok_data.viz import outline_image, mean_color_image\n"
        "image, tokens = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), int)\n"
        "outline_image(image, tokens), mean_color_image(image, tokens)\n"
        "assert 'matplotlib' not in sys.modules\n"
        "assert 'torch' not in sys.modules\n"
        "from subtok_data.viz.pages import Panel, Row, image_page\n"
        "image_page([Row([Panel(image, 'x')], 'row', 'remark')], title='t', subtitle='s')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
