"""One image or a list of them to tokens; configurations and what tells them apart."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from skimage import data

from subtok_data import (
    EPOCSegmenter,
    PatchSegmenter,
    PromptedSegmenter,
    Prompts,
    SAMSegmenter,
    SubobjectLoader,
    SubobjectTokenizer,
    SuperpixelSegmenter,
    watershed_tokens,
)
from subtok_data.errors import ConfigError, ImageError
from subtok_data.images import Canvas
from subtok_data.segment import Budget, WatershedPartitioner


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return data.chelsea()


def test_default_tokenizer_covers_a_photo(photo):
    tokens = SubobjectTokenizer(size=256, device="cpu")(photo)
    assert tokens.token_map.shape == tokens.image.shape[:2] == tokens.boundary_map.shape
    assert tokens.areas.sum() == tokens.token_map.size
    assert tokens.source_size == photo.shape[:2]
    assert (np.diff(tokens.areas) <= 0).all()
    labels, areas = np.unique(tokens.token_map, return_counts=True)
    assert labels.tolist() == list(range(tokens.num_tokens))
    assert (areas == tokens.areas).all()
    expected = watershed_tokens(tokens.boundary_map, strength=EPOCSegmenter.default_strength)
    assert (tokens.token_map == expected).all()


def test_strength_needs_a_boundary_map_and_no_other_control(photo):
    tokens = SubobjectTokenizer(size=256, strength=0.25, device="cpu")(photo)
    expected = watershed_tokens(tokens.boundary_map, strength=0.25)
    assert (tokens.token_map == expected).all()
    few = SubobjectTokenizer(size=256, strength=0.25, max_tokens=5, device="cpu")(photo)
    assert few.num_tokens == 5
    for options, message in (
        ({"threshold": 0.1}, r"threshold=0\.1 and strength=0\.25"),
        ({"segmenter": EPOCSegmenter(threshold=0.1)}, r"threshold=0\.1 and strength=0\.25"),
        ({"num_tokens": 9}, r"num_tokens=9 and strength=0\.25"),
        ({"segmenter": PatchSegmenter(16)}, "GridPartitioner gives no boundary map"),
    ):
        with pytest.raises(ConfigError, match=message):
            SubobjectTokenizer(**options, strength=0.25)


def test_strength_is_the_default_where_no_control_is_given(photo, tmp_path):
    default = SubobjectTokenizer()
    assert default.budget == Budget(strength=EPOCSegmenter.default_strength)
    assert SubobjectTokenizer(EPOCSegmenter()).budget == default.budget
    assert SubobjectTokenizer(max_tokens=9).budget.strength == default.budget.strength
    for options in (
        {"num_tokens": 9},
        {"threshold": 0.1},
        {"segmenter": EPOCSegmenter(threshold=0.1)},
    ):
        assert SubobjectTokenizer(**options).budget.strength is None
    assert SubobjectTokenizer(threshold=0.1).budget.min_area == EPOCSegmenter.default_min_area
    assert SubobjectTokenizer(PatchSegmenter(16)).budget == Budget()
    for tokenizer in (default, SubobjectTokenizer(threshold=0.1)):
        tokenizer.save_pretrained(tmp_path)
        again = SubobjectTokenizer.from_pretrained(tmp_path)
        assert again.budget == tokenizer.budget
        assert again.config_hash == tokenizer.config_hash

    class Own(OwnSegmenter):
        default_strength = 0.2
        partitioner = WatershedPartitioner()

    assert SubobjectTokenizer(Own()).budget == Budget(strength=0.2)


@pytest.mark.data
@pytest.mark.slow
def test_a_photo_has_as_many_tokens_at_every_resolution(data_dir):
    photos = sorted((data_dir / "photos/open").glob("clic*.jpg"))[::4]
    means = [
        np.mean([SubobjectTokenizer(size=size, device="cpu")(one).num_tokens for one in photos])
        for size in (256, 512, 1024)
    ]
    assert max(means) <= 1.15 * min(means), means


@pytest.mark.parametrize(
    "segmenter", [None, PatchSegmenter(24), SuperpixelSegmenter("slic", n_segments=60)]
)
def test_every_segmenter_hits_an_exact_count(photo, segmenter):
    tokenizer = SubobjectTokenizer(segmenter, num_tokens=20, size=160)
    found = tokenizer([photo, photo[:, ::-1], photo[:200]])
    assert [tokens.num_tokens for tokens in found] == [20, 20, 20]


def test_list_and_single_image_agree(photo):
    tokenizer = SubobjectTokenizer(SuperpixelSegmenter(n_segments=20), size=96)
    one, many = tokenizer(photo), tokenizer([photo, data.coffee()])
    assert (one.token_map == many[0].token_map).all()
    assert len(many) == 2


def test_lists_tuples_and_generators_of_images(photo):
    tokenizer = SubobjectTokenizer(PatchSegmenter(24), size=96)
    photos = [photo, data.coffee()]
    expected = [tokens.token_map for tokens in tokenizer(photos)]
    prompts = [None, Prompts.of(data.coffee().shape[:2], boxes=[[10, 10, 90, 90]])]
    for images in (tuple(photos), (image for image in photos), iter(photos), map(np.copy, photos)):
        found = tokenizer(images, prompts=prompts)
        assert isinstance(found, list)
        for one, token_map in zip(found, expected, strict=True):
            assert (one.token_map == token_map).all()
        assert found[0].prompt_tokens is None
        assert found[1].prompt_tokens.shape == (1,)
    assert tokenizer([]) == tokenizer(()) == []


def test_length_is_the_number_of_tokens(photo):
    tokens = SubobjectTokenizer(num_tokens=7, size=96, device="cpu")(photo)
    assert len(tokens) == tokens.num_tokens == 7


def test_representations_say_what_things_are():
    tokenizer = SubobjectTokenizer(EPOCSegmenter("some/model", threshold=0.3), max_tokens=9)
    for part in ("EPOCSegmenter('some/model'", "threshold=0.3", "max_tokens=9", "size=512"):
        assert part in repr(tokenizer)
    assert "SAMSegmenter('some/sam', device='cuda:1', MaskPartitioner(" in repr(
        SAMSegmenter("some/sam", device="cuda:1")  # nothing is loaded for it
    )
    assert "PatchSegmenter(GridPartitioner(patch=8" in repr(PromptedSegmenter(PatchSegmenter(8)))


def test_shapes_are_never_empty(photo):
    tokens = SubobjectTokenizer(num_tokens=40, size=128)(photo, shape_size=8)
    assert tokens.shapes.shape == (40, 8, 8)
    assert tokens.shapes.any(axis=(1, 2)).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": 0.1, "num_tokens": 5}, "both control how fine"),
        (
            {"segmenter": EPOCSegmenter(threshold=0.3), "num_tokens": 60},
            "threshold=0.3 and num_tokens=60",
        ),
        (
            {"segmenter": PromptedSegmenter(EPOCSegmenter(threshold=0.3)), "num_tokens": 60},
            "threshold=0.3 and num_tokens=60",
        ),
        ({"segmenter": "epoc"}, "segmenter is the string 'epoc'"),
        ({"threshold": 1.5}, "threshold"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"num_tokens": 0}, "num_tokens"),
        ({"min_area": -1}, "min_area"),
        ({"order": "size"}, "order"),
        ({"merge": "cheap"}, "merge"),
        ({"size": 8}, "size=8"),
        ({"size": None, "square": True}, "square"),
        ({"segmenter": PatchSegmenter(), "threshold": 0.1}, "belong to the segmenter"),
    ],
)
def test_impossible_options_are_refused_at_once(options, words):
    with pytest.raises(ConfigError, match=words):
        SubobjectTokenizer(**options)


def test_bad_image_is_an_image_error():
    with pytest.raises(ImageError, match="not an image in any format"):
        SubobjectTokenizer(PatchSegmenter())(b"no image")


@pytest.mark.parametrize(
    "tokenizer",
    [
        SubobjectTokenizer(EPOCSegmenter(threshold=0.25), max_tokens=30, size=128),
        SubobjectTokenizer(PatchSegmenter(20), order="raster", size=96, square=True),
        SubobjectTokenizer(SuperpixelSegmenter("felzenszwalb", n_segments=50), size=96),
    ],
)
def test_save_and_load_give_the_same_tokens(tokenizer, photo, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = SubobjectTokenizer.from_pretrained(tmp_path, device="cpu")
    assert loaded.config_hash == tokenizer.config_hash
    assert (loaded(photo).token_map == tokenizer(photo).token_map).all()


def test_config_hash_tells_configurations_apart():
    hashes = {
        SubobjectTokenizer(**options).config_hash
        for options in ({}, {"threshold": 0.2}, {"num_tokens": 9}, {"size": 256}, {"min_area": 4})
    }
    assert len(hashes) == 5
    assert SubobjectTokenizer().config_hash == SubobjectTokenizer().config_hash


class OwnSegmenter:
    """A segmenter of the user's own, without config()."""

    partitioner = PatchSegmenter(16).partitioner

    def infer(self, images, sizes, prompts=None):
        return [{} for _ in images]


