"""Every kind of segmenter and prompter, with small networks of random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_panoptic, tiny_sam
from helpers.tiny_efficient_sam import make_model, save_onnx, save_torchscript

from subtok_data import (
    EPOCSegmenter,
    PanopticSegmenter,
    PatchSegmenter,
    SAMEdgeSegmenter,
    SAMSegmenter,
    SuperpixelSegmenter,
)
from subtok_data.segmenters import (
    EfficientSAMPrompter,
    EfficientSAMSegmenter,
    GenerationOptions,
    PromptedSegmenter,
    SAMPrompter,
)

EVERYTHING = GenerationOptions(points_per_side=4, iou_threshold=0, stability_threshold=0)
"""Random weights are sure of nothing: no filter."""


class Models:
    """Networks with random weights, each written when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.root = folder

    def folder(self, name: str) -> Path:
        folder = self.root / name
        if not folder.exists():
            home = tiny_sam if name in tiny_sam.MODELS else tiny_panoptic
            home.save_model(name, folder)
        return folder

    def torchscript(self) -> Path:
        file = self.root / "efficient_sam.pt"
        return file if file.exists() else save_torchscript(make_model(), file)

    def onnx(self) -> Path:
        pytest.importorskip("onnx", reason="writes the test's ONNX files")
        pytest.importorskip("onnxruntime", reason="runs them")
        return save_onnx(make_model(), self.root)


def sam(models: Models, name: str, device: Any = "cpu") -> SAMSegmenter:
    return SAMSegmenter(models.folder(name), options=EVERYTHING, device=device)


def unsure(models: Models, name: str, device: Any = "cpu") -> PanopticSegmenter:
    thresholds = {"threshold": 0, "mask_threshold": 0, "overlap_threshold": 0}
    return PanopticSegmenter(models.folder(name), device=device, **thresholds)


#: By name, ``make(models, device="cpu")``; test_all_segmenters.py holds that none is missing.
MAKERS: dict[str, Callable[..., Any]] = {
    "epoc": lambda models, device="cpu": EPOCSegmenter(device=device),
    "patch": lambda models, device="cpu": PatchSegmenter(16),
    "slic": lambda models, device="cpu": SuperpixelSegmenter("slic"),
    "felzenszwalb": lambda models, device="cpu": SuperpixelSegmenter("felzenszwalb"),
    "sam": lambda models, device="cpu": sam(models, "sam", device),
    "sam2": lambda models, device="cpu": sam(models, "sam2", device),
    "edgetam": lambda models, device="cpu": sam(models, "edgetam", device),
    "sam3": lambda models, device="cpu": sam(models, "sam3", device),
    "sam-edges": lambda models, device="cpu": SAMEdgeSegmenter(
        models.folder("sam"), points_per_side=4, device=device
    ),
    "efficient-sam": lambda models, device="cpu": EfficientSAMSegmenter(
        models.torchscript(), options=EVERYTHING, device=device
    ),
    "efficient-sam-onnx": lambda models, device="cpu": EfficientSAMSegmenter(
        models.onnx(), options=EVERYTHING, device=device
    ),
    "mask2former": lambda models, device="cpu": unsure(models, "mask2former", device),
    "oneformer": lambda models, device="cpu": unsure(models, "oneformer", device),
    "eomt": lambda models, device="cpu": unsure(models, "eomt", device),
    "prompted": lambda models, device="cpu": PromptedSegmenter(EPOCSegmenter(device=device)),
    "prompted-sam": lambda models, device="cpu": PromptedSegmenter(
        PatchSegmenter(16), prompter=SAMPrompter(models.folder("sam"), device=device)
    ),
    "prompted-efficient-sam": lambda models, device="cpu": PromptedSegmenter(
        PatchSegmenter(16), prompter=EfficientSAMPrompter(models.torchscript(), device=device)
    ),
}
