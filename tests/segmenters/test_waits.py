"""How often a segmenter waits for its device: a few times for many masks, not for each of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from helpers.segmenters import MAKERS, Models
from torch.overrides import TorchFunctionMode

from subtok_data import Prompts
from subtok_data.segmenters import GenerationOptions, SAMPrompter, SAMSegmenter

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
WAITS = ("cpu", "item", "tolist", "nonzero", "__bool__", "__int__", "__float__")


class CountedWaits(TorchFunctionMode):
    """Counts reads of values, by the lines of this library that read them.

    A CPU stands for the device, so what is read of tensors that are on the host already counts too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter[str]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in WAITS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


def waits(call: Any) -> Counter[str]:
    call()  # loads the model
    with CountedWaits() as counted:
        call()
    return counted.counts


def test_sam_waits_thrice_for_32_masks(models):
    options = GenerationOptions(points_per_side=8, iou_threshold=0, stability_threshold=0)
    segmenter = SAMSegmenter(models.folder("sam"), options=options, device="cpu")
    found = waits(lambda: segmenter.infer([IMAGE], [IMAGE.shape[:2]]))
    chunks = 64 * 3 / 32  # of masks, in one call of the decoder
    assert found["cpu"] <= 1 + 2 * chunks
    assert found["nonzero"] <= 1 + chunks


def test_edges_wait_twice_for_an_image(models):
    segmenter = MAKERS["sam-edges"](models)
    found = waits(lambda: segmenter.infer([IMAGE], [IMAGE.shape[:2]]))
    assert found["cpu"] <= 2


@pytest.mark.parametrize("rounds", [0, 2])
def test_a_prompter_waits_once_for_its_scores_and_once_for_32_masks(models, rounds):
    boxes = np.array([[i, i, i + 20, i + 20] for i in range(20)], np.float32)
    prompter = SAMPrompter(models.folder("sam"), device="cpu", refine_rounds=rounds)
    prompts = [Prompts.of(IMAGE.shape[:2], boxes=boxes)]
    found = waits(lambda: prompter.prompt_masks([IMAGE], prompts))
    assert found["cpu"] <= 2


def test_runs_of_masks_on_the_way_out_wait_for_their_number_and_for_them():
    from subtok_data.segmenters.sam.generated_masks import mask_runs

    masks = torch.rand(32, 20, 30, generator=torch.manual_seed(0)) > 0.5
    found = waits(lambda: mask_runs(masks, (0, 0, 30, 20), (20, 30)))
    assert found == {"nonzero": 1, "cpu": 1}