def test_own_segmenter(photo, tmp_path):
    tokenizer = SubobjectTokenizer(OwnSegmenter(), size=64)
    assert tokenizer(photo).num_tokens == 8
    with pytest.raises(ConfigError, match=r"OwnSegmenter has no config\(\)"):
        _ = tokenizer.config_hash
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="segmenter=…"):
        SubobjectTokenizer.from_pretrained(tmp_path)
    again = SubobjectTokenizer.from_pretrained(tmp_path, segmenter=OwnSegmenter())
    assert again(photo).num_tokens == 8


def test_from_pretrained_refuses_what_it_cannot_read(tmp_path):
    with pytest.raises(ConfigError, match="no tokenizer"):
        SubobjectTokenizer.from_pretrained(tmp_path)
    SubobjectTokenizer(PatchSegmenter()).save_pretrained(tmp_path)
    file = tmp_path / "subtok_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": 99}))
    with pytest.raises(ConfigError, match="format version 99"):
        SubobjectTokenizer.from_pretrained(tmp_path)


def test_a_configuration_alone_makes_the_tokenizer_again(tmp_path):
    for tokenizer in (
        SubobjectTokenizer(max_tokens=9, order="raster"),
        SubobjectTokenizer(EPOCSegmenter(threshold=0.3), size=128, square=True),
        SubobjectTokenizer(PatchSegmenter(8), num_tokens=5),
    ):
        config = json.loads(json.dumps(tokenizer.config()))
        again = SubobjectTokenizer.from_config(config)
        assert again.config_hash == tokenizer.config_hash
        with pytest.raises(ConfigError, match="format version 99"):
            SubobjectTokenizer.from_config({**config, "format_version": 99})
    other = {**SubobjectTokenizer().config(), "model": "0123456789abcdef"}
    with pytest.raises(ConfigError, match="has model '0123456789abcdef', the segmenter model"):
        SubobjectTokenizer.from_config(other)
    with pytest.raises(ConfigError, match="the weights of 'sam' are not in a configuration"):
        SubobjectTokenizer.from_config({**other, "segmenter": "sam"})
    own = {**other, "segmenter": "OwnSegmenter"}
    with pytest.raises(ConfigError, match="give its segmenter as segmenter=…"):
        SubobjectTokenizer.from_config(own)


