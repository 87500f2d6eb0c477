"""Tokenizers, boundary models and processors go to the hub and come back the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.fake_hub import FakeHub, fake_hub
from helpers.tiny_tokenizers import CHATML, byte_tokenizer
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoProcessor

from subtok_data import (
    BoundaryModel,
    EPOCSegmenter,
    PatchSegmenter,
    SubobjectProcessor,
    SubobjectTokenizer,
)
from subtok_data.errors import ConfigError, WeightsError

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub(tmp_path / "cache", monkeypatch) as server:
        yield server


@pytest.fixture(scope="module")
def tokenizer() -> SubobjectTokenizer:
    return SubobjectTokenizer(size=64, max_tokens=12, order="raster", device="cpu")


def test_a_tokenizer_makes_the_round_trip(hub, tokenizer):
    url = tokenizer.push_to_hub("somebody/tokens")
    assert url.startswith(f"{hub.endpoint}/somebody/tokens/commit/")
    again = SubobjectTokenizer.from_pretrained("somebody/tokens", device="cpu")
    assert again.config() == tokenizer.config()
    assert again.config_hash == tokenizer.config_hash
    assert np.array_equal(again(IMAGE).token_map, tokenizer(IMAGE).token_map)


def test_the_card_says_how_to_use_it(hub, tokenizer):
    tokenizer.push_to_hub("tokens")  # in the account of the token
    card = hub.repositories["somebody/tokens"]["README.md"].decode()
    assert card.startswith("---\nlibrary_name: subtok-data\n")
    assert 'SubobjectTokenizer.from_pretrained("somebody/tokens")' in card
    assert tokenizer.config_hash in card
    hub.repositories["somebody/tokens"]["README.md"] = b"my own words"
    tokenizer.push_to_hub("somebody/tokens")
    assert hub.repositories["somebody/tokens"]["README.md"] == b"my own words"


def test_only_what_is_data_is_fetched(hub, tokenizer, tmp_path):
    tokenizer.push_to_hub("somebody/tokens")
    files = hub.repositories["somebody/tokens"]
    assert {Path(name).suffix for name in files} == {"", ".json", ".md", ".safetensors"}
    files |= {
        "model.safetensors": b"of the model that uses the tokens",
        "boundary_model/weights.bin": b"pickle",
        "boundary_model/code.py": b"raise SystemExit",
    }
    SubobjectTokenizer.from_pretrained("somebody/tokens", device="cpu")
    fetched = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_symlink()}
    assert {"subtok_config.json", "model.safetensors", "config.json"} <= fetched
    assert not fetched & {"weights.bin", "code.py", "README.md"}
    assert "GET /somebody/tokens/resolve" not in " ".join(
        request
        for request in hub.requests
        if request.endswith("/model.safetensors") and "boundary_model" not in request
    )


def test_a_boundary_model_makes_the_round_trip(hub):
    model = BoundaryModel.from_pretrained(device="cpu", dtype="float32", scales=(1.0, 1.5))
    model.push_to_hub("somebody/boundaries")
    again = BoundaryModel.from_pretrained("somebody/boundaries", device="cpu", dtype="float32")
    assert again.config_hash == model.config_hash
    assert np.array_equal(again.predict(IMAGE), model.predict(IMAGE))
    card = hub.repositories["somebody/boundaries"]["README.md"].decode()
    assert 'EPOCSegmenter("somebody/boundaries")' in card
    segmenter = EPOCSegmenter("somebody/boundaries", device="cpu")
    assert segmenter.config() == EPOCSegmenter(model).config()


def test_a_processor_makes_the_round_trip(hub, tokenizer):
    processor = SubobjectProcessor(tokenizer, byte_tokenizer(chat_template=CHATML), shape_size=4)
    processor.push_to_hub("somebody/model")
    call: dict[str, Any] = {"images": IMAGE, "text": "<image>Who?", "return_tensors": "pt"}
    expected = processor(**call)
    for kind in (SubobjectProcessor, AutoProcessor):
        again = kind.from_pretrained("somebody/model")
        assert again.to_dict() == processor.to_dict()
        assert again.chat_template == processor.chat_template
        found = again(**call)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    hashed = SubobjectTokenizer.from_pretrained("somebody/model").config_hash
    assert hashed == tokenizer.config_hash


def test_what_is_not_there_is_an_error(hub, tokenizer):
    with pytest.raises(WeightsError, match=r"'some/thing' is no local folder.*from the hub"):
        SubobjectTokenizer.from_pretrained("some/thing")
    with pytest.raises(WeightsError, match="'some/thing'"):
        SubobjectProcessor.from_pretrained("some/thing")
    BoundaryModel.from_pretrained(device="cpu").push_to_hub("somebody/boundaries")
    with pytest.raises(ConfigError, match=r"no tokenizer.*EPOCSegmenter\('somebody/boundaries'\)"):
        SubobjectTokenizer.from_pretrained("somebody/boundaries")


def test_what_can_hold_code_is_not_uploaded(hub):
    class Scripted(PatchSegmenter):
        def save_model(self, folder: Path) -> None:
            (folder / "net.pt").write_bytes(b"TorchScript")

    with pytest.raises(ConfigError, match=r"not uploaded to 'somebody/patches': \['net\.pt'\]"):
        SubobjectTokenizer(Scripted(16)).push_to_hub("somebody/patches")
    assert hub.repositories == {}


@pytest.mark.parametrize("name", ["/tmp/pushed", "./pushed", "a/b/c", Path("a/b"), ""])
def test_a_path_is_no_repository(hub, tokenizer, name):
    with pytest.raises(ConfigError, match=r"a folder is written by save_pretrained\(folder\)"):
        tokenizer.push_to_hub(name)


def test_a_refusal_of_the_hub_is_passed_on(hub):
    with pytest.raises(HfHubHTTPError, match="401"):
        SubobjectTokenizer(PatchSegmenter(16)).push_to_hub("somebody/patches", token="hf_wrong")
