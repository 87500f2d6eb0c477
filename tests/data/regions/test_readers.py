"""Layouts: COCO, panoptic, Visual Genome, referring expressions, Hugging Face columns."""

from __future__ import annotations

import json
import pickle
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from helpers.region_rows import COLOURS, colour_of, coloured_row, write_coco
from PIL import Image

from subtok_data.data import (
    CocoRegions,
    PanopticRegions,
    ReferringRegions,
    RegionColumns,
    RegionDataset,
    Regions,
    VisualGenomeRegions,
)
from subtok_data.data.datasets.sample import ColumnError
from subtok_data.errors import ConfigError, PromptError, SampleError
from subtok_data.segment import RLEMasks
from subtok_data.training.readers import CocoPanopticSource

ROWS = [coloured_row(seed) for seed in range(6)]
TOTAL = sum(len(row["regions"]) for row in ROWS)


def change(path: Path, **entries) -> Path:
    """Write an annotation file again, with the first entry of a list changed."""
    data = json.loads(path.read_text())
    for name, values in entries.items():
        data[name][0] = {**data[name][0], **values}
        data[name][0] = {k: v for k, v in data[name][0].items() if v is not ...}
    path.write_text(json.dumps(data))
    return path


def shows_its_colours(dataset: RegionDataset) -> int:
    """Check that regions lie on the colour that they name; their number."""
    count = 0
    for index in range(len(dataset)):
        sample = dataset[index]
        prompts = sample.prompts[0]
        regions = prompts.regions()
        for region, text in enumerate(prompts.texts):
            pixels = sample.image[regions.mask(region)]
            assert (np.median(pixels, axis=0) == colour_of(text)).all()
        count += len(prompts)
    return count


# --- COCO ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["polygon", "runs", "none"])
def test_coco_regions_lie_where_their_class_is(tmp_path, kind):
    rows = CocoRegions(write_coco(tmp_path, ROWS, kind), tmp_path)
    empty = sum(not row["regions"] for row in ROWS)
    assert len(rows) == len(ROWS) - empty
    assert rows.num_regions == TOTAL
    assert rows.left_out == ({"images without a region": empty} if empty else {})
    dataset = RegionDataset(rows, train=False)
    assert shows_its_colours(dataset) == TOTAL
    assert (dataset[0].prompts[0].masks is None) == (kind == "none")
    assert RegionDataset(rows, train=False, prompt="box")[0].prompts[0].masks is None
    assert set(dataset[0].prompts[0].texts) <= set(COLOURS)
    again = pickle.loads(pickle.dumps(rows))
    assert again[0]["image_id"] == rows[0]["image_id"]


def test_coco_crowds_licences_and_empty_images(tmp_path):
    path = change(write_coco(tmp_path, ROWS), annotations={"iscrowd": 1}, images={"license": 3})
    assert CocoRegions(path, tmp_path).left_out["regions of a crowd"] == 1
    assert CocoRegions(path, tmp_path, crowd=True).num_regions == TOTAL
    assert len(CocoRegions(path, tmp_path, keep_empty=True)) == len(ROWS)
    only = CocoRegions(path, tmp_path, licences=[3], crowd=True, keep_empty=True)
    assert len(only) == 1
    assert only.left_out["images of other licences"] == len(ROWS) - 1
    others = TOTAL - only.num_regions
    assert only.left_out["regions of images that are not taken"] == others


