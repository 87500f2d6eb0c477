"""Folders of transformers that bring Python of their own: refused, without asking or running."""

from __future__ import annotations

import ast
import builtins
import json
from pathlib import Path

import pytest
import torch
from helpers import tiny_panoptic, tiny_sam
from safetensors.torch import save_file

import subtok_data
from subtok_data import (
    BoundaryModel,
    PanopticSegmenter,
    SAMEdgeSegmenter,
    SAMSegmenter,
    TextConfig,
)
from subtok_data.errors import WeightsError
from subtok_data.segmenters import SAMPrompter

PACKAGE = Path(subtok_data.__file__).parent
OWN = {"BoundaryModel", "SubobjectTokenizer", "TextConfig"}
"""Classes of the library that have a ``from_pretrained``."""
AUTO_MAP = {
    "AutoConfig": "own_code.Config",
    "AutoModelForSemanticSegmentation": "own_code.Model",
    "AutoModelForMaskGeneration": "own_code.Model",
    "AutoModelForUniversalSegmentation": "own_code.Model",
    "AutoImageProcessor": "own_code.Processor",
    "AutoProcessor": "own_code.Processor",
    "AutoTokenizer": ["own_code.Tokenizer", None],
}


def test_one_place_reads_what_transformers_saved():
    """Any other might forget ``trust_remote_code=False``."""
    for file in sorted(PACKAGE.rglob("*.py")):
        if file == PACKAGE / "transformers_io.py":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == "from_pretrained":
                owner = node.value.id if isinstance(node.value, ast.Name) else ast.dump(node.value)
                assert owner in OWN, f"{file.name}:{node.lineno}: {owner}.from_pretrained"


@pytest.fixture
def questions(monkeypatch) -> list[str]:
    """What was asked on the terminal; the answer is yes."""
    asked: list[str] = []

    def answer(question: str = "") -> str:
        asked.append(question)
        return "y"

    monkeypatch.setattr(builtins, "input", answer)
    return asked


def add_code(folder: Path) -> Path:
    """Write a module that leaves a file where it is run; return that file."""
    mark = folder / "code_was_run"
    names = ("Config", "Model", "Processor", "Tokenizer")
    classes = "".join(f"class {name}: pass\n" for name in names)
    (folder / "own_code.py").write_text(f"open({str(mark)!r}, 'w').close()\n{classes}")
    return mark


def edit(file: Path, **values: object) -> None:
    found = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**found, **values}))


READERS = {
    "boundary model": BoundaryModel.from_pretrained,
    "sam": lambda folder: SAMSegmenter(folder, device="cpu").model,
    "sam edges": lambda folder: SAMEdgeSegmenter(folder, device="cpu").model,
    "prompter": lambda folder: SAMPrompter(folder, device="cpu").model,
    "panoptic": lambda folder: PanopticSegmenter(folder, device="cpu").model,
    "text": TextConfig.from_pretrained,
}


@pytest.mark.parametrize("reader", READERS)
def test_a_model_of_its_own_kind_is_refused(tmp_path, questions, reader):
    mark = add_code(tmp_path)
    edit(tmp_path / "config.json", model_type="own", auto_map=AUTO_MAP)
    edit(tmp_path / "tokenizer_config.json", tokenizer_class="Tokenizer", auto_map=AUTO_MAP)
    edit(tmp_path / "text_config.json", caption="text")
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=rf"{tmp_path}.*such code is never run"):
        READERS[reader](tmp_path)
    assert not mark.exists()
    assert questions == []


@pytest.mark.parametrize("reader", ["sam", "prompter"])
def test_a_processor_of_its_own_kind_is_refused(tmp_path, questions, reader):
    folder = tiny_sam.save_model("sam", tmp_path / "sam")
    mark = add_code(folder)
    edit(folder / "preprocessor_config.json", image_processor_type="Processor", auto_map=AUTO_MAP)
    edit(folder / "config.json", model_type="own", auto_map=AUTO_MAP)
    with pytest.raises(WeightsError, match="such code is never run"):
        READERS[reader](folder)
    assert not mark.exists()
    assert questions == []


@pytest.mark.parametrize(
    ("home", "name", "reader"),
    [
        (tiny_sam, "sam", "sam"),
        (tiny_panoptic, "eomt", "panoptic"),
        (tiny_panoptic, "oneformer", "panoptic"),
    ],
)
def test_kinds_that_transformers_has_are_loaded_without_the_code(
    tmp_path, questions, home, name, reader
):
    folder = home.save_model(name, tmp_path / name)
    mark = add_code(folder)
    for file in folder.glob("*config.json"):
        edit(file, auto_map=AUTO_MAP)
    if name == "oneformer":  # its tokenizer is read by its processor
        edit(folder / "tokenizer_config.json", tokenizer_class="Tokenizer")
    assert READERS[reader](folder) is not None
    assert not mark.exists()
    assert questions == []
