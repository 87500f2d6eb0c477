"""Readers of labelled images, the check before a run, and crops."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from subtok_data.errors import ConfigError
from subtok_data.segment import RLEMasks
from subtok_data.training import parse_source, preset, write_masks
from subtok_data.training.config import AugmentConfig, TrainConfig
from subtok_data.training.crops import draw_crop
from subtok_data.training.samples import Sample, check_sources


def quadrants(height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    labels = np.zeros((height, width), np.uint8)
    labels[: height // 2] += 1
    labels[:, : width // 2] += 2
    return labels


def picture(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.stack([labels * 60, 255 - labels * 60, labels * 20], axis=-1).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    labels = quadrants()
    for name in ("images", "labels", "masks", "sa1b", "maps"):
        (tmp_path / name).mkdir()
    for stem in ("a", "b"):
        Image.fromarray(picture(labels)).save(tmp_path / "images" / f"{stem}.png")
        Image.fromarray(labels).save(tmp_path / "labels" / f"{stem}.png")
        Image.fromarray(labels * 60).save(tmp_path / "maps" / f"{stem}.png")
        scores = np.full(4, 0.95, np.float32)
        masks = RLEMasks.from_masks(
            [labels == value for value in range(4)], scores, {"stability": scores}
        )
        write_masks(tmp_path / "masks" / f"{stem}.npz", masks)
        entries = [
            {"segmentation": {"size": list(labels.shape), "counts": masks.runs(index).tolist()},
             "predicted_iou": 0.95, "stability_score": 0.95}
            for index in range(len(masks))
        ]  # fmt: skip
        about = {"image": {"height": labels.shape[0], "width": labels.shape[1]}}
        (tmp_path / "sa1b" / f"{stem}.json").write_text(
            json.dumps({**about, "annotations": entries})
        )
    coco = {
        "images": [
            {"id": 1, "file_name": "a.png", "license": 4},
            {"id": 2, "file_name": "b.png", "license": 1},
        ],
        "annotations": [
            {
                "image_id": 1,
                "file_name": "a.png",
                "segments_info": [],
                "segmentation": [[8, 8, 40, 8, 40, 30, 8, 30]],
            },
            {
                "image_id": 2,
                "file_name": "b.png",
                "segments_info": [],
                "segmentation": [[8, 8, 40, 8, 40, 30, 8, 30]],
            },
        ],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    return tmp_path


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize(
    "kind",
    ["masks:{0}/images,{0}/masks", "masks:{0}/images,{0}/sa1b", "labels:{0}/images,{0}/labels",
     "panoptic:{0}/images,{0}/coco.json,{0}/labels", "instances:{0}/images,{0}/coco.json"],
)  # fmt: skip
def test_every_reader_finds_the_borders(folder: Path, kind: str, soft: bool):
    source = parse_source(kind.format(folder), soft=soft)
    assert len(source) == 2
    image, strength, thin = source[0]
    assert image.shape[:2] == strength.shape
    assert strength.dtype == np.uint8
    assert thin is soft
    assert strength[8:28, 30:42].max() > 100
    # Away from the borders, and on the frame, there is nothing.
    assert not strength[2:6, 2:6].any()
    assert not strength[0, :4].any()


def test_photos_without_open_licence_can_be_left_out(folder: Path):
    assert (
        len(parse_source(f"panoptic+open:{folder}/images,{folder}/coco.json,{folder}/labels")) == 1
    )


def test_bad_samples_are_reported_and_left_out(folder: Path):
    Image.fromarray(np.zeros((10, 10), np.uint8)).save(folder / "labels" / "b.png")
    Image.fromarray(picture(quadrants())).save(folder / "images" / "c.png")
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(folder / "labels" / "c.png")
    Image.fromarray(picture(quadrants())).save(folder / "images" / "d.png")
    (folder / "labels" / "d.png").write_bytes(b"no image")
    source = parse_source(f"labels:{folder}/images,{folder}/labels")
    checked = check_sources([source])
    assert len(checked) == 1
    assert checked.name(0).endswith("a.png")
    assert len(checked.problems) == 3
    text = "\n".join(checked.problems)
    assert "b.png: the label is (10, 10), the image (48, 64)" in text
    assert "c.png: the label is empty" in text
    assert "d.png" in text
    kept = check_sources([source], cache_bytes=0)
    assert not kept.kept
    assert np.array_equal(kept[0].strength, checked[0].strength)


def test_nothing_to_train_on_is_an_error(folder: Path):
    for name in ("a", "b"):
        Image.fromarray(np.zeros((48, 64), np.uint8)).save(folder / "labels" / f"{name}.png")
    with pytest.raises(ConfigError, match=r"none of 2 samples.*\n.*empty"):
        check_sources([parse_source(f"labels:{folder}/images,{folder}/labels")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("voc:a", "no such kind"),
        ("teacher+open:a,b", "not known"),
        ("masks:a", "takes 2 places"),
        ("masks+open:a,b", "not known"),
    ],
)
def test_unknown_sources_are_refused(text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        parse_source(text)


def test_missing_folders_are_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="nowhere is not a folder"):
        parse_source(f"labels:{tmp_path}/nowhere,{tmp_path}")
    with pytest.raises(ConfigError, match="no image with a label"):
        parse_source(f"labels:{tmp_path},{tmp_path}")


def test_a_teacher_map_is_taken_as_it_is(folder: Path):
    sample = parse_source(f"teacher:{folder}/images,{folder}/maps")[1]
    assert np.array_equal(sample.strength, quadrants() * 60)
    assert not sample.thin


def test_teacher_and_votes_are_averaged(folder: Path):
    (folder / "masks" / "b.npz").unlink()
    places = f"{folder}/images,{folder}/maps,{folder}/masks"
    both, alone = (parse_source(f"teacher:{places}")[index] for index in (0, 1))
    assert np.array_equal(alone.strength, quadrants() * 60)
    votes = parse_source(f"masks:{folder}/images,{folder}/masks")[0].strength
    for y, x in ((10, 32), (24, 10), (10, 10), (24, 32)):
        cross = [votes[y, x], votes[y - 1, x], votes[y + 1, x], votes[y, x - 1], votes[y, x + 1]]
        expected = round((int(max(cross)) + int(quadrants()[y, x]) * 60) / 2)
        assert both.strength[y, x] == expected
    assert not both.thin


def test_the_shift_of_the_teachers_weights_is_taken_off(folder: Path):
    line = np.zeros((48, 64), np.uint8)
    line[:, 32] = 200
    line[:, 40] = 255
    Image.fromarray(line).save(folder / "maps" / "a.png")
    places = f"teacher:{folder}/images,{folder}/maps"
    strength = parse_source(places, logit_shift=2.4)[0].strength
    logit = np.log(200 / 55) - 2.4
    assert set(np.unique(strength)) == {0, round(255 / (1 + np.exp(-logit))), 255}


def test_a_teacher_without_its_masks_is_refused(folder: Path):
    places = f"teacher:{folder}/images,{folder}/maps"
    with pytest.raises(ConfigError, match="nowhere' is no folder of masks"):
        parse_source(f"{places},{folder}/nowhere")
    with pytest.raises(ConfigError, match="takes 2 or 3 places"):
        parse_source(f"{places},x,y")
    scores = np.full(1, 0.95, np.float32)
    small = RLEMasks.from_masks([np.ones((9, 9), bool)], scores, {"stability": scores})
    write_masks(folder / "masks" / "a.npz", small)
    with pytest.raises(ConfigError, match=r"map is \(48, 64\), the masks \(9, 9\)"):
        parse_source(f"{places},{folder}/masks")[0]


@pytest.mark.data
def test_bsds_is_read(data_dir: Path):
    soft = parse_source(f"bsds:{data_dir}/bsds500,val")
    assert len(soft) == 100
    strength = soft[0].strength
    assert len(np.unique(strength)) > 3  # several annotators, who do not agree
    exact = parse_source(f"bsds:{data_dir}/bsds500,val", soft=False)[0].strength
    assert set(np.unique(exact)) == {0, 255}
    assert (exact[strength > 0] == 255).all()


# Crops.


def test_a_crop_keeps_image_and_label_together():
    # The label is drawn into the image itself, so that any misfit shows in the crop.
    rng = np.random.default_rng(0)
    lines = np.kron(rng.integers(0, 2, (8, 10)), np.ones((12, 12))).astype(np.uint8) * 255
    sample = Sample(np.repeat(lines[..., None], 3, axis=2), lines, thin=False)
    config = AugmentConfig(crop=64, min_side=100, max_side=200, colour=0, grey=0, blur=0, noise=0,
                           flip_vertical=0.5)  # fmt: skip
    for seed in range(20):
        image, label = draw_crop(sample, random.Random(seed), config, label_stride=1)
        assert image.shape == (64, 64, 3)
        assert label.shape == (64, 64)
        assert np.abs(image[..., 0] / 255 - label).mean() < 0.05


def test_thin_lines_become_as_wide_whatever_the_scale():
    strength = np.zeros((400, 400), np.uint8)
    strength[:, 199:201] = 255
    sample = Sample(np.zeros((400, 400, 3), np.uint8), strength, thin=True)
    for side in (160, 400, 800):
        config = AugmentConfig(crop=160, min_side=side, max_side=side, stretch=0)
        widths = []
        for seed in range(12):
            label = draw_crop(sample, random.Random(seed), config, label_stride=1)[1]
            widths.append(label.sum(axis=1).mean())
        assert 3.0 <= max(widths) <= 5.0


def test_the_same_generator_gives_the_same_crop():
    labels = quadrants()
    sample = Sample(picture(labels), labels * 80, thin=True)
    config = AugmentConfig(crop=32, noise=1, blur=1)
    first, second = (draw_crop(sample, random.Random("x"), config) for _ in range(2))
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])


# Settings.


def test_settings_survive_a_round_trip():
    config = preset("epoc", crop=512, seed=3)
    assert config.augment.crop == 512
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"crop": 50}, "multiple of 32"), ({"speed": 1}, "no such setting"), ({"steps": 0}, "steps"),
     ({"architecture": "vit"}, "lite, segformer"), ({"ema": 1.0}, "ema"),
     ({"flip": 2}, "probability"), ({"label_stride": 3}, "label_stride")],
)  # fmt: skip
def test_impossible_settings_are_refused(changes: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        preset("default", **changes)


def test_unknown_presets_are_refused():
    with pytest.raises(ConfigError, match="default, epoc"):
        preset("best")
