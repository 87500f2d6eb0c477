"""EfficientSAM from files with the official interface: TorchScript and ONNX, the same tokens."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_efficient_sam import make_model, save_onnx, save_torchscript
from skimage import data
from torch import nn

from subtok_data import (
    PatchSegmenter,
    PromptColumns,
    PromptedSegmenter,
    SubobjectDataset,
    SubobjectLoader,
    SubobjectTokenizer,
    validate_batch,
)
from subtok_data.errors import ConfigError, PromptError, SampleError, SubtokError, WeightsError
from subtok_data.segment import Prompts
from subtok_data.segmenters import EfficientSAMPrompter, EfficientSAMSegmenter, GenerationOptions
from subtok_data.segmenters.sam.decoder import PromptChunk
from subtok_data.segmenters.sam.efficient_sam import EfficientSAMDecoder, open_efficient_sam
from subtok_data.segmenters.sam.efficient_sam_torchscript import TorchScriptFile

PHOTOS = [np.ascontiguousarray(photo()[::5, ::5]) for photo in (data.coffee, data.chelsea)]
OPTIONS = GenerationOptions(
    points_per_side=6, points_per_batch=8, iou_threshold=0, stability_threshold=0.5
)
FORMS = ["torchscript", "onnx", "onnx-free"]


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> dict[str, Path]:
    """One model in all the forms; those that cannot be written are left out."""
    folder = tmp_path_factory.mktemp("efficient-sam")
    model = make_model()
    found = {"torchscript": save_torchscript(model, folder / "efficient_sam_vitt_torchscript.pt")}
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError:
        return found
    for form, queries in (("onnx", 1), ("onnx-free", None)):
        (folder / form).mkdir()
        found[form] = save_onnx(model, folder / form, queries=queries)
    return found


@pytest.fixture(params=FORMS)
def file(request, files) -> Path:
    if request.param not in files:
        pytest.skip("onnx and onnxruntime are not installed")
    return files[request.param]


def decoder_of(file: Path) -> EfficientSAMDecoder:
    return EfficientSAMDecoder(open_efficient_sam(file, "cpu"))


def test_all_forms_give_the_same_tokens(files):
    if len(files) < 3:
        pytest.skip("onnx and onnxruntime are not installed")
    maps = []
    for form in FORMS:
        segmenter = EfficientSAMSegmenter(files[form], options=OPTIONS, device="cpu")
        maps.append([tokens.token_map for tokens in SubobjectTokenizer(segmenter)(PHOTOS)])
    assert min(int(one.max()) for one in maps[0]) > 10
    for others in maps[1:]:
        for first, other in zip(maps[0], others, strict=True):
            assert (first == other).mean() > 0.999  # float32 rounds in another order
    evidence = [
        EfficientSAMSegmenter(files[form], options=OPTIONS, device="cpu").infer(
            PHOTOS, [photo.shape[:2] for photo in PHOTOS]
        )
        for form in FORMS
    ]
    for first, *others in zip(*evidence, strict=True):
        for other in others:
            assert first["mask_scores"] == pytest.approx(other["mask_scores"], abs=1e-4)


def test_logits_are_those_of_the_official_call(file):
    """Pictures in [0, 1], points and boxes in their pixels, masks scaled to them."""
    decoder, photo = decoder_of(file), PHOTOS[0]
    height, width = photo.shape[:2]
    dots = np.array([[10.5, 20.25], [70, 40]])
    boxes = np.array([[5.0, 10, 60, 50], [30, 8, 90, 70]])
    pixels = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(1, 2, 2, 2)
    with torch.inference_mode():
        _, embedding = decoder.encode([PHOTOS[1], photo])
        for chunk, points, labels in (
            (
                PromptChunk.of_points(dots),
                torch.tensor(dots, dtype=torch.float32)[None, :, None],
                torch.ones(1, 2, 1),
            ),
            (
                PromptChunk(np.zeros((2, 0, 2)), np.zeros((2, 0), np.int64), boxes),
                corners,
                torch.tensor([[[2.0, 3.0]] * 2]),
            ),
            (
                PromptChunk(dots[:, None], np.ones((2, 1), np.int64), boxes),
                torch.cat([corners, torch.tensor(dots).float()[None, :, None]], 2),
                torch.tensor([[[2.0, 3.0, 1.0]] * 2]),
            ),
        ):
            masks, ious = make_model()(pixels, points, labels)
            logits, scores = decoder.prompt(embedding, chunk)
            ours = decoder.upscale(embedding, logits[1])
            assert logits.shape == (2, 3, 64, 64)
            assert ours.shape == (3, height, width)
            assert ours.numpy() == pytest.approx(masks[0, 1].numpy(), abs=2e-3)
            assert scores.numpy() == pytest.approx(ious[0].numpy(), abs=1e-4)


def test_pictures_of_one_size_are_encoded_together(file):
    decoder = decoder_of(file)
    calls: list[int] = []
    embed = decoder.model.embed
    decoder.model.embed = lambda pixels: calls.append(len(pixels)) or embed(pixels)
    images = [PHOTOS[0], PHOTOS[1], PHOTOS[0][::-1].copy()]
    with torch.inference_mode():
        found = decoder.encode(images)
        assert calls == [2, 1]
        for image, (features, size) in zip(images, found, strict=True):
            ((alone, _),) = decoder.encode([image])
            assert size == image.shape[:2]
            assert features.numpy() == pytest.approx(alone.numpy(), abs=1e-5)


def test_no_call_is_larger_than_the_chunk(file):
    """Low-resolution masks come in chunks of points, large ones only of what is kept."""
    decoder = decoder_of(file)
    asked: list[int] = []
    scaled: list[int] = []
    predict, upscale = decoder.model.predict, decoder.upscale

    def watched(embedding, points, labels):
        logits, ious = predict(embedding, points, labels)
        asked.append(len(points))
        assert logits.shape[-2:] == (64, 64)
        return logits, ious

    decoder.model.predict = watched
    decoder.upscale = lambda embedding, logits: (
        scaled.append(len(logits)) or upscale(embedding, logits)
    )
    options = GenerationOptions(points_per_side=8, points_per_batch=5, iou_threshold=0.3)
    EfficientSAMSegmenter(decoder, options=options).infer(PHOTOS[:1], [PHOTOS[0].shape[:2]])
    assert asked == [5] * 12 + [4]
    assert max(scaled) <= 15
    assert 0 < sum(scaled) < 3 * 64  # filtered by predicted IoU before


PEAK = """
import sys
import numpy as np, torch
from helpers.peak_memory import peak, reset_peak
torch.set_num_threads(1)
from subtok_data.segmenters import EfficientSAMSegmenter
from subtok_data.segmenters import GenerationOptions

image = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
found = []
for batch in (16, 16, 2304):
    options = GenerationOptions(points_per_side=48, points_per_batch=batch)
    segmenter = EfficientSAMSegmenter(sys.argv[1], options=options, device="cpu")
    before = reset_peak()
    segmenter.infer([image], [image.shape[:2]])
    found.append(peak() - before)
print(found[1], found[2])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_peak_memory_is_bounded_by_the_chunk(files):
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(files["torchscript"])],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    same, all_at_once = (float(word) for word in done.stdout.split())
    # Each of 2304 points needs 16 × 64² floats for its copy of the embedding alone: 604 MB.
    assert all_at_once > 300
    assert same < 0.1 * all_at_once


def test_a_torchscript_file_works_in_and_outside_inference_mode(files):
    model = TorchScriptFile(files["torchscript"], torch.device("cpu"))
    pixels, points, labels = torch.rand(1, 3, 40, 40), torch.rand(2, 1, 2), torch.ones(2, 1)

    def run() -> torch.Tensor:
        return model.predict(model.embed(pixels), points, labels.long())[0]

    results = [run() for _ in range(3)]  # compiled at the second call
    assert not results[0].requires_grad
    with torch.inference_mode():
        results += [run() for _ in range(3)]
    results += [run() for _ in range(3)]
    for result in results:
        assert torch.allclose(result, results[0], atol=1e-5)


