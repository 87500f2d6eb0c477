from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from helpers.stores import store_rows
from hypothesis import given, settings, strategies as st
from scipy.stats import chi2_contingency, chisquare
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as tv

from subtok_data import validate_batch
from subtok_data.data.store import StoredRow
from subtok_data.errors import ConfigError, SampleError
from subtok_data.imagefree import (
    CategoryWords,
    DrawnRegions,
    GridSource,
    ImageFreeDataset,
    ImageFreeLoader,
    StoredSource,
    resize_nearest,
)
from subtok_data.segment import measure

WORDS = ["giraffe", "traffic light", "grass", "sky", "playing field"]


@dataclass
class Letters:
    """A tokenizer of letters: words of many sub-words, and a leading space that can be seen."""

    bos_token_id: int | None = 1
    eos_token_id: int | None = 2

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        assert not add_special_tokens
        return [ord(letter) for letter in text]


def torch_nearest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    image = torch.from_numpy(values.astype(np.int64))[None]
    interpolation = tv.InterpolationMode.NEAREST
    return tv.resize(image, list(size), interpolation=interpolation)[0].numpy()


# --- resizing ---------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 600), st.integers(1, 600))
def test_resize_is_that_of_torchvision(h, w, height, width):
    values = np.arange(h * w, dtype=np.int32).reshape(h, w)
    expected = torch_nearest(values, (height, width))
    assert (resize_nearest(values, (height, width)) == expected).all()


def test_every_side_of_the_paper_is_that_of_torchvision():
    for cells, side in itertools.product(range(1, 33), (32, 384, 480, 512, 640)):
        values = np.arange(cells, dtype=np.int32)[:, None]
        assert (resize_nearest(values, (side, 1)) == torch_nearest(values, (side, 1))).all()


@settings(deadline=None)
@given(st.integers(1, 32), st.integers(1, 32), st.sampled_from([(32, 32), (512, 512), (48, 100)]))
def test_geometry_of_a_grid_is_what_its_map_shows(h, w, size):
    regions = DrawnRegions.grid(h, w)
    quick, looked = regions.measure(size), measure(regions.token_map(size), regions.count)
    for name in ("areas", "boxes", "centers", "first_pixels"):
        assert (getattr(quick, name) == getattr(looked, name)).all()


# --- what a sample is -------------------------------------------------------------------------


def test_input_and_target_come_from_the_grid_as_in_torchvision():
    dataset = ImageFreeDataset(WORDS)
    for index in range(20):
        sample = dataset[index]
        grid = sample.classes[sample.regions.labels]
        batch = dataset.collate([sample])
        cells = batch["visual_token_class"][0].reshape(32, 32).numpy()
        target = batch["visual_class_map"][0].numpy()
        assert (cells == torch_nearest(grid, (32, 32))).all()
        assert (target == torch_nearest(grid, (512, 512))).all()
        assert (cells == target[::16, ::16]).all()


def test_target_is_the_input_enlarged_where_cells_divide_it_and_only_there():
    dataset = ImageFreeDataset([str(number) for number in range(150)])
    seen = set()
    for index in range(300):
        sample = dataset[index]
        h, w = sample.regions.labels.shape
        whole = 32 % h == 0 and 32 % w == 0
        enlarged = torch_nearest(sample.class_map((32, 32)), (512, 512))
        same = bool((enlarged == sample.class_map((512, 512))).all())
        if whole:
            assert same
        seen.add((whole, same))
    assert {(True, True), (False, False)} <= seen


def test_without_random_grids_every_cell_is_drawn():
    dataset = ImageFreeDataset(WORDS, grid=(32, 32))
    sample = dataset[0]
    assert sample.regions.count == 1024
    assert len({tuple(row) for row in sample.class_map((32, 32))}) == 32