def test_prompts_are_refused_by_segmenters_without_them(photo):
    with pytest.raises(ConfigError, match="takes no prompts"):
        PatchSegmenter().infer([photo], [photo.shape[:2]], prompts=[[(0, 0, 4, 4)]])


def test_canvas_depends_on_the_image_alone():
    canvas = Canvas(128)
    assert canvas.fit(np.zeros((100, 50, 3), np.uint8)).shape == (128, 64, 3)
    assert canvas.fit(np.zeros((1, 5000, 3), np.uint8)).shape == (32, 128, 3)
    assert Canvas(128, square=True).fit(np.zeros((100, 50, 3), np.uint8)).shape == (128, 128, 3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (32, 32), (5000, 1)])
def test_extreme_sizes_have_tokens(shape):
    image = np.full((*shape, 3), 90, np.uint8)
    for size in (64, None):
        tokens = SubobjectTokenizer(size=size, device="cpu")(image)
        assert tokens.num_tokens >= 1
        assert tokens.areas.sum() == tokens.token_map.size


class RedAsBoundaries:
    """The red channel is the boundary map."""

    partitioner = WatershedPartitioner()

    def infer(self, images, sizes, prompts=None):
        return [{"boundary_map": np.ascontiguousarray(image[..., 0])} for image in images]


FLAT = np.zeros((64, 64, 3), np.uint8)


def test_images_too_flat_for_the_number_are_counted_in_one_warning(photo):
    tokenizer = SubobjectTokenizer(RedAsBoundaries(), num_tokens=7, size=96)
    with pytest.warns(UserWarning, match="2 of 3 images .* than num_tokens=7") as told:
        counts = [tokens.num_tokens for tokens in tokenizer([FLAT, photo, FLAT])]
    assert len(told) == 1
    assert counts == [1, 7, 1]


def test_the_loader_counts_them_over_an_epoch(photo):
    tokenizer = SubobjectTokenizer(RedAsBoundaries(), num_tokens=7, size=96)
    with SubobjectLoader([FLAT, photo] * 2, tokenizer, executor="inline") as loader:
        for epoch in (1, 2):
            with pytest.warns(UserWarning, match="2 of 4 images have fewer") as told:
                list(loader)
            assert len(told) == 1
            assert loader.stats().short == 2 * epoch
        assert "4 images have fewer tokens" in loader.stats().report()


def test_fingerprint_is_the_same_after_the_first_use(photo):
    from datasets.fingerprint import Hasher

    tokenizer = SubobjectTokenizer(size=96, device="cpu")
    before = Hasher.hash(tokenizer)
    tokens = tokenizer(photo)
    assert tokenizer.config_hash
    assert (
        Hasher.hash(tokenizer) == before == Hasher.hash(SubobjectTokenizer(size=96, device="cpu"))
    )
    assert Hasher.hash(SubobjectTokenizer(size=128, device="cpu")) != before
    again = pickle.loads(pickle.dumps(tokenizer))
    assert (again(photo).token_map == tokens.token_map).all()
    model = SubobjectTokenizer(EPOCSegmenter(tokenizer.segmenter.model), size=96)
    before = Hasher.hash(model)
    model(photo)
    assert model.config_hash == tokenizer.config_hash
    assert Hasher.hash(model) == before
