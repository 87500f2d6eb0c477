"""COCO panoptic files: what is written is what the readers find."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco

from subtok_data.annotations import PanopticWriter, read_coco, read_label_png
from subtok_data.errors import ConfigError
from subtok_data.segment import label_runs


@settings(deadline=None, max_examples=50)
@given(
    arrays.arrays(
        np.int32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 6)
    ),
    st.booleans(),
)
def test_maps_boxes_and_areas_come_back(raw, classed):
    found, labels = np.unique(raw, return_inverse=True)
    labels = labels.reshape(raw.shape) + (found[0] != 0)  # 1 to N, 0 for none
    count = int(labels.max(initial=0))
    classes = np.arange(count) % 3 - 1 if classed else None
    folder = Path(tempfile.mkdtemp())
    with PanopticWriter(folder) as writer:
        assert writer.add("a.jpg", labels, classes, row=7) == 1
    file = read_coco(folder / "panoptic.json")
    assert file.images[1].size == labels.shape
    ((image, one),) = file.panoptic_maps()
    assert (image, one.file_name) == (1, "a.png")
    np.testing.assert_array_equal(read_label_png(folder / "panoptic" / one.file_name), labels)
    assert [segment.id for segment in one.segments] == list(range(1, count + 1))
    segments = json.loads((folder / "panoptic.json").read_text())["annotations"][0]["segments_info"]
    for segment, runs in zip(segments, label_runs(labels, range(1, count + 1)), strict=True):
        reference = coco.frPyObjects(
            {"size": list(labels.shape), "counts": runs.tolist()}, *labels.shape
        )
        assert segment["area"] == coco.area(reference)
        assert segment["bbox"] == coco.toBbox(reference).tolist()
    given_names = ["token"] * count
    if classes is not None:
        given_names = ["none" if kind < 0 else str(kind) for kind in classes]
    assert [segment.category for segment in one.segments] == given_names


def test_ids_above_a_byte_are_colours(tmp_path):
    labels = np.arange(1, 70_001, dtype=np.int32).reshape(200, 350)
    with PanopticWriter(tmp_path) as writer:
        writer.add("a.png", labels)
    np.testing.assert_array_equal(read_label_png(tmp_path / "panoptic" / "a.png"), labels)


def test_names_stay_apart_and_inside_the_folder(tmp_path):
    names = ["a.jpg", "a.png", "A.gif", "sub/a.jpg", "/tmp/b.jpg", "../c.jpg", "a.jpg"]
    with PanopticWriter(tmp_path / "out") as writer:
        for name in names:
            writer.add(name, np.ones((2, 2), np.int32))
    maps = [one.file_name for _, one in read_coco(tmp_path / "out/panoptic.json").panoptic_maps()]
    assert maps[:2] == ["a.png", "a.png.png"]
    assert maps[3:6] == ["sub/a.png", "b.png", "c.png"]
    assert len({name.casefold() for name in maps}) == len(names)
    written = list(tmp_path.rglob("*.png"))
    assert {file.relative_to(tmp_path / "out/panoptic").as_posix() for file in written} == set(maps)


def test_an_unfinished_folder_has_no_json(tmp_path):
    def write_and_fail(writer):
        writer.add("a.jpg", np.ones((2, 2), np.int32))
        raise KeyError

    with pytest.raises(KeyError), PanopticWriter(tmp_path) as writer:
        write_and_fail(writer)
    assert list(tmp_path.rglob("*.png"))
    assert not list(tmp_path.glob("panoptic.json*"))
    with PanopticWriter(tmp_path):
        pass
    with pytest.raises(ConfigError, match="there already"):
        PanopticWriter(tmp_path)


@pytest.mark.parametrize(
    ("labels", "classes", "words"),
    [
        ([[1, 3]], None, "1 to N"),
        ([[1, -1]], None, "1 to N"),
        ([[1, 2]], [5], "1 classes for 2 segments"),
        ([[1 << 24]], None, "room for 16,777,215"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path, labels, classes, words):
    with pytest.raises(ConfigError, match=words), PanopticWriter(tmp_path) as writer:
        writer.add("a.jpg", np.array(labels, np.int32), classes)
