"""Prompters: masks for boxes, points and masks, checked against transformers' own processors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_sam import MODELS, save_model
from skimage import data

from subtok_data import SAMSegmenter
from subtok_data.errors import ConfigError, PromptError, SubtokError, WeightsError
from subtok_data.segment import Prompts
from subtok_data.segmenters import Prompter, SAMPrompter, build_prompter

PHOTO = np.ascontiguousarray(data.coffee()[::5, ::4])  # 80 × 150
SIZE = PHOTO.shape[:2]
OTHER = np.ascontiguousarray(data.chelsea()[::6, ::6])

BOXES = np.array([[5.0, 10, 60, 50], [30, 8, 140.5, 70]])
POINTS = np.array([[20.5, 30.5], [99, 41], [70.25, 60]])
NO_BOX = [np.nan] * 4
NO_POINT = [0.0, 0.0]


@pytest.fixture(scope="session", params=MODELS)
def folder(request, tmp_path_factory) -> Path:
    return save_model(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def prompter(folder) -> SAMPrompter:
    return SAMPrompter(folder, device="cpu")


def by_transformers(folder, prompter, image, several, masks=None, **prompts):
    """Masks and scores of the prompts of one picture, by the model's own processor."""
    from transformers import AutoImageProcessor, Sam2Processor, Sam3TrackerProcessor, SamProcessor

    processor = AutoImageProcessor.from_pretrained(folder)
    kinds = {"Sam2": Sam2Processor, "Sam3": Sam3TrackerProcessor}
    kind = kinds.get(type(processor).__name__[:4], SamProcessor)
    is_sam = kind is SamProcessor
    processor = kind(processor)
    inputs = processor(images=image, return_tensors="pt", **prompts)
    given = {
        name: inputs[name].float() if inputs[name].is_floating_point() else inputs[name]
        for name in ("pixel_values", "input_points", "input_labels", "input_boxes")
        if name in inputs
    }
    with torch.inference_mode():
        outputs = prompter.model(**given, input_masks=masks, multimask_output=several)
    sizes = [inputs[name] for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
    options = {"pad_size": {"height": 64, "width": 64}} if is_sam else {}
    (large,) = processor.image_processor.post_process_masks(
        outputs.pred_masks, *sizes, binarize=False, **options
    )
    return large.numpy(), outputs.iou_scores[0].numpy()


def assert_answer(found, index, logits, score):
    """Equal but where a logit is within rounding of 0."""
    clear = np.abs(logits) > 1e-3
    assert clear.mean() > 0.99
    assert np.array_equal(found.mask(index)[clear], (logits > 0)[clear])
    assert found.scores[index] == pytest.approx(float(score), rel=1e-4, abs=1e-3)


def test_boxes_get_one_mask(folder, prompter):
    (found,) = prompter.prompt_masks([PHOTO], [Prompts.of(SIZE, boxes=BOXES)])
    logits, ious = by_transformers(folder, prompter, PHOTO, False, input_boxes=[BOXES.tolist()])
    assert found.size == SIZE
    for index in range(2):
        assert_answer(found, index, logits[index, 0], ious[index, 0])


def test_single_points_get_the_best_of_three_masks(folder, prompter):
    (found,) = prompter.prompt_masks([PHOTO], [Prompts.of(SIZE, points=POINTS)])
    logits, ious = by_transformers(
        folder,
        prompter,
        PHOTO,
        True,
        input_points=[[[one] for one in POINTS.tolist()]],
        input_labels=[[[1]] * 3],
    )
    assert logits.shape[1] == 3
    for index in range(3):
        best = ious[index].argmax()
        assert_answer(found, index, logits[index, best], ious[index, best])


def test_several_points_get_one_mask(folder, prompter):
    prompts = Prompts.of(SIZE, points=[POINTS], labels=[[1, 0, 1]])
    (found,) = prompter.prompt_masks([PHOTO], [prompts])
    logits, ious = by_transformers(
        folder, prompter, PHOTO, False, input_points=[[POINTS.tolist()]], input_labels=[[[1, 0, 1]]]
    )
    assert_answer(found, 0, logits[0, 0], ious[0, 0])


def test_a_box_with_points_gets_one_mask(folder, prompter):
    prompts = Prompts.of(SIZE, boxes=BOXES[:1], points=[POINTS[:2]], labels=[[1, 0]])
    (found,) = prompter.prompt_masks([PHOTO], [prompts])
    logits, ious = by_transformers(
        folder,
        prompter,
        PHOTO,
        False,
        input_boxes=[BOXES[:1].tolist()],
        input_points=[[POINTS[:2].tolist()]],
        input_labels=[[[1, 0]]],
    )
    assert_answer(found, 0, logits[0, 0], ious[0, 0])


def drawn_masks() -> list[np.ndarray]:
    y, x = np.indices(SIZE)
    return [np.hypot(y - 40, x - 50) < 25, (x > 90) & (y > 20)]


def test_masks_go_in_beside_boxes(folder, prompter):
    """A given mask is laid over the model's input as the picture is."""
    masks = drawn_masks()
    (found,) = prompter.prompt_masks([PHOTO], [Prompts.of(SIZE, boxes=BOXES, masks=masks)])
    (plain,) = prompter.prompt_masks([PHOTO], [Prompts.of(SIZE, boxes=BOXES)])
    with torch.inference_mode():
        (embedding,) = prompter.decoder.encode([PHOTO])
        logits = prompter.decoder.to_logits(embedding, torch.tensor(np.stack(masks)))
        # Seen again at the size of the picture, it is the mask that was given.
        seen = prompter.decoder.upscale(embedding, logits[:, 0]) > 0
    cells = prompter.model.prompt_encoder.image_embedding_size
    assert logits.shape == (2, 1, 4 * cells[0], 4 * cells[1])
    for mask, one in zip(masks, seen.numpy(), strict=True):
        assert (mask & one).sum() / (mask | one).sum() > 0.85
    for index in range(2):
        large, ious = by_transformers(
            folder,
            prompter,
            PHOTO,
            False,
            masks=logits[index : index + 1],
            input_boxes=[BOXES[index : index + 1].tolist()],
        )
        assert_answer(found, index, large[0, 0], ious[0, 0])
    assert not np.array_equal(found.counts, plain.counts)


def test_refinement_gives_the_logits_back(folder):
    refined = SAMPrompter(folder, device="cpu", refine_rounds=2)
    prompts = Prompts.of(SIZE, boxes=[BOXES[0], NO_BOX], points=[[POINTS[0]], [POINTS[1]]])
    (found,) = refined.prompt_masks([PHOTO], [prompts])
    from subtok_data.segmenters.sam.decoder import PromptChunk

    with torch.inference_mode():
        decoder = refined.decoder
        (embedding,) = decoder.encode([PHOTO])
        for index, box in enumerate((BOXES[:1], None)):
            dots, ones = POINTS[index : index + 1, None], np.ones((1, 1), np.int64)
            logits, ious = decoder.prompt(
                embedding, PromptChunk(dots, ones, box, several=box is None)
            )
            for _ in range(2):
                best = int(ious[0].argmax())
                again = PromptChunk(dots, ones, box, logits[:, best : best + 1])
                logits, ious = decoder.prompt(embedding, again)
            assert logits.shape[1] == 1
            assert_answer(found, index, decoder.upscale(embedding, logits[0])[0].numpy(), ious[0])
    (once,) = SAMPrompter(folder, device="cpu").prompt_masks([PHOTO], [prompts])
    assert not np.array_equal(once.counts, found.counts)


def test_prompts_of_all_forms_keep_their_order(prompter):
    """What stands beside a prompt, in its picture or its batch, does not change its mask."""
    masks = drawn_masks()
    nothing = np.zeros(SIZE, bool)
    mixed = Prompts.of(
        SIZE,
        boxes=[NO_BOX, BOXES[0], NO_BOX, NO_BOX, BOXES[1], BOXES[1]],
        points=[
            [POINTS[0], NO_POINT],
            [NO_POINT, NO_POINT],
            [NO_POINT, NO_POINT],
            [POINTS[1], POINTS[2]],
            [NO_POINT, POINTS[0]],
            [NO_POINT, NO_POINT],
        ],
        labels=[[1, -1], [-1, -1], [-1, -1], [1, 0], [-1, 1], [-1, -1]],
        masks=[nothing, nothing, masks[0], nothing, nothing, masks[1]],
    )
    other = Prompts.of(OTHER.shape[:2], boxes=[[3, 3, 30, 30]])
    nobody, found, second = prompter.prompt_masks([PHOTO, PHOTO, OTHER], [None, mixed, other])
    assert nobody is None
    assert len(found) == 6
    assert second.size == OTHER.shape[:2]
    assert np.array_equal(found.mask(2), masks[0])
    assert found.scores[2] == 1
    for index in range(6):
        (alone,) = prompter.prompt_masks([PHOTO], [mixed.take([index])])
        assert (alone.mask(0) == found.mask(index)).mean() > 0.995
        assert alone.scores[0] == pytest.approx(found.scores[index], rel=1e-4, abs=1e-3)


class Watched:
    """A decoder without a network: a box is its mask, a point the row that it is in."""

    def __init__(self):
        self.encoded, self.asked, self.scaled = [], [], []

    def encode(self, crops):
        self.encoded.append(len(crops))
        return [crop.shape[:2] for crop in crops]

    def check(self, prompts):
        pass

    def prompt(self, size, chunk):
        self.asked.append((len(chunk), chunk.several))
        masks = torch.full((len(chunk), 3 if chunk.several else 1, *size), -1.0)
        for index in range(len(chunk)):
            if chunk.boxes is not None:
                x0, y0, x1, y1 = chunk.boxes[index].astype(int)
                masks[index, 0, y0:y1, x0:x1] = 1
            else:
                masks[index, -1, int(chunk.points[index, 0, 1])] = 1
        return masks, torch.linspace(0.5, 0.9, masks.shape[1]).expand(len(chunk), -1)

    def to_logits(self, size, masks):
        return masks[:, None].float()

    def upscale(self, size, logits):
        self.scaled.append(len(logits))
        return logits


def test_prompts_go_in_chunks_and_only_where_there_are_any():
    decoder = Watched()
    count = 70
    boxes = [[i % 50, 2, i % 50 + 3, 9] for i in range(count)] + [NO_BOX] * 3
    dots = [[NO_POINT]] * count + [[[4, i]] for i in (5, 6, 7)]
    labels = [[-1]] * count + [[1]] * 3
    prompts = Prompts.of((20, 60), boxes=boxes, points=dots, labels=labels)
    images = [np.zeros((20, 60, 3), np.uint8)] * 4
    only_mask = Prompts.of((20, 60), masks=[np.eye(20, 60, dtype=bool)])
    prompter = SAMPrompter(decoder, prompts_per_batch=32, encoder_batch=1)
    found = prompter.prompt_masks(images, [None, prompts, only_mask, prompts.take([0, 72])])
    assert decoder.encoded == [1, 1]  # nothing for the first, a mask of its own for the third
    calls = [(1, False), (1, True), (3, True), (6, False), (32, False), (32, False)]
    assert sorted(decoder.asked) == calls
    assert max(decoder.scaled) == 32
    assert found[0] is None
    expected = np.zeros((20, 60), bool)
    expected[2:9, 19:22] = True
    assert np.array_equal(found[1].mask(69), expected)
    assert found[1].mask(71).sum(1).tolist() == [60 * (row == 6) for row in range(20)]
    assert found[1].scores[[0, 71]].tolist() == pytest.approx([0.5, 0.9])
    assert np.array_equal(found[2].mask(0), np.eye(20, 60, dtype=bool))
    assert np.array_equal(found[3].mask(1), found[1].mask(72))


def test_no_prompts_and_nothing_found():
    class Blind(Watched):
        def prompt(self, size, chunk):
            masks, ious = super().prompt(size, chunk)
            return 0 * masks - 1, ious

    image = np.zeros((20, 60, 3), np.uint8)
    prompts = Prompts.of((20, 60), boxes=[[1, 1, 9, 9]])
    prompter = SAMPrompter(Blind())
    (found,) = prompter.prompt_masks([image], [prompts])
    assert found.areas.tolist() == [0]
    (none,) = prompter.prompt_masks([image], [prompts.take([])])
    assert len(none) == 0
    assert none.size == (20, 60)


def test_saved_and_loaded(folder, tmp_path):
    prompter = SAMPrompter(folder, device="cpu", refine_rounds=1)
    assert isinstance(prompter, Prompter)
    prompter.save_model(tmp_path)
    assert (tmp_path / SAMPrompter.folder / "config.json").is_file()
    config = prompter.config()
    again = build_prompter(config, tmp_path, "cpu")
    assert again.config() == config
    assert SAMPrompter(folder, device="cpu").config() != config


def test_a_segmenters_model_serves_prompts_too(folder):
    segmenter = SAMSegmenter(folder, device="cpu")
    prompter = SAMPrompter(segmenter.decoder)
    assert prompter.model is segmenter.model
    assert prompter.model_hash() == segmenter.model_hash()


def test_bad_prompts_and_options(tmp_path):
    image = np.zeros((20, 60, 3), np.uint8)
    prompts = Prompts.of((20, 60), boxes=[[1, 1, 9, 9]])
    with pytest.raises(PromptError, match=r"image 1 has 20 × 60 .* 40 × 60: .*Prompts\.resized"):
        SAMPrompter(Watched()).prompt_masks([image] * 2, [prompts, prompts.resized((40, 60))])
    for options, message in (
        ({"prompts_per_batch": 0}, "prompts_per_batch=0"),
        ({"encoder_batch": 0}, "encoder_batch=0"),
        ({"refine_rounds": -1}, "refine_rounds=-1"),
    ):
        with pytest.raises(ConfigError, match=message):
            SAMPrompter(tmp_path, **options)
    with pytest.raises(WeightsError, match="cannot be loaded"):
        SAMPrompter(tmp_path).prompt_masks([image], [prompts])

    class Broken(Watched):
        def prompt(self, size, chunk):
            masks, ious = super().prompt(size, chunk)
            return masks, ious * np.nan

    with pytest.raises(SubtokError, match="NaN or infinite"):
        SAMPrompter(Broken()).prompt_masks([image], [prompts])