def test_lvis_names_files_by_their_address(tmp_path):
    path = write_coco(tmp_path, ROWS)
    data = json.loads(path.read_text())
    (tmp_path / "train2017").mkdir()
    for image in data["images"]:
        name = image.pop("file_name")
        (tmp_path / name).rename(tmp_path / "train2017" / name)
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{name}"
    path.write_text(json.dumps(data))
    rows = CocoRegions(path, tmp_path)
    assert shows_its_colours(RegionDataset(rows, train=False)) == TOTAL


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"annotations": {"bbox": [1, 2, 3]}}, r"polygon.json: annotation \d+ has the bbox"),
        ({"annotations": {"bbox": ...}}, r"annotation \d+ has the bbox None"),
        ({"annotations": {"category_id": 99}}, r"annotation \d+ is of category 99"),
        ({"images": {"file_name": ...}}, "an image without id or file_name"),
    ],
)
def test_coco_files_that_cannot_be_read_say_where(tmp_path, entries, message):
    path = change(write_coco(tmp_path, ROWS), **entries)
    with pytest.raises(ConfigError, match=message):
        CocoRegions(path, tmp_path)


def test_bad_masks_and_images_name_image_file_and_annotation(tmp_path):
    path = change(write_coco(tmp_path, ROWS), annotations={"segmentation": [[0, 0, 1, 1]]})
    data = json.loads(path.read_text())
    name = data["annotations"][0]["id"]
    rows = CocoRegions(path, tmp_path)
    expected = (
        rf"sample 0 \('.*png'\) failed in decode: annotation {name} of .*polygon.json: polygon"
    )
    with pytest.raises(SampleError, match=expected):
        RegionDataset(rows)[0]
    replaced = RegionDataset(rows, on_error="replace")[0]
    assert f"annotation {name}" in replaced.replaced[0].reason
    assert len(RegionDataset(rows, prompt="box")[0].prompts[0])  # masks are never read


