"""SAM as a segmenter: the published mask generation step by step, and real models at random."""

from __future__ import annotations

from itertools import product
from math import ceil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.batches import assert_same
from helpers.faulty import coded_image
from helpers.tiny_sam import MODELS, save_model, save_published_sam3
from hypothesis import example, given, settings, strategies as st
from scipy import ndimage
from skimage import data
from torchvision.ops import nms

from subtok_data import (
    SAMEdgeSegmenter,
    SAMSegmenter,
    SubobjectCollator,
    SubobjectDataset,
    SubobjectLoader,
    SubobjectTokenizer,
    validate_batch,
)
from subtok_data.errors import ConfigError, SubtokError, WeightsError
from subtok_data.segment import FillRules, MaskPartitioner, RLEMasks
from subtok_data.segment.masks.cleanup import clean_mask, clean_masks, suppress_boxes
from subtok_data.segment.masks.rle import encode_mask
from subtok_data.segmenters import GenerationOptions, generate_masks
from subtok_data.segmenters.sam.edges import edge_map
from subtok_data.segmenters.sam.mask_generation import crop_boxes, point_grid

IMAGES = [coded_image(0, 48, 90), coded_image(1, 64, 64), coded_image(2, 48, 90)]
ROWS = [{"image": image, "label": i} for i, image in enumerate(IMAGES)]