def test_grid_sides_are_uniform_and_independent():
    dataset = ImageFreeDataset(WORDS, seed=3)
    sides = np.array([dataset[index].regions.labels.shape for index in range(8000)])
    assert sides.min() == 1
    assert sides.max() == 32
    for axis in range(2):
        assert chisquare(np.bincount(sides[:, axis], minlength=33)[1:]).pvalue > 0.01
    table = np.histogram2d(*((sides - 1) // 4).T, bins=8)[0]
    assert chi2_contingency(table).pvalue > 0.01


def test_categories_are_uniform_and_neighbors_independent():
    dataset = ImageFreeDataset(WORDS, seed=4, grid=(4, 8))
    classes = [dataset[index].classes for index in range(2000)]
    counts = np.bincount(np.concatenate(classes), minlength=len(WORDS) + 1)
    assert counts[-1] == 0  # 'unknown' is never drawn
    assert chisquare(counts[:-1]).pvalue > 0.01
    table = np.zeros((len(WORDS), len(WORDS)))
    for drawn in classes:
        np.add.at(table, (drawn[:-1:2], drawn[1::2][: len(drawn[:-1:2])]), 1)
    assert chi2_contingency(table).pvalue > 0.01


def test_samples_depend_on_seed_epoch_and_index_only():
    def drawn(dataset, index):
        sample = dataset[index]
        return sample.regions.labels.shape, sample.classes.tobytes()

    one, same, other = (ImageFreeDataset(WORDS, seed=seed) for seed in (0, 0, 1))
    assert drawn(one, 7) == drawn(same, 7)
    assert drawn(one, 7) != drawn(one, 8)
    assert drawn(one, 7) != drawn(other, 7)
    same.set_epoch(1)
    assert drawn(one, 7) != drawn(same, 7)


# --- batches ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", ["patch", "region"])
def test_batches_keep_the_contract(tokens):
    dataset = ImageFreeDataset(WORDS, Letters(), tokens=tokens, pad_to_multiple_of=8)
    batch = dataset.collate([dataset[index] for index in range(6)])
    validate_batch(batch)
    mask = batch["visual_token_mask"]
    assert (batch["visual_token_class"][~mask] == -1).all()
    assert (batch["visual_type_ids"] == mask).all()
    assert (batch["visual_position_ids"][~mask] == 0).all()
    assert batch["sample_index"].tolist() == list(range(6))
    assert batch["visual_class_map"].dtype == torch.int32
    assert batch["visual_token_map"].dtype == torch.int32


def test_regions_say_what_the_target_shows():
    dataset = ImageFreeDataset(WORDS, tokens="region", target_size=(96, 128))
    batch = dataset.collate([dataset[index] for index in range(8)])
    for token_map, classes, target in zip(
        batch["visual_token_map"],
        batch["visual_token_class"],
        batch["visual_class_map"],
        strict=True,
    ):
        assert (classes[token_map.long()] == target).all()


def test_position_ids_count_rows_of_the_bucket():
    dataset = ImageFreeDataset(
        WORDS, input_size=(3, 4), target_size=12, grid=(1, 3), bucket_size=42
    )
    positions = dataset.collate([dataset[0]])["visual_position_ids"][0]
    assert positions.tolist() == [42 * row + column + 1 for row in range(3) for column in range(4)]
    # Also where patches do not divide the pixels, and a center may lie in the next patch.
    odd = ImageFreeDataset(WORDS, input_size=18, target_size=19, grid=(1, 3), bucket_size=18)
    assert odd.collate([odd[0]])["visual_position_ids"][0].tolist() == list(range(1, 325))


def test_position_of_a_region_is_the_patch_of_its_center():
    dataset = ImageFreeDataset(WORDS, tokens="region", grid=(2, 2), target_size=64, bucket_size=50)
    positions = dataset.collate([dataset[0]])["visual_position_ids"][0]
    assert positions.tolist() == [8 * 50 + 9, 8 * 50 + 25, 24 * 50 + 9, 24 * 50 + 25]


def test_word_bags_are_mean_embeddings_with_offsets_of_the_batch():
    dataset = ImageFreeDataset(WORDS, Letters(), tokens="region", target_size=64)
    samples = [dataset[index] for index in range(5)]
    batch = dataset.collate(samples)
    embedding = torch.nn.EmbeddingBag(128, 6, mode="mean")
    vectors = embedding(batch["visual_word_ids"], batch["visual_word_offsets"])
    classes = np.concatenate([sample.classes for sample in samples])
    assert len(vectors) == int(batch["num_visual_tokens"].sum()) == len(classes)
    by_hand = [
        embedding.weight[[ord(letter) for letter in f" {WORDS[number]}"]].mean(0)
        for number in classes
    ]
    torch.testing.assert_close(vectors, torch.stack(by_hand))
    # Each sample begins where the words of the one before end.
    first = np.cumsum([0, *(len(sample.classes) for sample in samples[:-1])])
    lengths = [sum(len(WORDS[c]) + 1 for c in sample.classes) for sample in samples]
    begins = batch["visual_word_offsets"][first].tolist()
    assert begins == np.cumsum([0, *lengths[:-1]]).tolist()
    matrix = dataset.words.class_matrix(embedding.weight)
    assert matrix.shape == (len(WORDS) + 1, 6)
    torch.testing.assert_close(matrix[torch.from_numpy(classes).long()], vectors)


def test_prompts_of_paper_and_code():
    def prompt(form, tokenizer=None):
        words = CategoryWords(["cow", "traffic  light"], tokenizer or Letters(), prompt=form)
        return "".join(
            "<>"[number - 1] if number < 3 else chr(number) for number in words.prompt_ids
        )

    question = "what is the segmentation map of the image? object:"
    assert prompt("paper") == f"<{question} cow, traffic light>"
    assert prompt("code") == f"< {question} cow traffic light unknown>"
    assert prompt("paper", Letters(None, None)) == f"{question} cow, traffic light"


def test_loss_ignores_unknown():
    dataset = ImageFreeDataset(WORDS)
    assert dataset.ignore_index == len(WORDS)
    target = torch.tensor([[0, dataset.ignore_index]])
    scores = torch.randn(1, len(WORDS) + 1, 2)
    loss = torch.nn.functional.cross_entropy(scores, target, ignore_index=dataset.ignore_index)
    assert torch.equal(loss, torch.nn.functional.cross_entropy(scores[..., :1], target[:, :1]))


# --- shapes of real tokens --------------------------------------------------------------------


def voronoi(rng: np.random.Generator, size: tuple[int, int], count: int) -> np.ndarray:
    sites = rng.uniform(0, 1, (count, 2)) * size
    y, x = np.mgrid[: size[0], : size[1]]
    nearest = ((y[..., None] - sites[:, 0]) ** 2 + (x[..., None] - sites[:, 1]) ** 2).argmin(-1)
    return np.unique(nearest, return_inverse=True)[1].reshape(size).astype(np.int16)


@pytest.fixture
def stored(tmp_path):
    rng = np.random.default_rng(0)
    maps = [voronoi(rng, (60, 80), 12) for _ in range(5)]
    rows = [StoredRow.of(0, [maps[0], maps[1]]), StoredRow.failed(1, "broken file")]
    rows += [StoredRow.of(number, [maps[number]]) for number in (2, 3, 4)]
    store_rows(tmp_path, rows)
    return tmp_path, maps


def test_shapes_are_those_of_stored_tokens(stored):
    folder, maps = stored
    dataset = ImageFreeDataset(WORDS, shapes=folder, tokens="region", target_size=(60, 80))
    found = [dataset[index] for index in range(40)]
    by_bytes = {token_map.tobytes(): 0 for token_map in maps}
    for sample in found:
        by_bytes[sample.regions.labels.astype(np.int16).tobytes()] += 1
    assert len(by_bytes) == 5  # each is a stored map …
    assert all(by_bytes.values())  # … and each is drawn, the row that failed left out
    validate_batch(dataset.collate(found))


@pytest.mark.parametrize("tokens", ["patch", "region"])
def test_shapes_are_resized_like_everything_else(stored, tokens):
    folder, maps = stored
    dataset = ImageFreeDataset(
        WORDS, shapes=folder, tokens=tokens, input_size=8, target_size=32, num_samples=10
    )
    batch = dataset.collate([dataset[index] for index in range(10)])
    validate_batch(batch)
    resized = [resize_nearest(token_map, (32, 32)) for token_map in maps]
    for index in range(10):
        sample = dataset[index]
        partitions = [
            len(np.unique(np.stack([sample.regions.labels, one]).reshape(2, -1), axis=1).T)
            for one in resized
        ]
        assert sample.regions.count in partitions  # one to one with a stored map
        if tokens == "patch":
            cells = batch["visual_token_class"][index].reshape(8, 8)
            assert (cells == batch["visual_class_map"][index][::4, ::4]).all()


def test_stored_tokens_read_without_images(stored):
    folder, maps = stored
    source = StoredSource(folder)
    assert len(source) == 5
    assert source.tokens.places().tolist() == [[0, 0], [0, 1], [2, 0], [3, 0], [4, 0]]
    assert (source.tokens.read(0)[1][0] == maps[1]).all()
    with pytest.raises(SampleError, match="broken file"):
        source.tokens.read(1)


@pytest.mark.parametrize("kept", [0, 2])
def test_few_maps_are_kept_in_memory(stored, kept, monkeypatch):
    folder, _ = stored
    monkeypatch.setattr("subtok_data.imagefree.sources._KEPT_BYTES", kept * 2 * 32 * 32)
    source, all_kept = StoredSource(folder), StoredSource(folder)
    for seed in range(30):
        drawn = source.draw(np.random.default_rng(seed), (32, 32))
        assert len(source._kept) <= kept
        monkeypatch.setattr("subtok_data.imagefree.sources._KEPT_BYTES", 2**30)
        expected = all_kept.draw(np.random.default_rng(seed), (32, 32))
        monkeypatch.setattr("subtok_data.imagefree.sources._KEPT_BYTES", kept * 2 * 32 * 32)
        assert (drawn.labels == expected.labels).all()


def test_shapes_must_cover_the_image(tmp_path):
    store_rows(tmp_path, [StoredRow.of(0, [np.array([[0, -1]], np.int16)])])
    with pytest.raises(ConfigError, match="overflow='drop'"):
        ImageFreeDataset(WORDS, shapes=tmp_path)[0]


# --- loading ----------------------------------------------------------------------------------


def small(**options) -> ImageFreeDataset:
    sizes = {"input_size": 8, "target_size": 32, "grid": (1, 8), "num_samples": 11, "seed": 5}
    return ImageFreeDataset(WORDS, Letters(), **(sizes | options))


def frozen(batches) -> list[dict[str, bytes]]:
    return [{key: value.numpy().tobytes() for key, value in b.items()} for b in batches]


@pytest.mark.parametrize("workers", [1, 2])
def test_same_batches_for_any_number_of_workers(workers, no_leaks):
    alone = frozen(ImageFreeLoader(small(), 2))
    loader = ImageFreeLoader(small(), 2, num_workers=workers)
    assert frozen(loader) == alone
    second = frozen(loader)  # the next epoch, in the same workers
    assert second != alone
    again = ImageFreeLoader(small(), 2)
    again.set_epoch(1)
    assert frozen(again) == second


def test_a_plain_dataloader_gives_the_same_batches():
    dataset = small()
    plain = DataLoader(dataset, batch_size=2, collate_fn=dataset.collate)
    assert frozen(plain) == frozen(ImageFreeLoader(small(), 2))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("samples", [11, None])
def test_resumes_exactly(workers, samples, no_leaks):
    whole = frozen(itertools.islice(ImageFreeLoader(small(num_samples=samples), 2), 6))
    loader = ImageFreeLoader(small(num_samples=samples), 2, num_workers=workers)
    iterator = iter(loader)
    head = frozen(itertools.islice(iterator, 2))
    state = loader.state_dict()
    iterator.close()
    resumed = ImageFreeLoader(small(num_samples=samples), 2)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert head + frozen(itertools.islice(resumed, 4)) == whole


def test_resumes_in_the_next_epoch_after_the_last_batch():
    loader = ImageFreeLoader(small(), 4)
    for _ in loader:
        state = loader.state_dict()
    expected = frozen(loader)
    resumed = ImageFreeLoader(small(), 4)
    resumed.load_state_dict(state)
    assert frozen(resumed) == expected


def test_a_state_of_other_samples_is_refused():
    state = ImageFreeLoader(small(), 2).state_dict()
    with pytest.raises(ConfigError, match="seed was 5, is 6"):
        ImageFreeLoader(small(seed=6), 2).load_state_dict(state)
    with pytest.raises(ConfigError, match="batch_size was 2, is 3"):
        ImageFreeLoader(small(), 3).load_state_dict(state)


def test_skipped_batches_are_left_out():
    loader = ImageFreeLoader(small(), 2)
    loader.skip(4)
    assert [batch["sample_index"].tolist() for batch in loader] == [[8, 9], [10]]


@pytest.mark.parametrize("samples", [16, None])
def test_ranks_share_the_samples(samples, monkeypatch):
    found = []
    for rank in range(2):
        for module in ("imagefree.loader", "data.loader.batch_sampler"):
            monkeypatch.setattr(f"subtok_data.{module}.rank_and_world_size", lambda r=rank: (r, 2))
        loader = ImageFreeLoader(small(num_samples=samples), 2)
        found.append([b["sample_index"].tolist() for b in itertools.islice(loader, 4)])
    assert found == [
        [[0, 1], [4, 5], [8, 9], [12, 13]],
        [[2, 3], [6, 7], [10, 11], [14, 15]],
    ]


_RANK = """
import itertools, json, sys
import torch.distributed as dist
from subtok_data.imagefree import ImageFreeDataset, ImageFreeLoader
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
sizes = {"input_size": 8, "target_size": 32, "grid": (1, 8), "seed": 5}
found = []
for samples in (11, None):
    loader = ImageFreeLoader(ImageFreeDataset(["cow", "sky"], num_samples=samples, **sizes), 2)
    batches = itertools.islice(loader, 3)
    rows = [(b["sample_index"].tolist(), b["visual_token_class"].sum().item()) for b in batches]
    found.append(rows)
    state = loader.state_dict()
    loader = ImageFreeLoader(ImageFreeDataset(["cow", "sky"], num_samples=samples, **sizes), 2)
    loader.load_state_dict(state)
    found[-1].append(next(iter(loader))["sample_index"].tolist())
print(json.dumps(found))
dist.barrier()  # a rank that leaves early takes the other's connection with it
dist.destroy_process_group()
"""


def test_two_processes_see_the_samples_of_one(tmp_path):
    command = (sys.executable, "-c", _RANK)
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "meet")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    printed, complaints = zip(*(process.communicate(timeout=120) for process in ranks), strict=True)
    assert [process.returncode for process in ranks] == [0, 0], complaints
    finite, endless = zip(*map(json.loads, printed), strict=True)
    # Eleven samples fill three batches of two on each rank, the first of them a second time.
    assert [row[0] for row in finite[0][:3]] == [[0, 1], [4, 5], [8, 9]]
    assert [row[0] for row in finite[1][:3]] == [[2, 3], [6, 7], [10, 0]]
    assert [rank[3] for rank in endless] == [[12, 13], [14, 15]]  # resumed
    alone = ImageFreeDataset(
        ["cow", "sky"], input_size=8, target_size=32, grid=(1, 8), seed=5, num_samples=None
    )
    for indices, total in (row for rank in endless for row in rank[:3]):
        batch = alone.collate([alone[index] for index in indices])
        assert batch["visual_token_class"].sum().item() == total


def test_an_endless_stream_has_no_length():
    dataset = small(num_samples=None)
    assert len({dataset[index].classes.tobytes() for index in (0, 10**9, 2**40)}) == 3
    with pytest.raises(TypeError, match="num_samples"):
        len(ImageFreeLoader(dataset))


def test_accelerate_keeps_the_loader():
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    loader = ImageFreeLoader(small(), 4)
    assert accelerator.prepare(loader) is loader
    ends = [accelerator.gradient_state.end_of_dataloader for _ in loader]
    assert ends == [False, False, True]


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"categories": []}, "at least one"),
        ({"categories": "cow"}, "list of words"),
        ({"categories": ["cow", " "]}, "category 1 is empty"),
        ({"categories": ["cow", "unknown"]}, "appended by itself"),
        ({"categories": ["cow", "sky", "cow"]}, "category 2, 'cow', is there twice"),
        ({"grid": (0, 4)}, "grid"),
        ({"grid": (5, 4)}, "grid"),
        ({"grid": (1, 64), "target_size": 32}, "do not fit"),
        ({"target_size": 16}, "smaller than input_size"),
        ({"tokens": "pixel"}, "tokens='pixel'"),
        ({"prompt": "poem", "tokenizer": Letters()}, "prompt='poem'"),
        ({"num_samples": 0}, "num_samples=0"),
        ({"bucket_size": 31}, "bucket_size=31"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_refuses_what_makes_no_sense(change, words):
    with pytest.raises(ConfigError, match=words):
        ImageFreeDataset(**({"categories": WORDS} | change))


def test_an_index_outside_is_an_index_error():
    dataset = small()
    for index in (-1, 11):
        with pytest.raises(IndexError, match="no sample"):
            dataset[index]
    assert len(list(dataset)) == 11  # so a plain loop ends


def test_a_tokenizer_that_gives_nothing_is_refused():
    class Silent(Letters):
        def encode(self, text, add_special_tokens=True):
            return []

    with pytest.raises(ConfigError, match="no token for category 'giraffe'"):
        ImageFreeDataset(WORDS, Silent())


def test_grid_source_describes_itself():
    assert GridSource(1, 4).describe() == {"grid": [1, 4]}


# --- speed and imports ------------------------------------------------------------------------

_SPEED = """
import sys, time, torch
from subtok_data.imagefree import ImageFreeDataset, ImageFreeLoader
torch.set_num_threads(1)
loader = ImageFreeLoader(ImageFreeDataset(list(map(str, range(150))), num_samples=None))
batches = iter(loader)
fastest = 0.0
for _ in range(4):
    start = time.process_time()
    for _ in range(20):
        next(batches)
    fastest = max(fastest, 320 / (time.process_time() - start))
libraries = {"PIL", "torchvision", "skimage", "cv2", "imageio", "tifffile", "scipy", "transformers"}
print(int(fastest), sorted(libraries & set(sys.modules)))
"""


def test_thousands_of_samples_a_second_without_an_image_library():
    done = subprocess.run(
        [sys.executable, "-c", _SPEED], capture_output=True, text=True, check=True, timeout=120
    )
    rate, libraries = done.stdout.split(maxsplit=1)
    assert libraries.strip() == "[]"
    assert int(rate) > 1000  # several thousand where the core is not shared


def test_stored_shapes_import_no_image_library(stored):
    code = (
        "import sys\nfrom subtok_data.imagefree import ImageFreeDataset\n"
        f"ImageFreeDataset(['cow'], shapes={str(stored[0])!r})[0]\n"
        "assert not {'PIL', 'torchvision', 'skimage', 'cv2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
