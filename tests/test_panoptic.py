"""Panoptic models as segmenters; random weights, real loading code."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from batches import assert_same
from faulty import coded_image

from subtok_data import (
    BoundaryModel,
    PanopticSegmenter,
    SubobjectCollator,
    SubobjectDataset,
    SubobjectLoader,
    SubobjectTokenizer,
    validate_batch,
)
from subtok_data.data.tokenize import tokenize_dataset
from subtok_data.errors import ConfigError, WeightsError
from subtok_data.segment.parts import PartRules

IMAGES = [coded_image(0, 48, 64), coded_image(1, 64, 64), coded_image(2, 48, 64)]
ROWS = [{"image": image, "label": i} for i, image in enumerate(IMAGES)]


@pytest.fixture(scope="session")
def mask2former(tmp_path_factory) -> Path:
    """A Mask2Former with random weights, saved by transformers."""
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    backbone = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        hidden_dim=32,
        feature_size=32,
        mask_feature_size=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        encoder_feedforward_dim=16,
        num_queries=12,
        num_labels=5,
        init_std=1.0,
        init_xavier_std=3.0,
    )
    folder = tmp_path_factory.mktemp("mask2former")
    torch.manual_seed(4)
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def all_segments(model, **options) -> PanopticSegmenter:
    """Random weights are sure of nothing: take every segment."""
    options = {"threshold": 0, "mask_threshold": 0, "overlap_threshold": 0, **options}
    return PanopticSegmenter(model, device="cpu", **options)


def test_classes_reach_the_batch(mask2former):
    tokenizer = SubobjectTokenizer(all_segments(mask2former), size=None)
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


def test_budget_is_honoured_and_the_loader_gives_the_same(mask2former, no_leaks):
    tokenizer = SubobjectTokenizer(all_segments(mask2former), max_tokens=3, size=None)
    expected = SubobjectCollator(tokenizer)([SubobjectDataset(ROWS)[i] for i in range(3)])
    assert int(expected["num_visual_tokens"].max()) == 3
    loader = SubobjectLoader(SubobjectDataset(ROWS), tokenizer, batch_size=3, segment_workers=1)
    with loader:
        (batch,) = loader
    validate_batch(batch)
    assert_same(batch, expected)


def test_photos_through_the_loader(mask2former, no_leaks):
    from skimage import data

    photos = [{"image": photo()} for photo in (data.coffee, data.chelsea, data.astronaut)]
    tokenizer = SubobjectTokenizer(all_segments(mask2former), max_tokens=12, size=96)
    with SubobjectLoader(photos, tokenizer, batch_size=2, segment_workers=1) as loader:
        for batch in loader:
            validate_batch(batch)
            assert int(batch["num_visual_tokens"].max()) <= 12


def test_the_batch_does_not_change_the_tokens(mask2former):
    segmenter = all_segments(mask2former, batch_size=2)
    sizes = [(48, 64), (64, 64), (48, 64)]
    together = segmenter.infer(IMAGES, sizes)
    for image, size, evidence in zip(IMAGES, sizes, together, strict=True):
        (alone,) = segmenter.infer([image], [size])
        assert np.mean(alone["label_map"] != evidence["label_map"]) < 0.01  # rounding
        assert evidence["label_map"].shape == size


def test_saved_and_stored(mask2former, tmp_path):
    rules = PartRules(min_area=4, gap_area=9)
    segmenter = all_segments(mask2former, rules=rules, fuse=[1, 2])
    tokenizer = SubobjectTokenizer(segmenter, size=64)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    again = SubobjectTokenizer.from_pretrained(tmp_path / "tokenizer", device="cpu")
    assert again.config() == tokenizer.config()
    assert again.segmenter.partitioner.rules == rules
    assert all_segments(mask2former).config() != segmenter.config()
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
    segmenter = PanopticSegmenter(StubModel(), processor, rules=PartRules(0, None), **options)
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
        PanopticSegmenter(mask2former, rules=PartRules(fill="boundary"))
    with pytest.raises(ConfigError, match="takes no prompts"):
        PanopticSegmenter(mask2former).infer(IMAGES[:1], [(48, 64)], [1])
    with pytest.raises(WeightsError, match="cannot be loaded"):
        PanopticSegmenter(tmp_path).infer(IMAGES[:1], [(48, 64)])
    BoundaryModel.from_pretrained(device="cpu").save_pretrained(tmp_path / "boundary")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        PanopticSegmenter(tmp_path / "boundary").config()


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
