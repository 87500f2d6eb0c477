"""Tokens leave as label images, COCO annotations and supervision's detections."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from hypothesis import given, strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from skimage.measure import regionprops
from skimage.transform import resize

from subtok_data import PatchSegmenter, SubobjectTokenizer, TokenizedImage
from subtok_data.errors import ConfigError

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def tokens_of(**options) -> TokenizedImage:
    return SubobjectTokenizer(**{"num_tokens": 12, "size": 64, "device": "cpu", **options})(IMAGE)


def patches(side: int = 16, **options) -> TokenizedImage:
    return SubobjectTokenizer(PatchSegmenter(side), size=None, **options)(IMAGE)


# --- label images -------------------------------------------------------------------------------


def test_a_label_image_is_what_scikit_image_reads():
    tokens = tokens_of()
    labels = tokens.to_label_image()
    assert labels.dtype == np.int32
    assert np.array_equal(labels - 1, tokens.token_map)
    regions = regionprops(labels)
    assert [region.area for region in regions] == tokens.areas.tolist()
    boxes = [(x0, y0, x1, y1) for y0, x0, y1, x1 in (region.bbox for region in regions)]
    assert boxes == [tuple(box) for box in tokens.boxes.tolist()]


@given(height=st.integers(40, 200), width=st.integers(50, 200))
def test_a_resized_label_image_is_the_nearest_neighbour(height, width):
    tokens = patches()
    found = tokens.to_label_image(size=(height, width))
    expected = resize(
        tokens.to_label_image(), (height, width), order=0, preserve_range=True, anti_aliasing=False
    )
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new) % 1 for new, old in ((height, 48), (width, 64))
    )
    sure = (np.abs(rows - np.round(rows)) > 1e-6)[:, None] & (
        np.abs(columns - np.round(columns)) > 1e-6
    )  # on a border between two pixels either is the nearest
    assert np.array_equal(found[sure], expected[sure])


def test_a_token_without_pixels_is_an_error():
    with pytest.raises(ConfigError, match=r"of 192 tokens have no pixel at \(6, 8\)"):
        patches(4).to_label_image(size=(6, 8))
    with pytest.raises(ConfigError, match="each side of size"):
        patches().to_label_image(size=(0, 8))


def test_pixels_without_token_are_background():
    tokens = patches(max_tokens=5, overflow="drop")
    labels = tokens.to_label_image()
    assert (labels == 0).sum() == labels.size - tokens.areas.sum() > 0
    annotations = tokens.to_coco()["annotations"]
    assert [one["area"] for one in annotations] == tokens.areas.tolist()


# --- COCO ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools'
@pytest.mark.parametrize("size", [None, (96, 128)])
def test_annotations_are_read_by_the_reference(tmp_path, size):
    tokens = tokens_of()
    written = tokens.to_coco(size=size, image_id=7, file_name="a.jpg", first_id=100)
    file = tmp_path / "tokens.json"
    file.write_text(json.dumps(written))
    reference = COCO(file)
    labels = tokens.to_label_image(size=size)
    (image,) = reference.loadImgs(7)
    assert (image["height"], image["width"], image["file_name"]) == (*labels.shape, "a.jpg")
    annotations = reference.loadAnns(reference.getAnnIds(imgIds=7))
    assert [one["id"] for one in annotations] == list(range(100, 112))
    for token, annotation in enumerate(annotations):
        mask = reference.annToMask(annotation).astype(bool)
        assert np.array_equal(mask, labels == token + 1)
        assert annotation["area"] == mask.sum()
        assert annotation["bbox"] == coco_mask.toBbox(annotation["segmentation"]).tolist()
    assert reference.loadCats([1]) == [{"id": 1, "name": "token"}]


def test_classes_become_categories():
    tokens = patches(32)
    classes = np.array([3, -1, 3, 5])
    tokens.token_fields["class"] = classes
    written = tokens.to_coco()
    assert [one["category_id"] for one in written["annotations"]] == [3, -1, 3, 5]
    assert [one["id"] for one in written["categories"]] == [-1, 3, 5]
    json.dumps(written)


# --- supervision --------------------------------------------------------------------------------


def test_detections_are_the_tokens():
    pytest.importorskip(
        "supervision", reason="supervision is not installed: pip install 'subtok-data[supervision]'"
    )
    tokens = tokens_of()
    detections = tokens.to_supervision()
    assert len(detections) == 12
    assert np.array_equal(detections.xyxy, tokens.boxes)
    assert np.array_equal(detections.mask.sum((1, 2)), tokens.areas)
    assert detections.data["token"].tolist() == detections.class_id.tolist() == list(range(12))
    assert detections[3].mask[0].sum() == tokens.areas[3]
    assert tokens.to_supervision(size=(96, 128)).mask.shape == (12, 96, 128)


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ModuleNotFoundError, match=r"subtok-data\[supervision\]"):
        patches().to_supervision()
