"""Weights of the boundary model: what is loaded, what is refused, what tells them apart."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.boundary_networks import Constant, pictures
from torch import nn

from subtok_data.boundary import DEFAULT_WEIGHTS, BoundaryModel, load_network
from subtok_data.errors import WeightsError


def tiny_segformer(num_labels: int = 1) -> nn.Module:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    config = SegformerConfig(
        num_labels=num_labels,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=8,
    )
    return SegformerForSemanticSegmentation(config)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    tiny_segformer().save_pretrained(folder)
    return folder


def test_packaged_weights():
    model = BoundaryModel.from_pretrained(device="cpu", dtype="float32")
    assert model.num_parameters == pytest.approx(3.01e6, rel=0.01)
    assert model.name == DEFAULT_WEIGHTS.name == "lite1"
    assert str(model.device) == "cpu"
    assert repr(model) == (
        "BoundaryModel('lite1', 3.01 M parameters, device='cpu', dtype='float32')"
    )
    card = (DEFAULT_WEIGHTS / "README.md").read_text(encoding="utf-8")
    assert "license: apache-2.0" in card
    assert "CC BY-SA 4.0" in card


def test_round_trip(tiny_folder: Path, tmp_path: Path):
    images = pictures((64, 96))
    module = tiny_segformer()
    model = BoundaryModel(module, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), dtype="float32")
    model.save_pretrained(tmp_path / "saved")
    again = BoundaryModel.from_pretrained(tmp_path / "saved", device="cpu", dtype="float32")
    assert np.array_equal(again.predict(images)[0], model.predict(images)[0])
    assert again.config_hash == model.config_hash
    files = {file.name for file in (tmp_path / "saved").iterdir()}
    assert files == {"config.json", "model.safetensors", "preprocessor_config.json"}


def test_lite_network_round_trip(tmp_path: Path):
    from subtok_data.boundary import LiteBoundaryNet

    torch.manual_seed(0)
    net = LiteBoundaryNet()
    mean, std = net.config.image_mean, net.config.image_std
    model = BoundaryModel(net, mean=mean, std=std, dtype="float32")
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "subtok-lite"
    again = BoundaryModel.from_pretrained(tmp_path, device="cpu", dtype="float32")
    images = pictures((70, 90))
    assert np.array_equal(again.predict(images)[0], model.predict(images)[0])
    assert again.config_hash == model.config_hash
    (tmp_path / "preprocessor_config.json").unlink()  # config.json knows the normalisation too
    assert BoundaryModel.from_pretrained(tmp_path, device="cpu").config_hash == model.config_hash


def test_config_hash_tells_what_differs(tiny_folder: Path):
    packaged = BoundaryModel.from_pretrained(device="cpu")
    hashes = {
        packaged.config_hash,
        BoundaryModel.from_pretrained(tiny_folder, device="cpu").config_hash,
        BoundaryModel(tiny_segformer(), mean=(0.5, 0.5, 0.5)).config_hash,
        BoundaryModel(tiny_segformer(), tile=512).config_hash,
        BoundaryModel(tiny_segformer(), tile=512, overlap=64).config_hash,
    }
    assert len(hashes) == 5
    assert all(len(digest) == 64 for digest in hashes)
    same = BoundaryModel.from_pretrained(device="cpu", dtype="float32", batch_size=3)
    assert same.config_hash == packaged.config_hash


def test_hub_id(tiny_folder: Path, monkeypatch):
    asked: dict[str, object] = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(tiny_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    hub_id = "chendelong/DirectSAM-b0-1024px-sa1b-2ep-1017"
    model = BoundaryModel.from_pretrained(hub_id, device="cpu")
    assert model.name == asked["name"] == hub_id
    assert asked["allow_patterns"] == ["*.json", "*.safetensors"]  # a pickle is not even fetched
    assert model.predict(pictures((40, 40)))[0].shape == (40, 40)


def test_hub_failure(monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(WeightsError, match=r"'some/model' is no local folder.*no route"):
        BoundaryModel.from_pretrained("some/model")


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing/here", "nothing", Path("a/b")])
def test_missing_folder(name):
    with pytest.raises(WeightsError, match="no folder"):
        BoundaryModel.from_pretrained(name)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt"])
def test_pickle_is_refused(tiny_folder: Path, tmp_path: Path, name):
    class Bomb:
        def __reduce__(self):
            return (Path(tmp_path / "exploded").touch, ())

    (tmp_path / "config.json").write_bytes((tiny_folder / "config.json").read_bytes())
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(WeightsError, match=rf"{name}.*convert.*save_pretrained"):
        BoundaryModel.from_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"is a file.*never loaded"):
        BoundaryModel.from_pretrained(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_wrong_folders(tiny_folder: Path, tmp_path: Path):
    def folder(name: str, config: dict | str | None, weights: bytes | None) -> Path:
        made = tmp_path / name
        made.mkdir()
        if config is not None:
            text = config if isinstance(config, str) else json.dumps(config)
            (made / "config.json").write_text(text)
        if weights is not None:
            (made / "model.safetensors").write_bytes(weights)
        return made

    config = json.loads((tiny_folder / "config.json").read_text())
    weights = (tiny_folder / "model.safetensors").read_bytes()
    cases = [
        (folder("empty", None, None), "no config.json"),
        (folder("no_weights", config, None), "no \\*.safetensors"),
        (folder("bad_json", "{", weights), "config.json cannot be read"),
        (folder("list_json", "[]", weights), "holds no object"),
        (folder("unknown", {**config, "model_type": "nonsense"}, weights), "'nonsense' cannot be"),
        (folder("text_model", {"model_type": "bert"}, weights), "'bert'|channels"),
        (
            folder("classes", {**config, "id2label": {"0": "a", "1": "b"}}, weights),
            "2 output channels",
        ),
        (folder("cut", config, weights[:1000]), "cannot be loaded"),
        (folder("noise", config, b"not a safetensors file"), "cannot be loaded"),
        (
            folder("shapes", {**config, "decoder_hidden_size": 16}, weights),
            "cannot be loaded|missing",
        ),
    ]
    for path, message in cases:
        with pytest.raises(WeightsError, match=message):
            BoundaryModel.from_pretrained(path)


def test_missing_tensors_are_not_drawn_at_random(tiny_folder: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    state = load_file(tiny_folder / "model.safetensors")
    del state["decode_head.classifier.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((tiny_folder / "config.json").read_bytes())
    with pytest.raises(WeightsError, match=r"1 weights are missing.*classifier"):
        BoundaryModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("values", "mean", "std"),
    [
        ({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}, (0.5,) * 3, (0.25,) * 3),
        ({"do_normalize": False}, (0.0,) * 3, (1.0,) * 3),
        ({"size": 512}, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_normalisation_is_read(tiny_folder: Path, tmp_path: Path, values, mean, std):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny_folder / name).read_bytes())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    found = load_network(tmp_path).normalisation
    assert (found.mean, found.std) == (mean, std)


@pytest.mark.parametrize(
    "values",
    [
        {"image_mean": [0.5, 0.5], "image_std": [1, 1, 1]},
        {"image_mean": "grey", "image_std": [1, 1, 1]},
        {"image_mean": [0, 0, 0], "image_std": [1, 0, 1]},
    ],
)
def test_broken_normalisation(tiny_folder: Path, tmp_path: Path, values):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny_folder / name).read_bytes())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(WeightsError, match="image"):
        load_network(tmp_path)


def test_saving_what_cannot_be_saved(tmp_path: Path):
    with pytest.raises(WeightsError, match="Constant has no save_pretrained"):
        BoundaryModel(Constant()).save_pretrained(tmp_path)
