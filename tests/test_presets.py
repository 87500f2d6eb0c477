"""Presets are what their names say, and the page lists them all."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from subtok_data import BoundaryModel, EPOCSegmenter, SubobjectTokenizer
from subtok_data.errors import ConfigError
from subtok_data.presets import PRESETS, find_preset

PAGE = Path(__file__).parents[1] / "docs" / "tokenizers.md"
PAPER = {"min_area": 0, "size": 768, "square": True, "full_decode": True}
SAME = {
    "paper-0.1": {"threshold": 0.1, **PAPER},
    "paper-0.3": {"threshold": 0.3, **PAPER},
    "paper-0.5": {"threshold": 0.5, **PAPER},
    **{f"exact-{n}": {"num_tokens": n, "size": 512} for n in (36, 64, 144, 256)},
    "adaptive": {"strength": PRESETS["adaptive"].options["strength"], "size": 512},
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_tokenizer_of_its_options(name):
    found = SubobjectTokenizer.preset(name, device="cpu")
    assert found.config() == SubobjectTokenizer(device="cpu", **SAME[name]).config()


def test_adaptive_is_the_default_of_today():
    assert SubobjectTokenizer.preset("adaptive", device="cpu").config_hash == (
        SubobjectTokenizer(device="cpu").config_hash
    )


def test_options_and_weights_may_be_others():
    model = BoundaryModel.from_pretrained(device="cpu", scales=(1.0, 1.5))
    found = SubobjectTokenizer.preset("paper-0.3", model=model, size=128, max_tokens=9)
    segmenter = EPOCSegmenter(model, threshold=0.3)
    expected = SubobjectTokenizer(segmenter, max_tokens=9, **{**PAPER, "size": 128})
    assert found.config_hash == expected.config_hash
    with pytest.raises(ConfigError, match="num_tokens"):
        SubobjectTokenizer.preset("exact-64", strength=0.2)


def test_the_counts_are_exact():
    image = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    for count in (36, 64, 144, 256):
        assert len(SubobjectTokenizer.preset(f"exact-{count}", device="cpu")(image)) == count


def test_an_unknown_name_lists_the_known():
    with pytest.raises(ConfigError, match=r"preset='paper'.*'paper-0\.1'.*'exact-64'.*'adaptive'"):
        SubobjectTokenizer.preset("paper")


def test_presets_cannot_be_changed():
    with pytest.raises(TypeError):
        PRESETS["adaptive"].options["size"] = 3  # type: ignore[index]
    with pytest.raises(TypeError):
        PRESETS["mine"] = find_preset("adaptive")  # type: ignore[index]


def test_the_page_has_a_row_for_each():
    rows = re.findall(r'^\| `"([\w.-]+)"` \| ([^|]*) \|', PAGE.read_text(encoding="utf-8"), re.M)
    assert rows == [(name, preset.meaning) for name, preset in PRESETS.items()]