class DiskDecoder:
    """A model whose masks are known: three disks for each point, drawn by formulas.

    A picture holds its own coordinates (channels: x, y), so that a crop knows where it is; what it
    says of a point depends on the place in the picture and on the size of the crop.
    """

    def encode(self, crops):
        return list(crops)

    def decode(self, crop, points):
        height, width = crop.shape[:2]
        y, x = np.indices((height, width)) + 0.5
        logits, ious = [], []
        for px, py in points:
            left, top = int(crop[0, 0, 0]), int(crop[0, 0, 1])
            cell = np.array([(px + left) // 17 * 17 + 8, (py + top) // 13 * 13 + 6])
            distance = np.hypot(x + left - cell[0], y + top - cell[1])
            seed = int(cell.sum() * 7 + width)
            radii = [3 + seed % 11, 6 + seed % 17, 60]
            slope = 0.5 + seed % 5
            logits.append([slope * (radius - distance) for radius in radii])
            ious.append([0.8 + (seed * k % 19) / 100 for k in (3, 5, 7)])
        return torch.tensor(np.array(logits), dtype=torch.float32), torch.tensor(ious)

    def upscale(self, crop, logits):
        return logits


def coordinates(height: int, width: int) -> np.ndarray:
    y, x = np.indices((height, width))
    return np.stack([x, y, 0 * x], -1).astype(np.uint8)


def published(decoder, image, o: GenerationOptions):
    """The procedure, point by point and mask by mask, with whole masks."""
    height, width = image.shape[:2]
    crops = [(0, [0, 0, width, height])]
    for layer in range(1, o.crop_layers + 1):
        n = 2**layer
        overlap = int(o.crop_overlap * min(height, width) * (2 / n))
        w, h = ceil((overlap * (n - 1) + width) / n), ceil((overlap * (n - 1) + height) / n)
        for x, y in product(
            [(w - overlap) * i for i in range(n)], [(h - overlap) * i for i in range(n)]
        ):
            crops.append((layer, [x, y, min(x + w, width), min(y + h, height)]))
    every = []
    for layer, (x0, y0, x1, y1) in crops:
        n = int(o.points_per_side / o.crop_points_factor**layer)
        (embedding,) = decoder.encode([image[y0:y1, x0:x1]])
        found = []
        for row, column in product(range(n), range(n)):
            point = ((column + 0.5) / n * (x1 - x0), (row + 0.5) / n * (y1 - y0))
            logits, ious = decoder.decode(embedding, np.array([point]))
            for one, iou in zip(logits[0].numpy(), ious[0].tolist(), strict=True):
                if o.iou_threshold > 0 and not iou > np.float32(o.iou_threshold):
                    continue
                certain = (one > o.stability_offset).sum()
                stability = certain / max((one > -o.stability_offset).sum(), 1)
                if o.stability_threshold > 0 and stability < o.stability_threshold:
                    continue
                mask = one > 0
                ys, xs = np.nonzero(mask)
                box = (
                    np.zeros(4)
                    if not len(ys)
                    else np.array([xs.min(), ys.min(), xs.max(), ys.max()])
                )
                box = box + np.array([x0, y0, x0, y0])
                sides = zip(box, (x0, y0, x1, y1), (0, 0, width, height), strict=True)
                near = [
                    abs(b - c) <= o.edge_margin and abs(b - p) > o.edge_margin for b, c, p in sides
                ]
                if any(near):
                    continue
                whole = np.zeros((height, width), bool)
                whole[y0:y1, x0:x1] = mask
                found.append(
                    (whole, box, iou, stability, np.add(point, (x0, y0)), (x0, y0, x1, y1))
                )
        if found:
            boxes = torch.tensor(np.array([f[1] for f in found]), dtype=torch.float32)
            found = [found[i] for i in nms(boxes, torch.tensor([f[2] for f in found]), o.box_nms)]
        every += found
    if len(crops) > 1 and every:
        boxes = torch.tensor(np.array([f[1] for f in every]), dtype=torch.float32)
        small = torch.tensor([1 / ((c[2] - c[0]) * (c[3] - c[1])) for *_, c in every])
        every = [every[i] for i in nms(boxes, small, o.crop_nms)]
    return every


OPTIONS = [
    GenerationOptions(points_per_side=6, points_per_batch=5, edge_margin=4),
    GenerationOptions(
        points_per_side=6, edge_margin=4, stability_threshold=0.6, iou_threshold=0.85
    ),
    GenerationOptions(
        points_per_side=8,
        points_per_batch=7,
        crop_layers=2,
        crop_points_factor=2,
        edge_margin=3,
        stability_threshold=0.5,
        iou_threshold=0.82,
        encoder_batch=3,
    ),
    GenerationOptions(
        points_per_side=5, crop_layers=1, iou_threshold=0, stability_threshold=0, box_nms=0.9
    ),
]


@pytest.mark.parametrize("options", OPTIONS, ids=["sam", "loose", "crops", "unfiltered"])
def test_generation_follows_the_published_procedure(options):
    images = [coordinates(90, 120), coordinates(64, 50)]
    decoder = DiskDecoder()
    for image, masks in zip(images, generate_masks(decoder, images, options), strict=True):
        expected = published(decoder, image, options)
        assert len(masks) == len(expected)
        packed = masks.pack(image.shape[:2])
        for i, (mask, box, iou, stability, point, crop) in enumerate(expected):
            assert np.array_equal(packed.mask(i), mask)
            assert masks.boxes[i].tolist() == box.tolist()
            assert masks.ious[i] == np.float32(iou)
            assert masks.stability[i] == pytest.approx(stability)
            assert masks.points[i] == pytest.approx(point)
            assert tuple(masks.crops[i]) == crop
    if options.crop_layers:
        assert len(np.unique(masks.crops, axis=0)) > 2  # crops do add masks


def test_small_crops_win():
    options = OPTIONS[2]
    (masks,) = generate_masks(DiskDecoder(), [coordinates(90, 120)], options)
    areas = (masks.crops[:, 2] - masks.crops[:, 0]) * (masks.crops[:, 3] - masks.crops[:, 1])
    assert (np.diff(areas) >= 0).all()


def test_nothing_found_is_one_token():
    options = GenerationOptions(points_per_side=2, iou_threshold=1.0)
    segmenter = SAMSegmenter(DiskDecoder(), options=options)
    tokens = SubobjectTokenizer(segmenter, size=None)(coordinates(40, 50))
    assert tokens.num_tokens == 1
    assert tokens.token_fields["source"].tolist() == [1]


def test_scores_that_are_no_numbers_are_an_error():
    class Broken(DiskDecoder):
        def decode(self, crop, points):
            logits, ious = super().decode(crop, points)
            return logits, ious * np.nan

    for kind in (SAMSegmenter, SAMEdgeSegmenter):
        with pytest.raises(SubtokError, match="NaN or infinite"):
            SubobjectTokenizer(kind(Broken()), size=None)(coordinates(20, 30))


def test_grid_and_crops():
    assert point_grid(1).tolist() == [[0.5, 0.5]]
    grid = point_grid(32)
    assert grid.shape == (1024, 2)
    assert grid[1].tolist() == [1.5 / 32, 0.5 / 32]  # x first, row by row
    boxes = crop_boxes((480, 640), 2, 512 / 1500)
    assert [layer for layer, _ in boxes] == [0] + [1] * 4 + [2] * 16
    covered = np.zeros((480, 640), int)
    for layer, (x0, y0, x1, y1) in boxes:
        assert 0 <= x0 < x1 <= 640
        assert 0 <= y0 < y1 <= 480
        if layer == 2:
            covered[y0:y1, x0:x1] += 1
    assert covered.min() == 1


def clean_by_hand(mask, min_area):
    """Holes, then islands, on the whole picture."""
    changed = False
    for holes in (True, False):
        labels, count = ndimage.label(mask ^ holes, np.ones((3, 3)))
        sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        small = [i + 1 for i, size in enumerate(sizes) if size < min_area]
        if not small:
            continue
        changed = True
        keep = [0, *small] if holes else [i for i in range(1, count + 1) if i not in small]
        mask = np.isin(labels, keep or [sizes.argmax() + 1])
    return mask, changed


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_cleaning_follows_its_definition(seed, min_area):
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(1, 40)), int(rng.integers(1, 40)))
    noise = ndimage.gaussian_filter(rng.random(size), rng.uniform(0, 2))
    mask = noise > np.quantile(noise, rng.random())
    mask[:, size[1] // 2 :] &= rng.random() < 0.5  # so that there is something to crop
    if not mask.any():  # stays empty, whatever the size of the picture
        assert clean_mask(mask, min_area) is mask
        return
    expected, changed = clean_by_hand(mask, min_area)
    cleaned = clean_mask(mask, min_area)
    assert np.array_equal(cleaned, expected)
    assert (cleaned is not mask) == changed


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.3, 0.7]))
@example(3229, 0.7)  # an IoU of exactly 0.7
def test_suppression_is_that_of_torchvision(seed, overlap):
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 12, (int(rng.integers(0, 30)), 2, 2))
    boxes = np.concatenate([corners.min(1), corners.max(1)], 1).astype(np.float64)
    scores = rng.integers(0, 4, len(boxes)) / 4
    expected = nms(torch.tensor(boxes), torch.tensor(scores), overlap)
    assert suppress_boxes(boxes, scores, overlap).tolist() == expected.tolist()


