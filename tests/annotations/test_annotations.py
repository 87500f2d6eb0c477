"""Published annotation files: what is read, and what is said of files that are not such."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from scipy.io import savemat

from subtok_data.annotations import (
    OPEN_LICENCES,
    images_by_stem,
    list_bsds,
    pair_by_stem,
    read_bsds_mat,
    read_coco,
    read_label_png,
    read_sa1b,
)
from subtok_data.errors import ConfigError


def write(path: Path, data) -> Path:
    path.write_text(json.dumps(data))
    return path


# Label PNGs.


@given(
    hnp.arrays(
        np.int32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
        elements=st.integers(0, 2**24 - 1),
    )
)
def test_labels_as_colours_come_back(tmp_path_factory, labels):
    path = tmp_path_factory.mktemp("png") / "a.png"
    colours = np.stack([labels & 255, labels >> 8 & 255, labels >> 16], axis=-1)
    Image.fromarray(colours.astype(np.uint8)).save(path)
    assert np.array_equal(read_label_png(path), labels)


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16", "RGBA"])
def test_labels_of_every_kind_of_png_come_back(tmp_path, mode):
    labels = np.array([[0, 1], [1, 0]]) if mode == "1" else np.array([[0, 7], [255, 31]])
    if mode == "P":
        image = Image.fromarray(labels.astype(np.uint8)).convert("L")
        image.putpalette(list(range(255, -1, -1)) * 3)
    elif mode == "I;16":
        labels = labels * 250
        image = Image.fromarray(labels.astype(np.uint16))
    elif mode == "RGBA":
        colours = np.zeros((2, 2, 4), np.uint8)
        colours[..., 0] = labels
        image = Image.fromarray(colours)
    else:
        image = Image.fromarray(labels.astype(np.bool_ if mode == "1" else np.uint8))
    image.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as file:
        assert file.mode == mode
    found = read_label_png(tmp_path / "a.png")
    assert found.dtype == np.int32
    assert np.array_equal(found, labels)


def test_what_is_no_label_map_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"a\.png is not a label map"):
        read_label_png(tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"b\.png is not a label map"):
        read_label_png(tmp_path / "b.png")
    Image.new("LA", (3, 3)).save(tmp_path / "c.png")
    with pytest.raises(ConfigError, match=r"c\.png is an image of mode 'LA'"):
        read_label_png(tmp_path / "c.png")


# Folders.


def test_files_are_paired_by_stem(tmp_path):
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for name in ("b.jpg", "a.JPG", "c.png", "notes.txt"):
        (tmp_path / "images" / name).touch()
    for name in ("a.png", "b.png", "x.png", "c.jpg"):
        (tmp_path / "labels" / name).touch()
    images, labels = tmp_path / "images", tmp_path / "labels"
    assert list(images_by_stem(images)) == ["a", "b", "c"]
    pairs = pair_by_stem(images, labels)
    assert [(one.name, other.name) for one, other in pairs] == [
        ("a.JPG", "a.png"),
        ("b.jpg", "b.png"),
    ]
    with pytest.raises(ConfigError, match=r"no image with a label: of 3 images .* 0 files .*\.mat"):
        pair_by_stem(images, labels, (".mat",))
    (images / "a.png").touch()
    with pytest.raises(ConfigError, match=r"has a\.JPG and a\.png"):
        images_by_stem(images)
    with pytest.raises(ConfigError, match="nowhere is not a folder"):
        pair_by_stem(images.parent / "nowhere", labels)


def test_images_and_labels_may_lie_in_one_folder(tmp_path):
    for name in ("a.jpg", "a.png", "b.jpg"):
        (tmp_path / name).touch()
    pairs = pair_by_stem(tmp_path, tmp_path)
    assert [(one.name, other.name) for one, other in pairs] == [("a.jpg", "a.png")]


# BSDS500.


def test_every_annotator_is_read(tmp_path):
    regions = np.array([[1, 1, 2]], np.uint16)
    lines = np.array([[0, 1, 0]], np.uint8)
    drawn = np.empty((1, 2), object)
    for place in range(2):
        drawn[0, place] = {"Segmentation": regions + place, "Boundaries": lines}
    savemat(tmp_path / "a.mat", {"groundTruth": drawn})
    found = read_bsds_mat(tmp_path / "a.mat")
    assert [one.regions.tolist() for one in found] == [[[1, 1, 2]], [[2, 2, 3]]]
    assert found[0].lines.tolist() == [[False, True, False]]
    savemat(tmp_path / "b.mat", {"groundTruth": np.zeros((0, 0))})
    for name in ("b.mat", "c.mat"):
        with pytest.raises(ConfigError, match=rf"{name} is not a BSDS annotation"):
            read_bsds_mat(tmp_path / name)
    with pytest.raises(ConfigError, match="split 'test' of BSDS500 in"):
        list_bsds(tmp_path, "test")


# SA-1B.


def test_masks_of_sa1b_have_their_quality(tmp_path):
    about = {"image": {"height": 2, "width": 3}}
    entry = {"segmentation": {"size": [2, 3], "counts": [1, 2, 3]}, "predicted_iou": 0.5}
    path = write(tmp_path / "a.json", {**about, "annotations": [entry, entry]})
    masks = read_sa1b(path)
    assert masks.size == (2, 3)
    assert masks.areas.tolist() == [2, 2]
    assert masks.scores.tolist() == [0.5, 0.5]
    assert masks.fields["stability"].tolist() == [1, 1]
    assert len(read_sa1b(write(path, {**about, "annotations": []}))) == 0


@pytest.mark.parametrize(
    "data",
    [
        [],
        {"image": {"height": 2}, "annotations": []},
        {"image": {"height": 2, "width": 3}, "annotations": [7]},
        {"image": {"height": 2, "width": 3}, "annotations": [{"segmentation": {"size": [2, 2]}}]},
        {
            "image": {"height": 2, "width": 3},
            "annotations": [
                {"segmentation": {"size": [2, 3], "counts": [6]}, "predicted_iou": float("nan")}
            ],
        },
    ],
)
def test_what_is_no_sa1b_file_is_named(tmp_path, data):
    with pytest.raises(ConfigError, match=r"a\.json is not an SA-1B annotation"):
        read_sa1b(write(tmp_path / "a.json", data))


# COCO.

COCO = {
    "images": [
        {"id": 1, "file_name": "a.jpg", "height": 4, "width": 5, "license": 4},
        {"id": 2, "coco_url": "http://x/train2017/b.jpg", "license": 1},
    ],
    "annotations": [
        {"id": 7, "image_id": 1, "bbox": [1, 1, 2, 3], "category_id": 3, "iscrowd": 1},
        {"image_id": 2, "segmentation": [[0, 0, 1, 0, 1, 1]]},
    ],
    "categories": [{"id": 3, "name": "cup"}],
}


def test_entries_of_coco_are_read(tmp_path):
    file = read_coco(write(tmp_path / "a.json", COCO))
    one, other = file.images.values()
    assert (one.file_name, one.size, one.licence) == ("a.jpg", (4, 5), 4)
    assert (other.file_name, other.size) == ("train2017/b.jpg", None)
    (first, cup), (second, bare) = file.objects()
    assert (first, cup.id, cup.box, cup.category, cup.crowd) == (1, 7, (1, 1, 3, 4), "cup", True)
    assert (second, bare.id, bare.segmentation) == (2, 1, [[0, 0, 1, 0, 1, 1]])
    with pytest.raises(ConfigError, match=r"a\.json: annotation 1 has the bbox None"):
        _ = bare.box
    with pytest.raises(ConfigError, match=r"a\.json: annotation 1 is of category None"):
        _ = bare.category
    opened = file.with_licences(OPEN_LICENCES)
    assert list(opened.images) == [1]
    assert len(list(opened.objects())) == 2
    assert file.with_licences(None) is file
    assert pickle.loads(pickle.dumps(cup)).category == "cup"
    with pytest.raises(ConfigError, match="image 1 has no segments_info and file_name"):
        list(file.panoptic_maps())


def changed(name: str, **entries):
    return {**COCO, name: [{**COCO[name][0], **entries}, *COCO[name][1:]]}


def read_whole(path: Path) -> None:
    file = read_coco(path)
    list(file.objects())
    list(file.panoptic_maps())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], r"is not a COCO annotation file: it has no list 'images'"),
        ({"images": []}, "it has no list 'annotations'"),
        ({**COCO, "images": [3]}, "entry 0 of 'images' is 3"),
        ({**COCO, "categories": [{}]}, "a category without id and name"),
        (changed("images", id=2), "two images have the id 2"),
        (changed("images", id=[2]), "an image without id or file_name"),
        (changed("images", file_name=""), "an image without id or file_name"),
        (changed("images", height="tall"), "image 1 has no size"),
        (changed("images", height=0), r"image 1 has the size \(0, 5\)"),
        (changed("annotations", image_id=[]), r"the image_id \[\] is neither"),
        (changed("annotations", segments_info=[5], file_name="a.png"), "annotation 0 is 5"),
    ],
)
def test_what_is_no_coco_file_is_named(tmp_path, data, message):
    path = write(tmp_path / "a.json", data)
    with pytest.raises(ConfigError, match=rf"a\.json.*{message}"):
        read_whole(path)


def test_a_file_that_is_no_json_is_named(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000)
    for name in ("a.json", "b.json"):
        with pytest.raises(ConfigError, match=rf"{name} is not a COCO annotation file"):
            read_coco(tmp_path / name)


@pytest.mark.data
def test_the_real_files_are_read(data_dir):
    instances = read_coco(data_dir / "coco" / "instances.json")
    assert len(instances.images) == 252
    assert all(one.category and len(one.box) == 4 for _, one in instances.objects())
    panoptic = read_coco(data_dir / "coco" / "panoptic.json")
    maps = dict(panoptic.panoptic_maps())
    assert maps.keys() == panoptic.images.keys()
    image, one = next(iter(maps.items()))
    labels = read_label_png(data_dir / "coco" / "panoptic" / one.file_name)
    assert labels.shape == panoptic.images[image].size
    assert {segment.id for segment in one.segments} == set(np.unique(labels).tolist()) - {0}
