"""Every option of every segmenter, prompter and tokenizer survives being saved."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from helpers.segmenters import EVERYTHING, Models
from skimage import data

from subtok_data import (
    BoundaryModel,
    EPOCSegmenter,
    PatchSegmenter,
    PromptedSegmenter,
    Prompts,
    SAMSegmenter,
    SubobjectTokenizer,
)
from subtok_data.segment import FillRules
from subtok_data.segmenters import (
    PROMPTERS,
    SEGMENTERS,
    EfficientSAMPrompter,
    EfficientSAMSegmenter,
    GenerationOptions,
    SAMPrompter,
)

PHOTO = np.ascontiguousarray(data.chelsea()[::3, ::3])
MODELS = {"model", "module", "processor", "path", "segmenter", "prompter"}
"""What is saved by files or as a part, not as an option; held by the tests of each."""
RUN_TIME = {"device", "batch_size", "encoder_batch"}
"""What decides where and how fast a result comes, not which."""

FEW = GenerationOptions(points_per_side=3, iou_threshold=0, stability_threshold=0)
RULES = FillRules(min_area=4, gap_area=300)
OPTIONS: dict[Any, dict[str, Any]] = {
    SEGMENTERS["epoc"]: {"threshold": 0.3, "backend": "skimage"},
    SEGMENTERS["patch"]: {"patch_size": 24},
    SEGMENTERS["superpixel"]: {"method": "felzenszwalb", "n_segments": 30},
    SEGMENTERS["sam"]: {"options": FEW, "paint": "score", "rules": RULES, "min_region": 9},
    SEGMENTERS["efficient-sam"]: {
        "options": FEW,
        "paint": "score",
        "rules": RULES,
        "min_region": 9,
    },
    SEGMENTERS["sam-edges"]: {
        "threshold": 0.3,
        "points_per_side": 3,
        "points_per_batch": 2,
        "box_nms": 0.5,
    },
    SEGMENTERS["panoptic"]: {
        "rules": RULES,
        "threshold": 0.01,
        "mask_threshold": 0.01,
        "overlap_threshold": 0.01,
        "fuse": [0, 1, 2],
    },
    SEGMENTERS["prompted"]: {"automatic": False, "rules": RULES, "min_iou": 0.9},
    PROMPTERS["sam"]: {"prompts_per_batch": 1, "refine_rounds": 2},
    PROMPTERS["efficient-sam"]: {"prompts_per_batch": 1},
    SubobjectTokenizer: {
        "threshold": 0.3,
        "num_tokens": 12,
        "strength": 0.3,
        "max_tokens": 12,
        "min_area": 7,
        "merge": "boundary",
        "overflow": "drop",
        "order": "raster",
        "size": 80,
        "square": True,
        "full_decode": True,
    },
}
"""Another value than the default of every option."""
BESIDE: dict[str, dict[str, Any]] = {
    "overflow": {"max_tokens": 4},
    "merge": {"max_tokens": 6},
    "min_iou": {"automatic": True},
}
"""What an option needs to have an effect."""


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


def build(models: Models, kind: Any, options: dict[str, Any]) -> SubobjectTokenizer:
    if kind is SubobjectTokenizer:
        return SubobjectTokenizer(**{"size": 96, "device": "cpu"} | options)
    segmenter: Any
    if kind is SAMPrompter or kind is EfficientSAMPrompter:
        file = models.folder("sam") if kind is SAMPrompter else models.torchscript()
        segmenter = PromptedSegmenter(
            PatchSegmenter(16), prompter=kind(file, device="cpu", **options)
        )
    elif kind is PromptedSegmenter:
        segmenter = kind(EPOCSegmenter(device="cpu"), **options)
    elif kind is EfficientSAMSegmenter:
        segmenter = kind(models.torchscript(), device="cpu", **{"options": EVERYTHING} | options)
    elif kind is SAMSegmenter:
        segmenter = kind(models.folder("sam"), device="cpu", **{"options": EVERYTHING} | options)
    elif kind.name == "sam-edges":
        few = {"points_per_side": 4}
        segmenter = kind(models.folder("sam"), device="cpu", **few | options)
    elif kind.name == "panoptic":
        sure = {"threshold": 0, "mask_threshold": 0, "overlap_threshold": 0}
        segmenter = kind(models.folder("eomt"), device="cpu", **sure | options)
    elif kind is EPOCSegmenter:
        segmenter = kind(device="cpu", **options)
    else:
        segmenter = kind(**options)
    return SubobjectTokenizer(segmenter, size=96)


def tokens_of(tokenizer: SubobjectTokenizer) -> Any:
    prompts = Prompts.of(PHOTO.shape[:2], boxes=[[10, 10, 70, 60], [40, 20, 140, 90]])
    return tokenizer(PHOTO, prompts=prompts)


def saved_and_loaded(tokenizer: SubobjectTokenizer, folder: Any) -> SubobjectTokenizer:
    tokenizer.save_pretrained(folder)
    loaded = SubobjectTokenizer.from_pretrained(folder, device="cpu")
    assert loaded.config() == tokenizer.config()
    assert loaded.config_hash == tokenizer.config_hash
    first, second = tokens_of(tokenizer), tokens_of(loaded)
    assert np.array_equal(first.token_map, second.token_map)
    assert first.token_fields.keys() == second.token_fields.keys()
    for name, values in first.token_fields.items():
        assert np.array_equal(values, second.token_fields[name])
    return loaded


@pytest.mark.parametrize("kind", [*SEGMENTERS.values(), *PROMPTERS.values(), SubobjectTokenizer])
def test_every_option_has_a_value_here(kind):
    parameters = inspect.signature(kind).parameters.values()
    # What catches the names that it does not know is none.
    names = {one.name for one in parameters if one.kind is not one.VAR_KEYWORD}
    assert names - MODELS - RUN_TIME == set(OPTIONS[kind])


@pytest.mark.parametrize(
    ("kind", "option"), [(kind, option) for kind, options in OPTIONS.items() for option in options]
)
def test_an_option_survives(models, tmp_path, kind, option):
    beside = BESIDE.get(option, {})
    if option == "square":
        beside = {"size": 96}
    tokenizer = build(models, kind, {**beside, option: OPTIONS[kind][option]})
    assert tokenizer.config_hash != build(models, kind, beside).config_hash
    saved_and_loaded(tokenizer, tmp_path)


MODEL_OPTIONS: dict[str, dict[str, Any]] = {
    "mean": {"mean": (0.4, 0.5, 0.6)},
    "std": {"std": (0.2, 0.3, 0.4)},
    "tile": {"tile": 64, "overlap": 32},
    "overlap": {"tile": 128, "overlap": 32},
    "scales": {"scales": (1.0, 1.5)},
    "canvas_step": {"canvas_step": 64},
}


def test_every_option_of_a_boundary_model_has_a_value_here():
    names = set(inspect.signature(BoundaryModel).parameters)
    # Precision, compilation and graphs change a map by rounding at most; the name is the folder's.
    beside = {"module", *RUN_TIME, "dtype", "compile", "cuda_graphs", "name"}
    assert names - beside == set(MODEL_OPTIONS)


@pytest.mark.parametrize("option", MODEL_OPTIONS)
def test_an_option_of_the_boundary_model_survives(tmp_path, option):
    from subtok_data.boundary import load_network

    def make(**options: Any) -> BoundaryModel:
        return BoundaryModel(load_network(None).module, device="cpu", **options)

    model = make(**MODEL_OPTIONS[option])
    assert model.config_hash != make().config_hash
    model.save_pretrained(tmp_path / "model")
    loaded = BoundaryModel.from_pretrained(tmp_path / "model", device="cpu")
    assert loaded.config_hash == model.config_hash
    assert np.array_equal(loaded.predict(PHOTO), model.predict(PHOTO))
    tokenizer = SubobjectTokenizer(EPOCSegmenter(model), size=160)
    saved_and_loaded(tokenizer, tmp_path / "tokenizer")


def test_tiles_can_be_chosen_anew(tmp_path):
    tiled = BoundaryModel.from_pretrained(device="cpu", tile=64, overlap=32)
    whole = BoundaryModel.from_pretrained(device="cpu")
    tiled.save_pretrained(tmp_path)
    again = BoundaryModel.from_pretrained(tmp_path, device="cpu", tile=None)
    assert again.config_hash == whole.config_hash
    wider = BoundaryModel.from_pretrained(tmp_path, device="cpu", tile=128)
    assert (wider.tile, wider.overlap) == (128, 32)
    whole.save_pretrained(tmp_path)  # no tiles are left of the model that was here before
    loaded = BoundaryModel.from_pretrained(tmp_path, device="cpu")
    assert loaded.config_hash == whole.config_hash
