"""``subtok export``: panoptic files that hold the very tokens, read back by the own reader."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import tiny_panoptic, tiny_sam
from PIL import Image

from subtok_data.annotations import read_coco, read_label_png
from subtok_data.cli import main
from subtok_data.data import PanopticRegions, StoredTokens
from subtok_data.segment import label_runs


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name, size in (("a.png", (48, 96)), ("more/a.png", (200, 100)), ("more/b.jpg", (64, 64))):
        coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(coarse).resize(size[::-1], Image.Resampling.NEAREST).save(folder / name)
    return folder


def tokenize(source, out, *options):
    size = ["--size", "64", "--executor", "inline"]
    return main(["tokenize", str(source), "--out", str(out), *options, *size])


def test_tokens_of_sam3_come_back_as_they_were_stored(photos, tmp_path, capsys):
    model = tiny_sam.save_model("sam3", tmp_path / "sam3")
    tokens, out = tmp_path / "tokens", tmp_path / "coco"
    options = [
        "--segmenter",
        "sam",
        "--segmenter-model",
        str(model),
        "--points-per-side",
        "4",
        "--device",
        "cpu",
    ]
    assert tokenize(photos, tokens, *options) == 0
    capsys.readouterr()
    assert main(["export", str(tokens), str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    stored = StoredTokens(tokens)
    assert report["images"] == 3
    assert report["tokens"] == stored.lengths().sum()
    file = read_coco(out / "panoptic.json")
    maps = dict(file.panoptic_maps())
    for number, row in enumerate(stored.rows(), start=1):
        ((token_map, _),) = stored.maps(row)
        assert file.images[number].size == token_map.shape
        labels = read_label_png(out / "panoptic" / maps[number].file_name)
        assert labels.min() == 1  # every pixel is in a segment
        np.testing.assert_array_equal(labels - 1, token_map)
    assert [one.file_name for one in file.images.values()] == ["a.png", "more/a.png", "more/b.jpg"]


def test_maps_get_the_size_of_the_images_and_classes_their_categories(photos, tmp_path):
    model = tiny_panoptic.save_model("eomt", tmp_path / "eomt")
    tokens, out = tmp_path / "tokens", tmp_path / "coco"
    assert tokenize(photos, tokens, "--segmenter", "panoptic", "--segmenter-model", str(model)) == 0
    assert main(["export", str(tokens), str(out), "--images", str(photos)]) == 0
    regions = PanopticRegions(out / "panoptic.json", out / "panoptic", photos)
    stored = StoredTokens(tokens)
    for index, row in enumerate(stored.rows()):
        ((token_map, fields),) = stored.maps(row)
        found = regions[index]
        with Image.open(found["image"]) as image:
            labels = read_label_png(
                out / "panoptic" / found["image"].replace(f"{photos}/", "").replace(".jpg", ".png")
            )
            assert labels.shape == (image.height, image.width)
        # The map of the tokenizer, taken under the centre of each pixel.
        rows, columns = (
            ((np.arange(new) + 0.5) * old / new).astype(int)
            for old, new in zip(token_map.shape, labels.shape, strict=True)
        )
        np.testing.assert_array_equal(labels - 1, token_map[rows[:, None], columns])
        runs = label_runs(labels, range(1, row.num_visual_tokens[0] + 1))
        for mask, one in zip(found["regions"].segmentations, runs, strict=True):
            np.testing.assert_array_equal(mask["counts"], one)
        classes = [str(one) if one >= 0 else "none" for one in fields["class"]]
        assert [names[0] for names in found["regions"].phrases] == classes


def test_rows_without_tokens_are_named(photos, tmp_path, capsys):
    (photos / "bad.png").write_bytes(b"no image")
    assert tokenize(photos, tmp_path / "tokens", "--segmenter", "patch") == 1
    capsys.readouterr()
    assert main(["export", str(tmp_path / "tokens"), str(tmp_path / "coco")]) == 1
    words = capsys.readouterr()
    assert "3 images, " in words.out
    assert "1 of 4 rows are not in the files" in words.err
    assert "bad.png" in words.err
    rows = json.loads((tmp_path / "coco/panoptic.json").read_text())["images"]
    assert [one["row"] for one in rows] == [0, 2, 3]


def test_another_folder_of_images_is_refused(photos, tmp_path, capsys):
    assert tokenize(photos, tmp_path / "tokens", "--segmenter", "patch") == 0
    (photos / "a.png").unlink()
    arguments = ["export", str(tmp_path / "tokens"), str(tmp_path / "coco")]
    assert main([*arguments, "--images", str(photos)]) == 2
    assert "2 rows" in capsys.readouterr().err
    assert main([str(arguments[0]), str(photos), arguments[2]]) == 2
    assert "no finished tokens" in capsys.readouterr().err