def test_cleaned_masks_give_way_to_those_left_as_they_were():
    whole = np.zeros((30, 30), bool)
    whole[5:25, 5:25] = True
    holed = whole.copy()
    holed[10, 10] = False
    masks = RLEMasks.from_masks([holed, whole], [0.9, 0.8], {"prompt": np.array([1, 2])})
    cleaned = clean_masks(masks, 10)
    assert cleaned.fields["prompt"].tolist() == [2]
    assert clean_masks(masks, 0) is masks
    partition = MaskPartitioner(min_region=10)(masks.to_evidence(), (30, 30))
    assert partition.token_fields["prompt"].tolist() == [-1, 2]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 0.7),
        ({"box_nms": 0.9}, 0.9),
        ({"crop_nms": 0.8}, 0.8),
        ({"box_nms": 0.4, "crop_nms": 0.5}, 0.5),
    ],
)
def test_cleaning_suppresses_at_the_larger_threshold_of_generation(options, expected):
    segmenter = SAMSegmenter("some/sam", options=GenerationOptions(**options), min_region=10)
    assert segmenter.partitioner.max_overlap == expected
    # Both have small holes, so neither wins as it was; their boxes overlap by 39 / 49.
    first, second = np.zeros((2, 60, 60), bool)
    first[5:55, 5:55] = second[15:55, 5:55] = True
    first[15, 15] = second[20, 20] = False
    masks = RLEMasks.from_masks([first, second], [0.9, 0.8], {"prompt": np.array([1, 2])})
    partition = segmenter.partitioner(masks.to_evidence(), (60, 60))
    kept = {1, 2} if expected >= 0.8 else {1}
    assert set(partition.token_fields["prompt"].tolist()) - {-1} == kept


