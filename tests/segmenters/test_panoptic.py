"""Panoptic models as segmenters; random weights, real loading code."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.batches import assert_same
from helpers.faulty import coded_image
from helpers.tiny_panoptic import MODELS, save_model

from subtok_data import (
    BoundaryModel,
    PanopticSegmenter,
    SubobjectCollator,
    SubobjectDataset,
    SubobjectLoader,
    SubobjectTokenizer,
    validate_batch,
)
from subtok_data.data import tokenize_dataset
from subtok_data.errors import ConfigError, SampleError, SubtokError, WeightsError
from subtok_data.segment import FillRules

IMAGES = [coded_image(0, 48, 64), coded_image(1, 64, 64), coded_image(2, 48, 64)]
ROWS = [{"image": image, "label": i} for i, image in enumerate(IMAGES)]


@pytest.fixture(scope="session", params=MODELS)
def weights(request, tmp_path_factory) -> Path:
    """A model with random weights, saved by transformers."""
    return save_model(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def mask2former(tmp_path_factory) -> Path:
    return save_model("mask2former", tmp_path_factory.mktemp("mask2former"))


def all_segments(model, **options) -> PanopticSegmenter:
    """Random weights are sure of nothing: take every segment."""
    options = {"threshold": 0, "mask_threshold": 0, "overlap_threshold": 0, **options}
    return PanopticSegmenter(model, device="cpu", **options)


def test_classes_reach_the_batch(weights):
    tokenizer = SubobjectTokenizer(all_segments(weights), size=None)
    batch = SubobjectCollator(tokenizer)(ROWS)
    validate_batch(batch)
    assert batch["num_visual_tokens"].max() > 1
    classes = batch["visual_token_class"]
    mask = batch["visual_token_mask"]
    assert classes.dtype == torch.int64
    assert (classes[~mask] == -1).all()
    assert set(classes[mask].tolist()) <= {-1, *range(5)}
    assert len(set(classes[mask].tolist()) - {-1}) > 1
    assert torch.equal(batch["visual_token_source"][mask] == 1, classes[mask] == -1)


def test_budget_is_honoured_and_the_loader_gives_the_same(weights, no_leaks):
    tokenizer = SubobjectTokenizer(all_segments(weights), max_tokens=3, size=None)
    expected = SubobjectCollator(tokenizer)([SubobjectDataset(ROWS)[i] for i in range(3)])
    assert int(expected["num_visual_tokens"].max()) == 3
    loader = SubobjectLoader(SubobjectDataset(ROWS), tokenizer, batch_size=3, segment_workers=1)
    with loader:
        (batch,) = loader
    validate_batch(batch)
    assert_same(batch, expected)


def test_the_batch_does_not_change_the_tokens(weights):
    segmenter = all_segments(weights, batch_size=2)
    sizes = [(48, 64), (64, 64), (48, 64)]
    together = segmenter.infer(IMAGES, sizes)
    for image, size, evidence in zip(IMAGES, sizes, together, strict=True):
        (alone,) = segmenter.infer([image], [size])
        assert np.mean(alone["label_map"] != evidence["label_map"]) < 0.01  # rounding
        assert evidence["label_map"].shape == size


def test_saved_and_stored(weights, tmp_path):
    rules = FillRules(min_area=4, gap_area=9)
    segmenter = all_segments(weights, rules=rules, fuse=[1, 2])
    tokenizer = SubobjectTokenizer(segmenter, size=64)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    again = SubobjectTokenizer.from_pretrained(tmp_path / "tokenizer", device="cpu")
    assert again.config() == tokenizer.config()
    assert again.segmenter.partitioner.rules == rules
    assert all_segments(weights).config() != segmenter.config()
    tokenize_dataset(ROWS, tokenizer, tmp_path / "tokens")
    dataset = SubobjectDataset(ROWS, tokens=tmp_path / "tokens")
    stored = SubobjectCollator(again)([dataset[i] for i in range(3)])
    validate_batch(stored)
    live = SubobjectCollator(tokenizer)([SubobjectDataset(ROWS)[i] for i in range(3)])
    assert torch.equal(stored["visual_token_class"], live["visual_token_class"])


class StubProcessor:
    """Answers as post-processing of transformers does, whatever the model says."""

    def __init__(self, segmentation, segments):
        self.answer = {"segmentation": torch.tensor(segmentation), "segments_info": segments}
        self.seen = []

    def __call__(self, images, input_data_format, return_tensors):
        mask = torch.zeros(1, 8, 8, dtype=torch.int64)
        mask[:, :4] = 1
        return {"pixel_values": torch.zeros(1, 3, 8, 8), "pixel_mask": mask}

    def post_process_panoptic_segmentation(
        self, outputs, threshold, mask_threshold, overlap_mask_area_threshold, target_sizes
    ):
        self.seen.append(tuple(outputs.masks_queries_logits.shape))
        return [self.answer]


class StubModel(torch.nn.Module):
    device = torch.device("cpu")

    def forward(self, pixel_values):
        n = len(pixel_values)
        return SimpleNamespace(
            class_queries_logits=torch.zeros(n, 2, 3), masks_queries_logits=torch.zeros(n, 2, 2, 2)
        )


def cut(segmentation, segments, **options):
    processor = StubProcessor(segmentation, segments)
    segmenter = PanopticSegmenter(StubModel(), processor, rules=FillRules(0, None), **options)
    size = np.shape(segmentation)
    (evidence,) = segmenter.infer([np.zeros((*size, 3), np.uint8)], [size])
    return segmenter.partitioner(evidence, size), processor


@pytest.mark.parametrize("none", [0, -1])
def test_what_no_segment_describes_is_shared_out(none):
    segments = [{"id": 5, "label_id": 7, "score": 0.5}, {"id": 3, "label_id": 2, "score": 0.25}]
    partition, processor = cut([[5, none, none, 3, 3, 5]], segments)
    assert partition.token_map.tolist() == [[0, 0, 1, 1, 1, 2]]
    assert partition.token_fields["class"].tolist() == [7, 2, 7]
    assert partition.token_fields["score"].tolist() == [0.5, 0.25, 0.5]
    assert processor.seen == [(1, 2, 1, 2)]  # the padded lower half is cut off


def test_segments_of_a_fused_class_are_one_token():
    segments = [{"id": i, "label_id": kind, "score": 1.0} for i, kind in enumerate([4, 4, 9, 9])]
    assert cut([[0, 1, 2, 3]], segments)[0].num_tokens == 4
    assert cut([[0, 1, 2, 3]], segments, fuse=[4])[0].num_tokens == 3


def test_nothing_found_is_one_token():
    partition, _ = cut([[-1.0, -1.0]], [])
    assert partition.num_tokens == 1
    assert partition.token_fields["class"].tolist() == [-1]


def test_bad_options_and_weights(mask2former, tmp_path):
    with pytest.raises(ConfigError, match=r"threshold=1\.5"):
        PanopticSegmenter(mask2former, threshold=1.5)
    with pytest.raises(ConfigError, match="batch_size=0"):
        PanopticSegmenter(mask2former, batch_size=0)
    with pytest.raises(ConfigError, match="together with its image processor"):
        PanopticSegmenter(StubModel())
    with pytest.raises(ConfigError, match="no boundary map"):
        PanopticSegmenter(mask2former, rules=FillRules(fill="boundary"))
    with pytest.raises(ConfigError, match="takes no prompts"):
        PanopticSegmenter(mask2former).infer(IMAGES[:1], [(48, 64)], [1])
    with pytest.raises(WeightsError, match="cannot be loaded"):
        PanopticSegmenter(tmp_path).infer(IMAGES[:1], [(48, 64)])
    BoundaryModel.from_pretrained(device="cpu").save_pretrained(tmp_path / "boundary")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        PanopticSegmenter(tmp_path / "boundary").config()


class NaNModel(StubModel):
    """Gives NaN for pictures of a certain brightness."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, pixel_values):
        outputs = super().forward(pixel_values)
        getattr(outputs, self.part)[pixel_values.mean((1, 2, 3)) > 0.5] = torch.nan
        return outputs