def test_saved_and_loaded(file, tmp_path):
    segmenter = EfficientSAMSegmenter(file, options=OPTIONS, min_region=5, device="cpu")
    tokenizer = SubobjectTokenizer(segmenter, size=None)
    tokenizer.save_pretrained(tmp_path)
    again = SubobjectTokenizer.from_pretrained(tmp_path, device="cpu")
    assert isinstance(again.segmenter, EfficientSAMSegmenter)
    assert again.config() == tokenizer.config()
    assert np.array_equal(again(PHOTOS[0]).token_map, tokenizer(PHOTOS[0]).token_map)
    assert again.device == torch.device("cpu")
    again.save_pretrained(tmp_path)  # onto itself
    prompter = EfficientSAMPrompter(file, device="cpu")
    prompter.save_model(tmp_path)
    reread = EfficientSAMPrompter.from_config(prompter.config(), tmp_path, "cpu")
    assert reread.config() == prompter.config()


# --- prompts -----------------------------------------------------------------------------------


def test_prompts_get_the_best_of_three_masks(file):
    photo = PHOTOS[0]
    size = photo.shape[:2]
    drawn = np.zeros(size, bool)
    drawn[4:9, 5:30] = True
    prompts = Prompts.of(
        size,
        boxes=[[5, 10, 60, 50], [np.nan] * 4, [30, 8, 90, 70], [np.nan] * 4],
        points=[[[0, 0], [0, 0]], [[20, 30], [0, 0]], [[50, 30], [60, 31]], [[0, 0], [0, 0]]],
        labels=[[-1, -1], [1, -1], [1, 1], [-1, -1]],
        masks=[0 * drawn, 0 * drawn, 0 * drawn, drawn],
    )
    prompter = EfficientSAMPrompter(file, device="cpu", prompts_per_batch=1)
    nothing, found = prompter.prompt_masks([PHOTOS[1], photo], [None, prompts])
    assert nothing is None
    assert found.size == size
    decoder = prompter.decoder
    with torch.inference_mode():
        (embedding,) = decoder.encode([photo])
        for index, chunk in enumerate(
            (
                PromptChunk(
                    np.zeros((1, 0, 2)), np.zeros((1, 0), np.int64), np.array([[5.0, 10, 60, 50]])
                ),
                PromptChunk.of_points(np.array([[20.0, 30]])),
                PromptChunk(
                    np.array([[[50.0, 30], [60, 31]]]),
                    np.ones((1, 2), np.int64),
                    np.array([[30.0, 8, 90, 70]]),
                ),
            )
        ):
            logits, ious = decoder.prompt(embedding, chunk)
            best = int(ious[0].argmax())
            mask = decoder.upscale(embedding, logits[:, best])[0] > 0
            assert np.array_equal(found.mask(index), mask.numpy())
            assert found.scores[index] == pytest.approx(float(ious[0, best]), abs=1e-5)
    assert np.array_equal(found.mask(3), drawn)
    assert found.scores[3] == 1


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ({"points": [[[5, 5], [9, 9]]], "labels": [[1, 0]]}, r"prompt 0 .* label 0 .*SAMPrompter"),
        ({"points": [[[5, 5]] * 7]}, "7 points"),
        ({"points": [[[5, 5]] * 5], "boxes": [[0, 0, 9, 9]]}, "7 points .a box has 2"),
        ({"boxes": [[0, 0, 9, 9]], "masks": [np.ones((96, 128), bool)]}, "takes no mask"),
    ],
)
def test_what_the_model_would_ignore_is_an_error(files, prompts, words):
    image = np.zeros((96, 128, 3), np.uint8)
    prompter = EfficientSAMPrompter(files["torchscript"], device="cpu")
    with pytest.raises(PromptError, match=words):
        prompter.prompt_masks([image], [Prompts.of((96, 128), **prompts)])


def test_a_negative_click_in_a_dataset_names_its_sample(files):
    rows = [
        {"image": PHOTOS[0], "dots": [[[20, 20], [60, 50]]], "kinds": [[1, kind]]}
        for kind in (1, 0, 1)
    ]
    columns = PromptColumns(points="dots", labels="kinds")
    prompter = EfficientSAMPrompter(files["torchscript"], device="cpu")
    tokenizer = SubobjectTokenizer(PromptedSegmenter(PatchSegmenter(16), prompter=prompter))
    dataset = SubobjectDataset(rows, prompts=columns)
    with pytest.raises(SampleError, match="sample 1 failed in infer: prompt 0 has a point with la"):
        with SubobjectLoader(dataset, tokenizer, batch_size=3, executor="inline") as loader:
            list(loader)
    with SubobjectLoader(
        dataset, tokenizer, batch_size=3, executor="inline", on_error="replace"
    ) as loader:
        (batch,) = loader
    validate_batch(batch)
    assert batch["region_to_image"].tolist() == [0, 1, 2]