@pytest.fixture(scope="session", params=MODELS)
def weights(request, tmp_path_factory) -> Path:
    """A model with random weights, saved by transformers."""
    return save_model(request.param, tmp_path_factory.mktemp(request.param))


def everything(weights, **options) -> SAMSegmenter:
    """Random weights are sure of nothing: no filter."""
    generation = GenerationOptions(
        points_per_side=4, iou_threshold=0, stability_threshold=0, edge_margin=2, **options
    )
    return SAMSegmenter(weights, options=generation, device="cpu")


def test_real_models_through_the_loader(weights, no_leaks):
    segmenter = everything(weights, crop_layers=1, crop_points_factor=2)
    tokenizer = SubobjectTokenizer(segmenter, max_tokens=6, size=None)
    expected = SubobjectCollator(tokenizer)([SubobjectDataset(ROWS)[i] for i in range(3)])
    validate_batch(expected)
    counts = expected["num_visual_tokens"]
    assert 1 < int(counts.max()) <= 6
    assert set(expected["visual_token_source"].unique().tolist()) <= {-1, 0, 1}
    with SubobjectLoader(SubobjectDataset(ROWS), tokenizer, batch_size=3, segment_workers=1) as own:
        (batch,) = own
    assert_same(batch, expected)


def test_logits_are_those_of_the_processor(weights):
    """Points, padding and upscaling as transformers' own processor does it for single prompts."""
    from transformers import AutoImageProcessor

    segmenter = everything(weights)
    decoder, image = segmenter.decoder, IMAGES[0]
    processor = AutoImageProcessor.from_pretrained(weights)
    points = np.array([[10.0, 20.0], [70.0, 40.0]])
    with torch.inference_mode():
        (_, embedding) = decoder.encode([IMAGES[1], image])
        logits, ious = decoder.decode(embedding, points)
        ours = decoder.upscale(embedding, logits[0]).numpy()
        inputs = processor(images=[image], return_tensors="pt")
        scale = 64 / 90, 64 / 90 if "reshaped_input_sizes" in inputs else 64 / 48
        if "reshaped_input_sizes" in inputs:  # rounded to whole pixels
            scale = 64 / 90, 34 / 48
        outputs = segmenter.model(
            inputs["pixel_values"],
            input_points=torch.tensor(points * scale, dtype=torch.float32)[None, :, None],
        )
        sizes = [inputs[key] for key in ("original_sizes", "reshaped_input_sizes") if key in inputs]
        options = {"pad_size": {"height": 64, "width": 64}} if len(sizes) == 2 else {}
        (masks,) = processor.post_process_masks(
            outputs.pred_masks, *sizes, binarize=False, **options
        )
    assert ours.shape == (3, 48, 90)
    assert ours == pytest.approx(masks[0].numpy(), rel=1e-4, abs=1e-3)
    assert ious.numpy() == pytest.approx(outputs.iou_scores[0].numpy(), rel=1e-4, abs=1e-3)


def test_saved_and_loaded(weights, tmp_path):
    options = GenerationOptions(points_per_side=3, iou_threshold=0, stability_threshold=0)
    rules = FillRules(min_area=5, gap_area=30)
    segmenter = SAMSegmenter(
        weights, options=options, paint="score", rules=rules, min_region=4, device="cpu"
    )
    tokenizer = SubobjectTokenizer(segmenter, size=None)
    tokenizer.save_pretrained(tmp_path)
    again = SubobjectTokenizer.from_pretrained(tmp_path, device="cpu")
    assert again.config() == tokenizer.config()
    assert np.array_equal(again(IMAGES[0]).token_map, tokenizer(IMAGES[0]).token_map)
    assert everything(weights).config() != segmenter.config()