class BrightProcessor(StubProcessor):
    def __call__(self, images, input_data_format, return_tensors):
        inputs = super().__call__(images, input_data_format, return_tensors)
        return {**inputs, "pixel_values": inputs["pixel_values"] + images[0].mean() / 255}


@pytest.mark.parametrize("part", ["class_queries_logits", "masks_queries_logits"])
def test_nan_names_its_image(part, no_leaks):
    answer = np.zeros((32, 32), int), [{"id": 0, "label_id": 1, "score": 1.0}]
    segmenter = PanopticSegmenter(NaNModel(part), BrightProcessor(*answer))
    images = [np.full((32, 32, 3), level, np.uint8) for level in (9, 20, 255, 30)]
    with pytest.raises(SubtokError, match="^image 2: .* NaN or infinite"):
        segmenter.infer(images, [(32, 32)] * 4)
    tokenizer = SubobjectTokenizer(segmenter, size=None)
    rows = [{"image": image, "label": i} for i, image in enumerate(images)]
    with pytest.raises(SampleError, match="sample 2 failed in infer: the model .*NaN") as raised:
        with SubobjectLoader(rows, tokenizer, batch_size=4, segment_workers=1) as loader:
            next(iter(loader))
    assert raised.value.index == 2
    replacing = SubobjectLoader(
        rows, tokenizer, batch_size=4, segment_workers=1, on_error="replace"
    )
    with replacing as loader:
        (batch,) = loader
    validate_batch(batch)
    assert batch["num_visual_tokens"].tolist() == [1] * 4


def test_models_that_answer_or_ask_otherwise(tmp_path):
    from transformers import AutoImageProcessor, OneFormerForUniversalSegmentation

    class Other(StubModel):
        def forward(self, pixel_values):
            return {"logits": pixel_values, "pred_masks": pixel_values}

    segmenter = PanopticSegmenter(Other(), StubProcessor([[0]], []))
    with pytest.raises(ConfigError, match="Other answers with logits, pred_masks, expected"):
        segmenter.infer(IMAGES[:1], [(48, 64)])
    save_model("oneformer", tmp_path)
    model = OneFormerForUniversalSegmentation.from_pretrained(tmp_path)
    images = AutoImageProcessor.from_pretrained(tmp_path, class_info_file=None)
    with pytest.raises(ConfigError, match="give it OneFormerProcessor"):
        PanopticSegmenter(model, images, device="cpu").infer(IMAGES[:1], [(48, 64)])


def test_pieces_of_images_are_refused(tmp_path):
    from transformers import EomtImageProcessor

    save_model("eomt", tmp_path)
    size = {"shortest_edge": 64, "longest_edge": None}
    EomtImageProcessor(size=size, do_split_image=True, do_pad=False).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="do_split_image"):
        PanopticSegmenter(tmp_path).infer(IMAGES[:1], [(48, 64)])


def test_missing_weights_are_refused(mask2former, tmp_path):
    from safetensors.torch import load_file, save_file

    for file in mask2former.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("class_predictor.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with pytest.raises(WeightsError, match=r"1 weights are missing .*class_predictor\.weight"):
        PanopticSegmenter(tmp_path).config()
