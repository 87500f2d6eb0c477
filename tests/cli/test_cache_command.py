"""``subtok cache``: what it prints and returns, and what it leaves of a cache."""

from __future__ import annotations

import json

import numpy as np
import pytest

from subtok_data import PatchSegmenter, SubobjectLoader, SubobjectTokenizer
from subtok_data.cli import main


@pytest.fixture
def cache(tmp_path):
    """Three files of two configurations; one image is in two of them."""
    images = [np.full((32, 32, 3), level, np.uint8) for level in (0, 100, 200)]
    for own, patch in ((images[:2], 8), (images[2:], 8), (images[:1], 16)):
        tokenizer = SubobjectTokenizer(PatchSegmenter(patch), size=32)
        with SubobjectLoader(own, tokenizer, executor="inline", cache=tmp_path / "cache") as loader:
            list(loader)
    return tmp_path / "cache"


def described(capsys, *arguments):
    assert main(["cache", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_info_counts_by_configuration(cache, capsys):
    found = described(capsys, "info", cache)
    assert (found["segments"], found["records"]) == (3, 4)
    assert sorted(part["records"] for part in found["parts"]) == [1, 3]
    assert found["bytes"] == sum(path.stat().st_size for path in cache.rglob("*.parquet"))
    assert {part["config"]["segmenter"] for part in found["parts"]} == {"patch"}
    assert main(["cache", "info", str(cache)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "float32-cpu" in lines[2]


def test_compact_makes_one_file_of_each_configuration(cache, capsys):
    found = described(capsys, "compact", cache)
    assert (found["segments"], found["records"]) == (2, 4)
    keep = max(found["parts"], key=lambda part: part["records"])["config_hash"]
    found = described(capsys, "compact", cache, "--only", keep)
    assert [part["config_hash"] for part in found["parts"]] == [keep]
    assert main(["cache", "compact", str(cache), "--only", "other"]) == 2
    assert "'other' is no configuration in the cache" in capsys.readouterr().err


def test_info_names_what_is_damaged(cache, capsys):
    path = next(cache.rglob("*.parquet"))
    path.write_bytes(path.read_bytes()[:-5])
    assert main(["cache", "info", str(cache)]) == 1
    assert f"damaged: {path}" in capsys.readouterr().err
    assert main(["cache", "compact", str(cache)]) == 0
    capsys.readouterr()
    assert main(["cache", "info", str(cache)]) == 0


def test_clear_deletes_a_cache_and_nothing_else(cache, tmp_path, capsys):
    photo = tmp_path / "photos" / "cat.jpg"
    photo.parent.mkdir()
    photo.write_bytes(b"a photo")
    assert main(["cache", "clear", str(photo.parent)]) == 2
    assert "is no cache of tokens: it holds 'cat.jpg'" in capsys.readouterr().err
    assert photo.exists()
    assert main(["cache", "clear", str(cache)]) == 0
    assert "deleted 4 records in 3 files" in capsys.readouterr().err
    assert not cache.exists()
    assert main(["cache", "clear", str(cache)]) == 2