def test_bad_options_and_weights(tmp_path):
    for options, message in (
        ({"points_per_side": 0}, "points_per_side=0"),
        ({"iou_threshold": 2}, "iou_threshold=2"),
        ({"crop_overlap": 1}, "crop_overlap=1"),
        ({"edge_margin": -1}, "edge_margin=-1"),
        ({"points_per_side": 4, "crop_layers": 3, "crop_points_factor": 2}, "leaves no point"),
    ):
        with pytest.raises(ConfigError, match=message):
            GenerationOptions(**options)
    with pytest.raises(ConfigError, match="no.* boundary map|without a boundary map"):
        SAMSegmenter(tmp_path, rules=FillRules(fill="boundary"))
    with pytest.raises(ConfigError, match="min_region=-1"):
        SAMSegmenter(tmp_path, min_region=-1)
    with pytest.raises(ConfigError, match="together with its image processor"):
        SAMSegmenter(torch.nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="cannot be saved"):
        SAMSegmenter(DiskDecoder()).config()
    with pytest.raises(ConfigError, match="takes no prompts"):
        SAMSegmenter(DiskDecoder()).infer(IMAGES[:1], [(48, 90)], [1])
    with pytest.raises(WeightsError, match="cannot be loaded"):
        SAMSegmenter(tmp_path).infer(IMAGES[:1], [(48, 90)])


def test_other_promptable_models_are_refused():
    from transformers import SamHQConfig, SamHQModel, SamHQVisionConfig, SamImageProcessor

    vision = SamHQVisionConfig(
        hidden_size=16,
        output_channels=256,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
        global_attn_indexes=[0],
    )
    prompts = {"image_size": 64, "patch_size": 16}
    model = SamHQModel(
        SamHQConfig(
            vision_config=vision.to_dict(),
            prompt_encoder_config=prompts,
            mask_decoder_config={"vit_dim": 16},
        )
    )
    size = {"longest_edge": 64}
    processor = SamImageProcessor(size=size, pad_size={"height": 64, "width": 64})
    with pytest.raises(
        ConfigError, match="SamHQModel wants more .* give SAM, SAM 2, SAM 3 or EdgeTAM"
    ):
        SAMSegmenter(model, processor, device="cpu").infer(IMAGES[:1], [(48, 90)])


def test_runs_on_the_way_out_are_those_of_the_masks():
    from subtok_data.segmenters.sam.generated_masks import mask_boxes, mask_runs

    rng = np.random.default_rng(0)
    masks = rng.random((20, 9, 7)) < rng.random((20, 1, 1))
    masks[0], masks[1] = False, True
    crop = (2, 1, 9, 10)
    for runs, box, mask in zip(
        mask_runs(torch.tensor(masks), crop, (12, 11)),
        mask_boxes(torch.tensor(masks)),
        masks,
        strict=True,
    ):
        whole = np.zeros((12, 11), bool)
        whole[1:10, 2:9] = mask
        assert runs.tolist() == encode_mask(whole).tolist()
        ys, xs = np.nonzero(mask)
        expected = [xs.min(), ys.min(), xs.max(), ys.max()] if len(ys) else [0] * 4
        assert box.tolist() == expected


def edges_by_hand(decoder, image, points_per_side):
    """The definition, with whole masks and filters of scipy."""
    (embedding,) = decoder.encode([image])
    points = point_grid(points_per_side) * (image.shape[1], image.shape[0])
    logits, ious = decoder.decode(embedding, points)
    logits, ious = logits.flatten(0, 1), ious.flatten()
    boxes = []
    for mask in logits.numpy() > 0:
        ys, xs = np.nonzero(mask)
        boxes.append([xs.min(), ys.min(), xs.max(), ys.max()] if len(ys) else [0] * 4)
    strength = np.zeros(image.shape[:2])
    for i in nms(torch.tensor(boxes, dtype=torch.float32), ious.float(), 0.7):
        one = logits[i].double().numpy()

        def sobel(values):
            sides = [ndimage.sobel(values, axis, mode="nearest") for axis in (0, 1)]
            return np.hypot(*sides)

        edges = np.where(sobel((one > 0).astype(float)) > 0, sobel(1 / (1 + np.exp(-one))), 0)
        strength = np.maximum(strength, edges)
    strength -= strength.min()
    return np.rint(strength / strength.max() * 255)


def test_edges_follow_their_definition():
    image = coordinates(70, 90)
    found = edge_map(DiskDecoder(), image, points_per_side=5, points_per_batch=7)
    expected = edges_by_hand(DiskDecoder(), image, 5)
    assert found.dtype == np.uint8
    assert found.max() == 255
    assert np.abs(found - expected).max() <= 1  # rounding of float32
    assert (found != expected).mean() < 0.01