def test_a_decoder_for_another_number_of_points_says_so(files):
    if "onnx" not in files:
        pytest.skip("onnx and onnxruntime are not installed")
    decoder = decoder_of(files["onnx"])
    decoder.model._points = 3
    with pytest.raises(PromptError, match="1 points .* exported for 3"):
        decoder.check(Prompts.of((96, 128), points=[[5, 5]]))


# --- files of the wrong kind -------------------------------------------------------------------


class Other(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


def test_wrong_files_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    torch.save(make_model().state_dict(), tmp_path / "weights.pt")
    save_torchscript(Other(), tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("no model")
    broken = (tmp_path / "other.pt").read_bytes()
    (tmp_path / "decoder.onnx").write_bytes(b"")
    (tmp_path / "short.pt").write_bytes(broken[: len(broken) // 2])
    for name, words in (
        ("absent.pt", "does not exist"),
        ("empty", "holds nothing of the kind"),
        ("weights.pt", "pickled weights"),
        ("other.pt", "no method get_image_embeddings or predict_masks"),
        ("text.pt", "no TorchScript file"),
        ("short.pt", "no TorchScript file"),
        ("decoder.onnx", "not named as an encoder"),
        (".", "holds other.pt, short.pt, text.pt, weights.pt"),
    ):
        segmenter = EfficientSAMSegmenter(tmp_path / name)
        with pytest.raises(WeightsError, match=words) as raised:
            segmenter.infer(PHOTOS[:1], [PHOTOS[0].shape[:2]])
        assert "efficient_sam_vitt_torchscript.pt" in str(raised.value)


def test_wrong_onnx_files_are_named(files, tmp_path):
    if "onnx" not in files:
        pytest.skip("onnx and onnxruntime are not installed")
    encoder = files["onnx"]
    decoder = encoder.with_name(encoder.name.replace("encoder", "decoder"))
    target = tmp_path / "a_encoder.onnx"
    target.write_bytes(encoder.read_bytes())
    with pytest.raises(WeightsError, match=r"a_decoder\.onnx' is missing"):
        open_efficient_sam(target, "cpu")
    (tmp_path / "a_decoder.onnx").write_bytes(encoder.read_bytes())
    with pytest.raises(WeightsError, match="inputs batched_images, expected image_embeddings"):
        open_efficient_sam(target, "cpu")
    (tmp_path / "a_decoder.onnx").write_bytes(decoder.read_bytes())
    target.write_bytes(decoder.read_bytes())
    with pytest.raises(WeightsError, match="expected batched_images"):
        open_efficient_sam(tmp_path, "cpu")
    target.write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="cannot be loaded by onnxruntime"):
        open_efficient_sam(tmp_path, "cpu")


def test_onnxruntime_is_asked_for(files, monkeypatch):
    if "onnx" not in files:
        pytest.skip("onnx and onnxruntime are not installed")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(WeightsError, match=r"pip install subtok-data\[onnx\]"):
        open_efficient_sam(files["onnx"], "cpu")


def test_scores_that_are_no_numbers_and_bad_options(files):
    decoder = decoder_of(files["torchscript"])
    predict = decoder.model.predict
    decoder.model.predict = lambda *given: tuple(values * np.nan for values in predict(*given))
    with pytest.raises(SubtokError, match="NaN or infinite"):
        EfficientSAMSegmenter(decoder).infer(PHOTOS[:1], [PHOTOS[0].shape[:2]])
    prompts = Prompts.of(PHOTOS[0].shape[:2], boxes=[[0, 0, 9, 9]])
    with pytest.raises(SubtokError, match="NaN or infinite"):
        EfficientSAMPrompter(decoder).prompt_masks(PHOTOS[:1], [prompts])
    with pytest.raises(ConfigError, match="prompts_per_batch=0"):
        EfficientSAMPrompter("x.pt", prompts_per_batch=0)
