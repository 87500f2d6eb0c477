"""Dataset wrappers and collation: any dataset in, a batch that keeps its contract out."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from helpers.batches import assert_same, assert_same_batches, faulty_tokenizer
from helpers.faulty import CodedImages, coded_image, png
from helpers.stores import store_rows
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Subset
from torchvision.transforms import v2

from subtok_data import (
    PatchSegmenter,
    PixelConfig,
    SampleError,
    SubobjectCollator,
    SubobjectDataset,
    SubobjectIterableDataset,
    SubobjectTokenizer,
    validate_batch,
)
from subtok_data.batch.validate import BatchError
from subtok_data.data import PendingBatch
from subtok_data.data.datasets.sample import ColumnError
from subtok_data.data.store import StoredRow
from subtok_data.errors import ConfigError, SubtokError


@pytest.fixture
def patches() -> SubobjectTokenizer:
    return SubobjectTokenizer(PatchSegmenter(32), size=96)


def rows_of(kind: str):
    images = [coded_image(i, 40 + 10 * i, 64) for i in range(4)]
    if kind == "dicts":
        return [{"image": image, "label": i} for i, image in enumerate(images)]
    if kind == "tuples":
        return [(Image.fromarray(image), i) for i, image in enumerate(images)]
    if kind == "subset":
        return Subset(rows_of("dicts") * 2, range(4))
    if kind == "concat":
        rows = rows_of("dicts")
        return ConcatDataset([rows[:1], rows[1:]])
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    table = {"image": [Image.fromarray(image) for image in images], "label": list(range(4))}
    return datasets.Dataset.from_dict(table, features=features)


@pytest.mark.parametrize("kind", ["dicts", "tuples", "subset", "concat", "hugging_face"])
def test_every_kind_of_dataset_gives_the_same_batch(patches, kind):
    collate = SubobjectCollator(patches)
    dataset = SubobjectDataset(rows_of(kind))
    batch = collate([dataset[i] for i in range(4)])
    validate_batch(batch)
    expected = collate([SubobjectDataset(rows_of("dicts"))[i] for i in range(4)])
    assert_same(batch, expected)
    assert batch["label"].tolist() == batch["sample_index"].tolist() == [0, 1, 2, 3]


def test_raw_rows_and_bare_images(patches):
    collate = SubobjectCollator(patches)
    batch = collate(rows_of("dicts"))
    assert batch["sample_index"].tolist() == [-1] * 4  # nobody told the index
    bare = collate([row["image"] for row in rows_of("dicts")])
    assert torch.equal(batch["pixel_values"], bare["pixel_values"])


def test_hugging_face_images_are_decoded_by_us(patches):
    import datasets

    features = datasets.Features({"image": datasets.Image()})
    rows = [{"bytes": b"broken", "path": "cat.jpg"}, {"bytes": png(coded_image(1)), "path": None}]
    table = datasets.Dataset.from_dict({"image": rows}, features=features)
    dataset = SubobjectDataset(table)
    with pytest.raises(SampleError, match=r"sample 0 \('cat.jpg'\) failed in decode"):
        dataset[0]
    assert SubobjectDataset(table, on_error="replace")[0].index == 1


def test_several_images_per_sample(patches):
    rows = [
        {"image": [coded_image(0), coded_image(1, 48, 80)], "label": 0},
        {"image": [coded_image(2)], "label": 1},
    ]
    batch = SubobjectCollator(patches)(rows)
    validate_batch(batch)
    assert batch["image_to_sample"].tolist() == [0, 0, 1]
    assert len(batch["pixel_values"]) == 3
    assert batch["label"].tolist() == [0, 1]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=5))
def test_batches_of_any_sizes_keep_the_contract(sizes):
    tokenizer = faulty_tokenizer()
    rows = [{"image": coded_image(i, h, w)} for i, (h, w) in enumerate(sizes)]
    collate = SubobjectCollator(tokenizer, pad_to_multiple_of=4, shape_size=4)
    batch = collate(rows)
    validate_batch(batch)
    assert batch["visual_token_mask"].shape[1] % 4 == 0
    assert batch["map_sizes"].tolist() == batch["valid_sizes"].tolist() == [list(s) for s in sizes]
    assert batch["visual_token_areas"].sum(1).numpy() == pytest.approx(np.ones(len(sizes)))


def test_columns_pass_through(patches):
    rows = [
        {"image": coded_image(i), "score": i / 2, "name": f"n{i}", "tags": ["a"] * i, "no": None}
        for i in range(3)
    ]
    batch = SubobjectCollator(patches)(rows)
    assert batch["score"].tolist() == [0, 0.5, 1]
    assert batch["name"] == ["n0", "n1", "n2"]
    assert batch["tags"] == [[], ["a"], ["a", "a"]]
    assert batch["no"] == [None] * 3
    only = SubobjectCollator(patches, columns=["score"])(rows)
    assert "name" not in only


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"picture": 1, "text": 2}, r"\['picture', 'text'\].*remove_unused_columns=False"),
        ({"image": coded_image(0), "pixel_values": 1}, "name of a key of the batch"),
    ],
)
def test_columns_that_cannot_be(patches, row, words):
    with pytest.raises(ConfigError, match=words):
        SubobjectCollator(patches)([row])


def test_missing_column_is_never_replaced():
    dataset = SubobjectDataset([{"picture": 1}] * 3, on_error="replace")
    with pytest.raises(ColumnError, match="image_column"):
        dataset[0]


def test_replacement_in_collation_is_counted(patches):
    rows = [{"image": b"bad", "label": 0}, {"image": coded_image(1), "label": 1}]
    with pytest.raises(SampleError, match="failed in decode: not a readable image"):
        SubobjectCollator(patches)(rows)
    collate = SubobjectCollator(patches, on_error="replace")
    batch = collate(rows)
    assert batch["label"].tolist() == [1, 1]
    assert len(collate.replaced) == 1
    with pytest.raises(SubtokError, match="all 2 samples"):
        collate([{"image": b"bad"}] * 2)


def test_replacements_in_the_dataset_are_deterministic():
    def found():
        dataset = SubobjectDataset(CodedImages(20, corrupt=range(0, 20, 3)), on_error="replace")
        return [dataset[i].index for i in range(20)]

    assert found() == found()
    assert all(i % 3 for i in found())
    hopeless = SubobjectDataset(CodedImages(9, corrupt=range(9)), on_error="replace")
    with pytest.raises(SampleError, match="tried in its place are bad too"):
        hopeless[4]


def test_pixel_limit_is_a_sample_error():
    dataset = SubobjectDataset([{"image": png(coded_image(0, 90, 90))}], max_pixels=8000)
    with pytest.raises(SampleError, match=r"8,?100|8,?000"):
        dataset[0]


def test_image_processor_and_own_grid(patches):
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor()
    batch = SubobjectCollator(patches, image_processor=processor)(rows_of("dicts"))
    validate_batch(batch)
    assert batch["pixel_values"].shape == (4, 3, 224, 224)
    assert batch["valid_sizes"].tolist() == [[224, 224]] * 4
    assert batch["visual_token_map"].shape[1:] != (224, 224)
    assert PixelConfig.from_image_processor(processor).mean == tuple(processor.image_mean)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8"])
def test_pixel_values_are_the_normalised_image(patches, dtype):
    config = PixelConfig(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), dtype=dtype)
    rows = rows_of("dicts")
    batch = SubobjectCollator(patches, pixels=config)(rows)
    assert str(batch["pixel_values"].dtype) == f"torch.{dtype}"
    for place, row in enumerate(rows):
        image = torch.from_numpy(patches.canvas.fit(row["image"])).permute(2, 0, 1)
        height, width = batch["valid_sizes"][place].tolist()
        own = batch["pixel_values"][place, :, :height, :width]
        if dtype == "uint8":
            assert torch.equal(own, image)
        else:
            mean, std = (torch.tensor(v)[:, None, None] for v in (config.mean, config.std))
            expected = (image / 255 - mean) / std
            assert torch.allclose(own.float(), expected, atol=1e-2 if dtype != "float32" else 1e-5)
        assert not batch["pixel_values"][place, :, height:].any()
        assert not batch["pixel_values"][place, :, :, width:].any()


def test_pending_batch_pins_nothing_but_raw_buffers_and_rebuilds_like_a_dict(patches):
    collate = SubobjectCollator(patches)
    with collate.deferred():
        pending = collate(rows_of("dicts"))
    assert isinstance(pending, PendingBatch)
    assert not pending.is_finished
    assert "raw, samples=4" in repr(pending)
    rebuilt = type(pending)(dict(pending.items()))
    assert pending.is_finished
    assert_same(dict(rebuilt), dict(pending))
    assert len(pending) == len(dict(**pending))


def test_pending_batch_outlives_neither_its_collator_nor_its_process(patches):
    collate = SubobjectCollator(patches)
    with collate.deferred():
        pending = collate(rows_of("dicts"))
    worker = pickle.loads(pickle.dumps(collate))
    assert worker.key == collate.worker.key
    assert not hasattr(worker, "tokenizer")
    del collate
    with pytest.raises(SubtokError, match="no longer exists"):
        pending["pixel_values"]


def test_stored_maps_move_with_the_image(tmp_path, patches):
    tokenizer = SubobjectTokenizer(PatchSegmenter(32), size=96)
    rows = [{"image": coded_image(i, 96, 64), "label": i} for i in range(3)]
    maps = [StoredRow.of(i, [tokenizer(row["image"]).token_map]) for i, row in enumerate(rows)]
    store_rows(tmp_path, maps, config=tokenizer.config(), config_hash=tokenizer.config_hash)
    collate = SubobjectCollator(tokenizer)
    stored = SubobjectDataset(rows, tokens=tmp_path)
    assert_same(
        collate([stored[i] for i in range(3)]),
        collate([SubobjectDataset(rows)[i] for i in range(3)]),
    )
    flipped = SubobjectDataset(rows, tokens=tmp_path, transform=v2.RandomHorizontalFlip(p=1))
    cropped = SubobjectDataset(rows, tokens=tmp_path, transform=v2.RandomCrop(40))
    for dataset in (flipped, cropped):
        batch = collate([dataset[i] for i in range(3)])
        validate_batch(batch)
    sample = flipped[0]
    assert (sample.token_maps[0] == stored[0].token_maps[0][:, ::-1]).all()
    assert (sample.image == stored[0].image[:, ::-1]).all()
    other = SubobjectCollator(SubobjectTokenizer(PatchSegmenter(16), size=96))
    with pytest.raises(ConfigError, match="give the tokenizer that made them"):
        other([stored[0]])
    fewer = SubobjectDataset(rows[:0:-1], tokens=tmp_path)
    assert all((fewer[i].token_maps[0] == stored[2 - i].token_maps[0]).all() for i in range(2))


def test_augmentation_is_keyed_by_seed_epoch_and_index():
    dataset = SubobjectDataset(CodedImages(6), transform=v2.RandomCrop(32), seed=3)
    state = torch.random.get_rng_state()
    first = [dataset[i].image for i in range(6)]
    assert torch.equal(state, torch.random.get_rng_state())  # the user's own generator is untouched
    backwards = [dataset[i].image for i in reversed(range(6))][::-1]
    assert all((a == b).all() for a, b in zip(first, backwards, strict=True))
    dataset.set_epoch(1)
    assert any((a != dataset[i].image).any() for i, a in enumerate(first))


def test_transform_that_leaves_the_map_behind_is_refused(tmp_path):
    from subtok_data.data.datasets.augmentation import augment

    dataset = SubobjectDataset(CodedImages(1))
    sample = dataset[0]
    sample.token_maps = [np.zeros(sample.image.shape[:2], np.int16)]
    with pytest.raises(ConfigError, match="token map"):
        augment(sample, lambda image, mask: (image[:, :8, :8], mask))


def test_streams_without_a_loader():
    dataset = SubobjectIterableDataset([*rows_of("dicts"), {"image": b"bad", "label": 4}])
    with pytest.raises(SampleError, match="sample 4"):
        list(dataset)
    dataset.on_error = "replace"
    assert [s.columns["label"] for s in dataset] == [0, 1, 2, 3, 3]
    with pytest.raises(ConfigError, match="SubobjectIterableDataset"):
        SubobjectDataset(iter([1]))


def test_validate_batch_lists_every_violation(patches):
    batch = SubobjectCollator(patches)(rows_of("dicts"))
    batch["num_visual_tokens"] = batch["num_visual_tokens"] + 1
    batch["visual_token_areas"][0, 0] = 2
    batch["visual_token_boxes"] = batch["visual_token_boxes"].flip(-1)
    with pytest.raises(BatchError) as info:
        validate_batch(batch)
    text = str(info.value)
    for words in ("visual_token_mask", "10 tokens, but there are 9 places", "empty boxes", "areas"):
        assert words in text
    batch["visual_token_map"] = batch["visual_token_map"].long()
    with pytest.raises(BatchError, match="has dtype int64, expected int32"):
        validate_batch(batch)


def test_dropped_tokens_are_partial_coverage(patches):
    tokenizer = SubobjectTokenizer(PatchSegmenter(16), size=96, max_tokens=5, overflow="drop")
    batch = SubobjectCollator(tokenizer)(rows_of("dicts"))
    validate_batch(batch, coverage="partial")
    with pytest.raises(BatchError, match="have no token"):
        validate_batch(batch)


@pytest.mark.slow
@pytest.mark.data
def test_real_photos_through_hugging_face_and_dataloader(data_dir):
    """Over 200 photos, 0 and 2 workers: the same batches, and none breaks the contract."""
    import datasets

    files = sorted(str(f) for f in (data_dir / "photos" / "open").glob("*.jpg"))[:208]
    table = datasets.Dataset.from_dict({"image": files, "number": list(range(len(files)))})
    table = table.cast_column("image", datasets.Image())
    # A small canvas keeps the test short; sizes and aspect ratios of the photos stay.
    tokenizer = SubobjectTokenizer(SubobjectTokenizer().segmenter, size=128, max_tokens=64)
    dataset, collate = SubobjectDataset(table), SubobjectCollator(tokenizer)
    in_process = list(DataLoader(dataset, 16, collate_fn=collate))
    assert sum(len(batch["sample_index"]) for batch in in_process) == 208
    for batch in in_process:
        validate_batch(batch)
    workers = {"num_workers": 2, "multiprocessing_context": "forkserver"}
    in_workers = [b.to("cpu") for b in DataLoader(dataset, 16, collate_fn=collate, **workers)]
    assert_same_batches(in_workers, in_process)
    dense = sum(256 * int(h) * int(w) for b in in_process for h, w in b["map_sizes"])
    ours = sum(
        value.numel() * value.element_size()
        for batch in in_process
        for key, value in batch.items()
        if key.startswith("visual_") or key in ("num_visual_tokens", "map_sizes")
    )
    assert ours * 50 < dense