def test_edges_make_tokens(weights, tmp_path):
    segmenter = SAMEdgeSegmenter(weights, threshold=0.3, points_per_side=3, device="cpu")
    tokenizer = SubobjectTokenizer(segmenter, max_tokens=6, size=None)
    batch = SubobjectCollator(tokenizer)(ROWS)
    validate_batch(batch)
    assert 1 < int(batch["num_visual_tokens"].max()) <= 6
    tokenizer.save_pretrained(tmp_path)
    again = SubobjectTokenizer.from_pretrained(tmp_path, device="cpu")
    assert again.config() == tokenizer.config()
    exact = SubobjectTokenizer(SAMEdgeSegmenter(DiskDecoder()), num_tokens=20, size=None)
    assert exact(coordinates(70, 90)).num_tokens == 20
    with pytest.raises(ConfigError, match="points_per_side=0"):
        SAMEdgeSegmenter(weights, points_per_side=0)
    with pytest.raises(ConfigError, match="box_nms=2"):
        SAMEdgeSegmenter(weights, box_nms=2)


def test_no_edges_are_one_token():
    class Blind(DiskDecoder):
        def decode(self, crop, points):
            return torch.full((len(points), 3, *crop.shape[:2]), -5.0), torch.zeros(len(points), 3)

    segmenter = SAMEdgeSegmenter(Blind(), points_per_side=2)
    assert SubobjectTokenizer(segmenter, size=None)(coordinates(20, 30)).num_tokens == 1


def test_sam3_as_it_is_published_loads_by_its_folder(tmp_path):
    """Detector and video tracker share a file; points prompt the tracker, on its own neck."""
    published = save_published_sam3(tmp_path / "sam3")
    options = GenerationOptions(points_per_side=4, iou_threshold=0, stability_threshold=0)
    segmenter = SAMSegmenter(tmp_path / "sam3", options=options, device="cpu")
    assert type(segmenter.model).__name__ == "Sam3TrackerModel"
    loaded, given = segmenter.model.state_dict(), published.state_dict()
    for mine, theirs in (
        ("mask_decoder.", "tracker_model.mask_decoder."),
        ("prompt_encoder.", "tracker_model.prompt_encoder."),
        ("vision_encoder.backbone.", "detector_model.vision_encoder.backbone."),
        ("vision_encoder.neck.", "tracker_neck."),
    ):
        names = [name.removeprefix(mine) for name in loaded if name.startswith(mine)]
        assert names
        for name in names:
            assert torch.equal(loaded[mine + name], given[theirs + name]), name
    tokens = SubobjectTokenizer(segmenter, size=96)(data.chelsea())
    assert tokens.num_tokens > 1
    assert tokens.areas.sum() == tokens.token_map.size


def test_what_sam3_finds_for_phrases_is_made_a_partition(tmp_path):
    """The detector of the same folder: its masks, as transformers reads them, with a class each."""
    from transformers import Sam3ImageProcessor, Sam3Model

    save_published_sam3(tmp_path)
    model, report = Sam3Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    processor = Sam3ImageProcessor.from_pretrained(tmp_path)
    image = data.chelsea()[::4, ::4]
    inputs = processor(images=[image], return_tensors="pt")
    found, classes, scores = [], [], []
    for phrase, words in enumerate(([1, 7, 2], [1, 9, 2])):
        with torch.inference_mode():
            outputs = model(**inputs, input_ids=torch.tensor([words]))
        (result,) = processor.post_process_instance_segmentation(
            outputs, threshold=0, target_sizes=[image.shape[:2]]
        )
        found += [mask.numpy() > 0 for mask in result["masks"]]
        classes += [phrase] * len(result["masks"])
        scores += result["scores"].tolist()
    assert len(found) == 12
    rle = RLEMasks.from_masks(found, scores, {"class": np.array(classes)})
    partition = MaskPartitioner("area", FillRules())(rle.to_evidence(), image.shape[:2])
    assert partition.token_map.min() == 0
    assert len(partition.token_fields["class"]) == partition.num_tokens > 1