def test_images_of_another_shape_are_refused_and_smaller_ones_scaled(tmp_path):
    path = write_coco(tmp_path, ROWS)
    file = next(iter(CocoRegions(path, tmp_path)))["image"]
    with Image.open(file) as picture:
        half = picture.resize((picture.width // 2 * 2 * 3, picture.height // 2 * 2 * 3), 0)
        turned = picture.rotate(90, expand=True)
    half.save(file)
    rows = CocoRegions(path, tmp_path)
    assert shows_its_colours(RegionDataset(rows, train=False)) == TOTAL
    turned.crop((0, 0, turned.width, turned.height // 2)).save(file)
    with pytest.raises(SampleError, match="another image, or one that was turned"):
        RegionDataset(rows)[0]


def test_missing_files_say_so(tmp_path):
    with pytest.raises(ConfigError, match=r"no\.json is not a COCO annotation file"):
        CocoRegions(tmp_path / "no.json", tmp_path)
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ConfigError, match="no list 'images'"):
        CocoRegions(tmp_path / "list.json", tmp_path)
    with pytest.raises(ConfigError, match="description"):
        VisualGenomeRegions(tmp_path / "no.json", tmp_path)


# --- panoptic -----------------------------------------------------------------------------------


def panoptic(folder: Path) -> Path:
    """Rows as panoptic file: the ground is stuff, and segment ids use all three colours."""
    names = [*COLOURS, "grey-other-merged"]
    palette = [*COLOURS.values(), (128, 128, 128)]
    images, annotations = [], []
    for number, row in enumerate(ROWS):
        height, width = row["image"].shape[:2]
        Image.fromarray(row["image"]).save(folder / f"{number}.png")
        segments, ids = [], np.zeros((height, width), np.int64)
        for category, colour in enumerate(palette):
            inside = (row["image"] == colour).all(-1)
            if inside.any():
                ids[inside] = name = 1 + category + 300 * number + 70000 * category
                y, x = np.nonzero(inside)
                box = [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
                box = [int(side) for side in box]
                segments.append({"id": name, "category_id": category, "iscrowd": 0, "bbox": box})
        colours = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)
        Image.fromarray(colours).save(folder / f"map{number}.png")
        images.append(
            {"id": number, "file_name": f"{number}.png", "height": height, "width": width}
        )
        annotations.append(
            {"image_id": number, "file_name": f"map{number}.png", "segments_info": segments}
        )
    categories = [{"id": place, "name": name} for place, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = folder / "panoptic.json"
    path.write_text(json.dumps(content))
    return path


def test_panoptic_segments_cover_each_pixel_once(tmp_path):
    rows = PanopticRegions(panoptic(tmp_path), tmp_path, tmp_path)
    assert rows.num_regions == TOTAL + len(ROWS)
    dataset = RegionDataset(rows, train=False)
    for index in range(len(rows)):
        sample = dataset[index]
        masks = sample.prompts[0].masks
        assert isinstance(masks, RLEMasks)
        covered = sum(masks.mask(k).astype(int) for k in range(len(masks)))
        assert (covered == 1).all()
        for region, text in enumerate(sample.prompts[0].texts):
            expected = (128, 128, 128) if text == "grey" else colour_of(text)
            assert (sample.image[masks.mask(region)] == expected).all()


def test_swapped_folders_of_images_and_maps_are_named(tmp_path):
    photos, maps = tmp_path / "photos", tmp_path / "maps"
    photos.mkdir()
    maps.mkdir()
    file = panoptic(photos)
    for path in sorted(photos.glob("map*.png")):
        path.rename(maps / path.name)
    assert len(PanopticRegions(file, maps, photos)) == len(ROWS)
    source = CocoPanopticSource(photos, file, maps)
    assert len(source) == len(ROWS)
    said = rf"seem swapped: the image '0.png' is in maps='.*photos'. Give images='{photos}', maps="
    for wrong in (
        lambda: PanopticRegions(file, photos, maps),
        lambda: CocoPanopticSource(maps, file, photos),
    ):
        with pytest.raises(ConfigError, match=said):
            wrong()
    (photos / "0.png").unlink()
    with pytest.raises(ConfigError, match="seem swapped: the map 'map0.png' is in images="):
        PanopticRegions(file, photos, maps)
    with pytest.raises(ConfigError, match="images: 'nowhere' is not a folder"):
        PanopticRegions(file, maps, "nowhere")


def test_panoptic_maps_that_do_not_fit_are_errors_of_their_sample(tmp_path):
    rows = PanopticRegions(panoptic(tmp_path), tmp_path, tmp_path)
    Image.new("RGB", (50, 50)).save(tmp_path / "map0.png")
    with pytest.raises(
        SampleError, match=r"annotation \d+ of .*panoptic.json has no pixel in .*map0"
    ):
        RegionDataset(rows)[0]
    (tmp_path / "map0.png").unlink()
    boxes = RegionDataset(rows, prompt="box")[0].prompts[0]  # needs no map
    assert len(boxes) == len(ROWS[0]["regions"]) + 1
    with pytest.raises(SampleError, match="map0"):
        RegionDataset(rows)[0]


# --- Visual Genome, referring expressions -------------------------------------------------------


def test_visual_genome_regions(tmp_path):
    for folder in ("VG_100K", "VG_100K_2"):
        (tmp_path / folder).mkdir()
    entries = []
    for number, row in enumerate(ROWS):
        folder = "VG_100K" if number % 2 else "VG_100K_2"
        Image.fromarray(row["image"]).save(tmp_path / folder / f"{number}.png")
        regions = [
            {"image_id": number, "phrase": region["phrases"][0]}
            | {key: region[key] for key in ("region_id", "x", "y", "width", "height")}
            for region in row["regions"]
        ]
        entries.append({"id": number, "regions": regions})
    wordless = {"region_id": 5, "phrase": "  ", "x": 0, "y": 0, "width": 9, "height": 9}
    entries[2]["regions"].append(wordless)
    path = tmp_path / "region_descriptions.json"
    path.write_text(json.dumps(entries))
    rows = VisualGenomeRegions(path, tmp_path)
    assert rows.num_regions == TOTAL
    assert rows.left_out["regions without a text"] == 1
    assert shows_its_colours(RegionDataset(rows, train=False)) == TOTAL
    assert len(VisualGenomeRegions(path, tmp_path, image_ids=[1, 2])) == 2
    with pytest.raises(ConfigError, match="3 images are in none of .*the first 0"):
        VisualGenomeRegions(path, tmp_path / "VG_100K")
    del entries[3]["regions"][0]["width"]
    path.write_text(json.dumps(entries))
    with pytest.raises(ConfigError, match=r"region_descriptions.json: region \d+ has no numbers"):
        VisualGenomeRegions(path, tmp_path)


def test_referring_expressions(tmp_path):
    instances = write_coco(tmp_path, ROWS)
    objects = json.loads(instances.read_text())["annotations"]
    references = [
        {
            "ref_id": 7 * place,
            "ann_id": one["id"],
            "image_id": one["image_id"],
            "split": "val" if place % 3 else "train",
            "sentences": [{"sent": f"{word} {list(COLOURS)[one['category_id']]}"} for word in "ab"],
        }
        for place, one in enumerate(objects)
    ]
    path = tmp_path / "refs.json"
    path.write_text(json.dumps(references))
    rows = ReferringRegions(path, instances, tmp_path)
    assert rows.num_regions == len(objects)
    dataset = RegionDataset(rows, train=False)
    assert shows_its_colours(dataset) == len(objects)
    assert all(len(phrases) == 2 for phrases in dataset[0].columns["region_phrases"])
    val = ReferringRegions(path, instances, tmp_path, split="val")
    assert val.num_regions == sum(one["split"] == "val" for one in references)
    with pytest.raises(ConfigError, match=r"pickle.*JSON"):
        ReferringRegions(tmp_path / "refs(unc).p", instances, tmp_path)
    references[0]["ann_id"] = -5
    path.write_text(json.dumps(references))
    with pytest.raises(ConfigError, match="reference 0 is of object -5"):
        ReferringRegions(path, instances, tmp_path)


# --- rows of other layouts ----------------------------------------------------------------------


@pytest.mark.parametrize("as_lists", [False, True])
def test_hugging_face_columns(as_lists):
    features = {
        "region_id": datasets.Value("int64"),
        "phrases": datasets.List(datasets.Value("string")),
    }
    features |= {side: datasets.Value("float32") for side in ("x", "y", "width", "height")}
    nested = {name: datasets.List(feature) for name, feature in features.items()}
    rows = []
    for row in ROWS:
        regions = row["regions"]
        if as_lists:
            regions = {name: [region[name] for region in regions] for name in features}
        rows.append({"image": Image.fromarray(row["image"]), "regions": regions, "tag": "t"})
    wrapped = datasets.Dataset.from_list(
        rows,
        features=datasets.Features(
            {
                "image": datasets.Image(),
                "regions": nested if as_lists else datasets.List(features),
                "tag": datasets.Value("string"),
            }
        ),
    )
    dataset = RegionDataset(wrapped, train=False)
    assert shows_its_colours(dataset) == TOTAL
    assert dataset[0].columns["tag"] == "t"
    assert "regions" not in dataset[0].columns


def test_detection_columns_with_numbers_for_classes():
    row = {
        "image": ROWS[1]["image"],
        "objects": {
            "bbox": [[r["x"], r["y"], r["width"], r["height"]] for r in ROWS[1]["regions"]],
            "category": [
                list(COLOURS).index(next(c for c in COLOURS if c in r["phrases"][0]))
                for r in ROWS[1]["regions"]
            ],
        },
    }
    columns = RegionColumns("objects", categories=list(COLOURS))
    assert shows_its_colours(RegionDataset([row], columns=columns, train=False)) > 0
    with pytest.raises(SampleError, match="categories="):
        RegionDataset([row], columns=RegionColumns("objects"))[0]


@pytest.mark.parametrize("as_lists", [False, True])
def test_names_of_class_labels_are_known(as_lists):
    label, box = datasets.ClassLabel(names=["cat", "dog"]), datasets.List(datasets.Value("float32"))
    objects = {"bbox": [[1, 2, 3, 4], [5, 6, 7, 8]], "category": [1, 0]}
    features = {"bbox": datasets.List(box), "category": datasets.List(label)}
    if not as_lists:
        objects = [{"bbox": [1, 2, 3, 4], "category": 1}, {"bbox": [5, 6, 7, 8], "category": 0}]
        features = datasets.List({"bbox": box, "category": label})
    wrapped = datasets.Dataset.from_list(
        [{"image": Image.new("RGB", (40, 40)), "objects": objects}],
        features=datasets.Features({"image": datasets.Image(), "objects": features}),
    )
    dataset = RegionDataset(wrapped, columns=RegionColumns("objects"), train=False)
    assert dataset[0].prompts[0].texts == ("dog", "cat")


def test_rows_that_are_a_region_themselves():
    columns = RegionColumns(None, box="bbox", phrases="answer", box_format="xyxy")
    one = columns.read({"bbox": [1, 2, 5, 9], "answer": ["a", "b"], "more": 3})
    assert (one.boxes.tolist(), one.phrases) == ([[1, 2, 5, 9]], (("a", "b"),))
    many = columns.read({"bbox": [[1, 2, 5, 9], [0, 0, 3, 3]], "answer": ["a", ["b", "c"]]})
    assert many.phrases == (("a",), ("b", "c"))
    assert len(columns.read({"bbox": [], "answer": []})) == 0
    with pytest.raises(ConfigError, match="name its columns"):
        RegionColumns(None)


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ({"bbox": [1, 2, 3], "phrase": "a"}, "region 0: the box .* not four numbers"),
        ({"bbox": "abcd", "phrase": "a"}, "region 0: the box 'abcd'"),
        ({"phrase": "a", "region_id": 9}, "region 9: neither a box nor a mask"),
        ({"bbox": [1, 2, 3, 4]}, "region 0 has no text"),
        ({"bbox": [1, 2, 3, 4], "phrases": [" "]}, "region 0 has no text"),
        ({"bbox": [1, 2, float("inf"), 4], "phrase": "a"}, "annotation 0 has the box"),
    ],
)
def test_malformed_regions_name_the_region(region, message):
    with pytest.raises(PromptError, match=message):
        RegionColumns().read({"regions": [region]}).prompts((20, 20), ["a"])


def test_columns_of_other_kinds_are_refused():
    with pytest.raises(ColumnError, match="RegionColumns"):
        RegionColumns("x").read({"y": 1})
    with pytest.raises(PromptError, match="different lengths"):
        RegionColumns().read({"regions": {"bbox": [[1, 2, 3, 4]], "phrase": []}})
    with pytest.raises(PromptError, match="holds str"):
        RegionColumns().read({"regions": "a cup"})
    assert len(RegionColumns().read({"regions": None})) == 0
    with pytest.raises(PromptError, match="2 phrases for 1 boxes"):
        Regions(np.zeros((1, 4), np.float32), [["a"], ["b"]])


def test_regions_with_only_a_mask_of_any_kind():
    mask = np.zeros((20, 30), np.uint8)
    mask[4:9, 6:20] = 1
    file = BytesIO()
    Image.fromarray(mask * 255).save(file, "PNG")
    undecoded = {"bytes": file.getvalue(), "path": None}
    kinds = [mask, mask.astype(bool), mask.tolist(), torch.from_numpy(mask), undecoded]
    for kind in [*kinds, Image.fromarray(mask * 255), Image.fromarray(mask.astype(bool))]:
        region = {"mask": kind, "phrases": np.array(["a", "b"])}
        regions = RegionColumns().read({"regions": [region]})
        assert regions.phrases == (("a", "b"),)
        assert regions.prompts((20, 30), ["a"]).bounds().tolist() == [[6, 4, 20, 9]]
    row = {"image": np.zeros((20, 30, 3), np.uint8), "regions": [{"mask": mask, "phrase": "a"}]}
    boxed = RegionDataset([row], prompt="box")[0].prompts[0]
    assert (boxed.boxes.tolist(), boxed.masks) == ([[6, 4, 20, 9]], None)
