"""Maps of the boundary model: their definition, what changes them and what does not, devices."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.boundary_networks import Constant, PredictsInWorker, Red, pictures
from hypothesis import given, strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from subtok_data.boundary import BoundaryModel, load_network
from subtok_data.boundary.network import BoundaryNetwork
from subtok_data.boundary.padding import _mirror, balanced, canvas_of, stack
from subtok_data.devices import DeviceError, DeviceMemoryError, compute_dtype, resolve_device
from subtok_data.errors import ConfigError, ImageError, SubtokError


@pytest.fixture(scope="module")
def packaged() -> BoundaryModel:
    return BoundaryModel.from_pretrained(device="cpu")


# --- maps --------------------------------------------------------------------------------------


def test_shapes_dtypes_and_order(packaged):
    images = pictures((40, 70), (64, 64), (1, 1), (33, 70), (1, 200), (64, 64))
    maps = packaged.predict(images)
    assert [boundary.shape for boundary in maps] == [image.shape[:2] for image in images]
    assert all(boundary.dtype == np.uint8 for boundary in maps)
    assert all(boundary.flags.c_contiguous for boundary in maps)
    assert packaged.predict([]) == []


def test_one_image_gives_one_map(packaged):
    image, other = pictures((33, 70), (40, 50))
    expected, second = packaged.predict([image, other])
    assert np.array_equal(packaged.predict(image), expected)
    assert np.array_equal(packaged.predict(Image.fromarray(image)), expected)
    transparent = Image.fromarray(image).convert("RGBA")
    assert np.array_equal(packaged.predict(transparent), expected)
    for images in ([Image.fromarray(image), other], (image, other), iter([image, other])):
        found = packaged.predict(images)
        assert isinstance(found, list)
        assert np.array_equal(found[0], expected)
        assert np.array_equal(found[1], second)
    stacked = packaged.predict(np.stack([image, image]))
    assert len(stacked) == 2
    assert np.array_equal(stacked[1], expected)


@pytest.mark.parametrize(("step", "canvas"), [(32, (64, 96)), (64, (64, 128)), (128, (128, 128))])
def test_against_the_definition(step, canvas):
    """One image through the network by hand: pad, normalise, upsample the logits, round."""
    image = pictures((50, 90))[0]
    loaded = load_network(None)
    padded = np.pad(image, ((0, canvas[0] - 50), (0, canvas[1] - 90), (0, 0)), mode="reflect")
    pixels = torch.from_numpy(padded).permute(2, 0, 1)[None] / 255
    norm = loaded.normalisation
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (norm.mean, norm.std))
    with torch.no_grad():
        logits = loaded.module.eval()((pixels - mean) / std)
        probability = F.interpolate(
            logits, size=canvas, mode="bicubic", align_corners=False
        ).sigmoid()
    expected = (probability[0, 0, :50, :90] * 255).round().numpy()
    model = BoundaryModel(
        loaded.module, mean=norm.mean, std=norm.std, dtype="float32", canvas_step=step
    )
    found = model.predict([image])[0]
    assert np.abs(found - expected).max() <= 1
    assert (found != expected).mean() < 1e-3


def test_photo_has_boundaries_where_it_has_edges(packaged):
    image = np.full((96, 128, 3), (40, 90, 160), np.uint8)
    image[:, 64:] = (230, 210, 60)
    boundary = packaged.predict([image])[0].astype(int)
    assert boundary[20:76, 62:66].min() > 128
    assert boundary[20:76, 20:44].max() < 64


@pytest.mark.data
def test_real_photo(packaged, data_dir: Path):
    from scipy.io import loadmat

    from subtok_data.images import to_rgb

    for path in sorted((data_dir / "bsds500/images/val").glob("*.jpg"))[:4]:
        boundary = packaged.predict([to_rgb(path)])[0]
        humans = loadmat(data_dir / "bsds500/groundTruth/val" / f"{path.stem}.mat")["groundTruth"][
            0
        ]
        drawn = np.mean([human["Boundaries"][0, 0] for human in humans], axis=0)
        assert boundary.shape == drawn.shape
        assert boundary[drawn > 0.5].mean() > 1.5 * boundary[drawn == 0].mean()


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([32, 64, 128, 256]))
def test_canvas(height, width, step):
    image = np.broadcast_to(np.zeros(3, np.uint8), (height, width, 3))
    for side, padded in zip((height, width), canvas_of(image, step), strict=True):
        assert padded % step == 0
        assert 0 <= padded - side < step


@given(st.lists(st.integers(), max_size=40), st.integers(1, 16))
def test_balanced_batches_are_few_and_even(members, most):
    parts = balanced(members, most)
    assert [one for part in parts for one in part] == members
    assert len(parts) == -(-len(members) // most)
    assert not parts or max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8), np.uint8), r"uint8 of shape \(8, 8\)"),
        (np.zeros((8, 8, 4), np.uint8), r"shape \(8, 8, 4\)"),
        (np.zeros((8, 8, 3), np.float32), "image 1 of 2 is float32"),
        (np.zeros((0, 8, 3), np.uint8), r"shape \(0, 8, 3\)"),
        (torch.zeros(8, 8, 3), "float32"),
        (None, "NoneType"),
    ],
)
def test_refused_images(packaged, image, message):
    with pytest.raises(ImageError, match=message):
        packaged.predict([np.zeros((8, 8, 3), np.uint8), image])


# --- invariance --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_batch_mates_change_at_most_one_level(dtype):
    model = BoundaryModel.from_pretrained(device="cpu", dtype=dtype)
    images = pictures(*[(96, 128)] * 5, (64, 128), (90, 100))
    alone = [model.predict([image])[0] for image in images]
    for order in ([0, 1, 2, 3, 4, 5, 6], [6, 4, 2, 0], [3, 3, 1], [5, 1]):
        for at, boundary in zip(order, model.predict([images[at] for at in order]), strict=True):
            difference = np.abs(boundary.astype(int) - alone[at])
            assert difference.max() <= 1
            assert (difference > 0).mean() < 0.02


def test_same_bits_twice(packaged):
    images = pictures((96, 128), (96, 128), (50, 60))
    first, second = packaged.predict(images), packaged.predict(images)
    again = BoundaryModel.from_pretrained(device="cpu").predict(images)
    for one, two, three in zip(first, second, again, strict=True):
        assert np.array_equal(one, two)
        assert np.array_equal(one, three)


def test_batches_are_formed_by_canvas(monkeypatch):
    seen: list[tuple[int, ...]] = []

    class Spy(Constant):
        def forward(self, pixels):
            seen.append(tuple(pixels.shape))
            return super().forward(pixels)

    images = pictures((32, 64), (64, 64), (20, 50), (32, 64), (60, 33))
    spy = Spy()
    model = BoundaryModel(spy, dtype="float32")
    model.predict(images)
    assert seen == [(1, 3, 32, 64)] * 3 + [(1, 3, 64, 64)] * 2
    # SegFormer runs in pairs on a CPU, and in reduced precision never alone.
    spy.config = SimpleNamespace(model_type="segformer")
    seen.clear()
    model.predict(images)
    assert seen == [(2, 3, 32, 64), (1, 3, 32, 64), (2, 3, 64, 64)]
    seen.clear()
    assert len(BoundaryModel(spy, dtype="bfloat16").predict(images)) == 5
    assert seen == [(2, 3, 32, 64)] * 2 + [(2, 3, 64, 64)]
    # An accelerator takes as many pixels as batch_size squares of 512 have.
    monkeypatch.setattr(BoundaryModel, "device", torch.device("meta"))
    for canvas, length in (((512, 512), 16), ((32, 32), 16), ((1024, 1024), 4), ((8192, 8192), 1)):
        assert model._batch_length(canvas) == length
    # With much free memory more of them, so that 8 images of 768 x 768 are not 7 and 1.
    for free, length in ((2 << 30, 7), (24 << 30, 10), (100 << 30, 16)):
        monkeypatch.setattr("subtok_data.boundary.model._free_memory", lambda _, free=free: free)
        model = BoundaryModel(Constant(), dtype="float32")
        assert model._batch_length((768, 768)) == length


@pytest.mark.parametrize("step", [32, 128])
def test_images_share_a_canvas_more_often_with_a_coarser_step(step):
    seen: list[tuple[int, ...]] = []

    class Spy(Constant):
        config = SimpleNamespace(model_type="segformer")

        def forward(self, pixels):
            seen.append(tuple(pixels.shape))
            return super().forward(pixels)

    images = pictures((100, 128), (128, 70), (20, 120), (129, 128))
    BoundaryModel(Spy(), dtype="float32", canvas_step=step).predict(images)
    if step == 32:
        assert [shape[2:] for shape in seen] == [(128, 128), (128, 96), (32, 128), (160, 128)]
    else:
        assert [shape[2:] for shape in seen] == [(128, 128), (128, 128), (256, 128)]


def test_canvas_step_is_part_of_what_a_map_is(tmp_path):
    images = pictures((50, 90), (1, 200), (64, 64))
    plain = BoundaryModel.from_pretrained(device="cpu")
    # Of tokens that are stored: neither may change with what the option adds.
    assert plain.config_hash.startswith("b2d492a469a4")
    same = BoundaryModel.from_pretrained(device="cpu", canvas_step=32)
    assert same.config_hash == plain.config_hash
    coarse = BoundaryModel.from_pretrained(device="cpu", canvas_step=128)
    assert coarse.config_hash != plain.config_hash
    assert "canvas_step=128" in repr(coarse)
    coarse.save_pretrained(tmp_path)
    again = BoundaryModel.from_pretrained(tmp_path, device="cpu")
    assert again.canvas_step == 128
    assert again.config_hash == coarse.config_hash
    for one, two in zip(coarse.predict(images), again.predict(images), strict=True):
        assert np.array_equal(one, two)
    assert BoundaryModel.from_pretrained(tmp_path, canvas_step=32).canvas_step == 32


@pytest.mark.parametrize("options", [{"tile": 128, "overlap": 32}, {"scales": (1.0, 1.5)}])
def test_canvas_step_with_tiles_and_scales(options):
    options = {"mean": (0.5, 0, 0), "std": (0.25, 1, 1), "dtype": "float32", **options}
    images = pictures((100, 300), (70, 90))
    fine = BoundaryModel(Red(), **options).predict(images)
    coarse = BoundaryModel(Red(), canvas_step=128, **options).predict(images)
    # A network that sees 4 x 4 pixels knows nothing of the canvas, but where it is upsampled.
    for one, two in zip(fine, coarse, strict=True):
        assert np.abs(one.astype(int) - two)[:-4, :-4].max() <= 1


def test_padding_mirrors_the_image():
    image = np.zeros((30, 40, 3), np.uint8)
    image[:, :, 0] = np.arange(40) * 5
    levels = BoundaryModel(Red(), mean=(0.5, 0, 0), std=(0.25, 1, 1), dtype="float32").predict(
        [image]
    )[0]
    # Constant padding would bend the last columns; mirrored ones keep them rising.
    assert (np.diff(levels[15].astype(int)) >= 0).all()
    assert levels[-1].tolist() == levels[0].tolist()


def test_tensors_and_arrays_give_the_same(packaged):
    image = pictures((50, 60))[0]
    locked = image.copy()
    locked.flags.writeable = False
    expected = packaged.predict([image])[0]
    for same in (torch.from_numpy(image), locked, np.asfortranarray(image)):
        assert np.array_equal(packaged.predict([same])[0], expected)


def test_device_path_of_tensors():
    # Tensors that are on an accelerator are padded there; the meta device has shapes only.
    placed = stack(
        [torch.zeros(20, 40, 3, dtype=torch.uint8, device="meta")], (32, 64), torch.device("meta")
    )
    assert placed.shape == (1, 32, 64, 3)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 40), st.integers(0, 40))
def test_tensors_on_a_device_are_mirrored_as_arrays_are(height, width, below, right):
    pixels = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)
    expected = np.pad(pixels, ((0, below), (0, right), (0, 0)), mode="reflect")
    found = torch.zeros(expected.shape, dtype=torch.uint8)
    found[:height, :width] = torch.from_numpy(pixels)
    _mirror(found[:height].transpose(0, 1), width)
    _mirror(found, height)
    assert np.array_equal(found.numpy(), expected)
    canvas = (height + below, width + right)
    assert np.array_equal(stack([pixels], canvas, torch.device("cpu"))[0].numpy(), expected)


@pytest.mark.parametrize("caller", [torch.inference_mode, torch.enable_grad])
def test_maps_are_ordinary_tensors(packaged, caller):
    with caller():
        maps = packaged.predict_on_device(pictures((50, 60), (64, 64)))
    for boundary in (*maps, maps.finite):
        assert not boundary.is_inference()
        assert not boundary.requires_grad
        assert boundary.is_contiguous()
    assert maps.finite.tolist() == [True, True]
    assert (maps[1].float() * torch.ones(1, requires_grad=True)).sum().requires_grad


def test_autocast_of_the_caller_changes_nothing(packaged):
    image = pictures((64, 64))[0]
    model = BoundaryModel.from_pretrained(device="cpu", dtype="float32")
    expected = model.predict([image])[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(model.predict([image])[0], expected)


def test_precisions_agree_roughly():
    images = pictures((96, 128), seed=3)
    exact = (
        BoundaryModel.from_pretrained(device="cpu", dtype="float32").predict(images)[0].astype(int)
    )
    for dtype, mean in (("bfloat16", 2.0), ("float16", 0.2)):
        other = BoundaryModel.from_pretrained(device="cpu", dtype=dtype).predict(images)[0]
        assert np.abs(other - exact).mean() < mean


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
def test_compiled_agrees():
    images = pictures((96, 128), (96, 128))
    plain = BoundaryModel.from_pretrained(device="cpu", dtype="float32").predict(images)
    compiled = BoundaryModel.from_pretrained(device="cpu", dtype="float32", compile=True)
    for one, two in zip(plain, compiled.predict(images), strict=True):
        assert np.abs(one.astype(int) - two).max() <= 1
    assert pickle.loads(pickle.dumps(compiled)).num_parameters == compiled.num_parameters


# --- not a number ------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_logits_name_the_model(value):
    class SpoilsBright(Constant):
        def forward(self, pixels):
            bright = pixels.amax((1, 2, 3), keepdim=True) > 1
            return torch.where(bright, value, super().forward(pixels))

    images = pictures(*[(32, 32)] * 3)
    images = [np.minimum(image, 100) for image in images]
    images[1][5, 5] = 255
    model = BoundaryModel(SpoilsBright(), dtype="float32", name="spoilt")
    with pytest.raises(SubtokError, match=r"'spoilt'.*image\(s\) \[1\] of 3.*float32"):
        model.predict(images)
    maps = model.predict_on_device(images)  # does not raise: nothing waits here
    assert maps.finite.tolist() == [True, False, True]
    with pytest.raises(SubtokError, match="spoilt"):
        maps.raise_unless_finite(maps.finite.cpu())


# --- memory ------------------------------------------------------------------------------------


class Small(Constant):
    """A device whose memory holds `room` pixels of a forward, and says so as CUDA does."""

    room = 0

    def forward(self, pixels):
        seen.append(len(pixels))
        if pixels.shape[0] * pixels.shape[2] * pixels.shape[3] > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
        return super().forward(pixels) + pixels[:, :1, ::4, ::4]


seen: list[int] = []


def small_model(monkeypatch, room: int, **options) -> BoundaryModel:
    monkeypatch.setattr(BoundaryNetwork, "cpu_batch", 8)
    model = BoundaryModel(Small(), dtype="float32", name="small", **options)
    model._network.module.room = room
    seen.clear()
    return model


def test_images_that_do_not_fit_together_run_in_halves(monkeypatch):
    images = pictures(*[(64, 64)] * 7, (32, 64))
    expected = small_model(monkeypatch, 8 * 64 * 64).predict(images)
    assert seen == [7, 1]
    found = small_model(monkeypatch, 2 * 64 * 64).predict(images)
    assert seen[:3] == [7, 3, 1]
    assert seen[-1] == 1
    for one, two in zip(found, expected, strict=True):
        assert np.array_equal(one, two)


def test_what_did_not_fit_is_not_tried_again(monkeypatch):
    images = pictures(*[(64, 64)] * 8)
    model = small_model(monkeypatch, 4 * 64 * 64)
    monkeypatch.setattr(
        BoundaryModel,
        "_batch_length",
        lambda self, canvas: (self._most_pixels or 8 * 64 * 64) // (canvas[0] * canvas[1]),
    )
    model.predict(images)
    model.predict(images)
    assert seen == [8, 4, 4, 4, 4]
    model.to("cpu")  # memory may be another now
    model.predict(images)
    assert seen[5:] == [8, 4, 4]


def test_tiles_that_do_not_fit_together_run_in_halves(monkeypatch):
    images = pictures((128, 256))
    options = {"tile": 64, "overlap": 32}
    expected = small_model(monkeypatch, 8 * 64 * 64, **options).predict(images)
    assert max(seen) == 8
    found = small_model(monkeypatch, 3 * 64 * 64, **options).predict(images)
    assert seen[:3] == [8, 4, 2]
    assert np.array_equal(found[0], expected[0])


@pytest.mark.parametrize("options", [{}, {"tile": 64, "overlap": 32}])
def test_an_image_that_does_not_fit_alone_says_what_would_help(monkeypatch, options):
    model = small_model(monkeypatch, 10, **options)
    words = (
        r"'small' on 'cpu': no memory for an image of 90 x 120 pixels.*canvas 96 x 128, tile="
        r".*batch_size=16 .*smaller size.* tile.*CUDA out of memory"
    )
    with pytest.raises(DeviceMemoryError, match=words):
        model.predict(pictures((90, 120), (90, 120)))


# --- networks of other shapes ------------------------------------------------------------------


def test_wrong_output_shape():
    class TwoChannels(Constant):
        def forward(self, pixels):
            return super().forward(pixels).repeat(1, 2, 1, 1)

    with pytest.raises(ConfigError, match=r"\(1, 2, 8, 8\).*\(N, 1, h, w\)"):
        BoundaryModel(TwoChannels(), dtype="float32").predict(pictures((32, 32)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 100}, "tile=100"),
        ({"tile": 0}, "tile=0"),
        ({"tile": 128, "overlap": 96}, r"overlap=96 .* 64 pixels"),
        ({"tile": 128, "overlap": 0}, "overlap=0"),
        ({"tile": 512, "overlap": 33}, "overlap=33"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"canvas_step": 48}, "canvas_step=48 must be a positive multiple of 32"),
        ({"canvas_step": 0}, "canvas_step=0"),
        ({"canvas_step": 64.0}, "canvas_step=64.0"),
        ({"tile": 96, "overlap": 32, "canvas_step": 64}, "tile=96 must be a multiple of canvas_st"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ConfigError, match=message):
        BoundaryModel(Constant(), **options)


# --- devices and processes ---------------------------------------------------------------------


def test_pickle(packaged):
    images = pictures((40, 50))
    random_state = torch.get_rng_state()
    copy = pickle.loads(pickle.dumps(packaged))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert copy.config_hash == packaged.config_hash
    assert np.array_equal(copy.predict(images)[0], packaged.predict(images)[0])
    elsewhere = BoundaryModel(Constant())
    elsewhere.to("meta")
    with pytest.raises(DeviceError, match=r"'meta'.*\.to\('cpu'\)"):
        pickle.dumps(elsewhere)


def test_device_choice(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device(None) == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"device='cuda'.*use 'cpu'"):
        BoundaryModel(Constant(), device="cuda")
    assert compute_dtype("auto", torch.device("cuda")) == torch.float16
    assert compute_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert resolve_device(None) == resolve_device("cuda") == torch.device("cuda", 3)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)


class FakeStream:
    """Writes down what happens to a stream, where there is none."""

    events: ClassVar[list[tuple[str, Any]]] = []

    def __init__(self, device, *, priority=0):
        self.device = device
        self.note("made", priority)

    def note(self, what, value=None):
        self.events.append((what, threading.get_ident() if value is None else value))

    def follow_caller(self):
        self.note("follows")

    @contextmanager
    def entered(self):
        self.note("entered")
        yield
        self.note("left")

    def record(self):
        return SimpleNamespace(synchronize=lambda: self.note("waited for"))


def test_the_stream_follows_what_made_the_weights_and_moving_waits_for_it(monkeypatch):
    monkeypatch.setattr("subtok_data.boundary.model.DeviceStream", FakeStream)
    events, here = FakeStream.events, threading.get_ident()
    events.clear()
    network = BoundaryNetwork.to
    monkeypatch.setattr(
        BoundaryNetwork,
        "to",
        lambda self, device: (events.append(("moved", device.type)), network(self, device)),
    )
    model = BoundaryModel(Constant())
    assert events[-1] == ("follows", here)
    events.clear()
    with ThreadPoolExecutor(1) as pool:
        images = pictures((40, 50), (64, 64))
        maps = pool.submit(lambda: model.launch(images).result()).result()
        there = pool.submit(threading.get_ident).result()
    # A launch does not follow the thread that launches: training may have filled its stream.
    assert events == [("entered", there), ("left", there)]
    for one, two in zip(maps, model.predict(images), strict=True):
        assert np.array_equal(one, two)
    events.clear()
    model.to("cpu")
    assert events == [("waited for", here), ("moved", "cpu"), ("follows", here)]
    events.clear()
    model.to("meta")  # a stream of high priority, made in the thread of the caller
    assert events == [("waited for", here), ("moved", "meta"), ("made", -1), ("follows", here)]


def test_moving_waits_for_a_launch_in_another_thread():
    inside, free = threading.Event(), threading.Event()

    class Waits(Constant):
        def forward(self, pixels):
            inside.set()
            assert free.wait(60)
            return super().forward(pixels)

    model = BoundaryModel(Waits(), dtype="float32")
    with ThreadPoolExecutor(2) as pool:
        launched = pool.submit(lambda: model.launch(pictures((32, 32))).result())
        assert inside.wait(60)
        moved = pool.submit(model.to, "meta")
        assert not moved.done()
        assert model.device.type == "cpu"
        free.set()
        assert moved.result().device.type == "meta"
        assert launched.result()[0].shape == (32, 32)


def test_launches_of_several_threads_are_those_of_one(packaged):
    sets = [pictures((64, 64), (50, 60), seed=seed) for seed in range(3)]
    expected = [packaged.predict(images) for images in sets]
    with ThreadPoolExecutor(3) as pool:
        launched = list(pool.map(lambda images: packaged.launch(images), sets))
    for maps, pending in zip(expected, launched, strict=True):
        for one, two in zip(maps, pending.result(), strict=True):
            assert np.array_equal(one, two)
    assert packaged.launch([]).result() == []


def test_constants_are_made_on_the_host(monkeypatch):
    def tensor(*given, make=torch.tensor, **options):
        assert "device" not in options  # a kernel would run some time, on some stream
        return make(*given, **options)

    model = BoundaryModel(Constant())
    monkeypatch.setattr(torch, "tensor", tensor)
    assert model.to("meta").device.type == "meta"


def test_weights_of_tiles_are_made_once(monkeypatch):
    from subtok_data.boundary import tiles

    made = []
    weights = tiles.axis_weights
    monkeypatch.setattr(tiles, "axis_weights", lambda *given: made.append(given) or weights(*given))
    tiles._kept_weights.cache_clear()
    model = BoundaryModel(Red(), dtype="float32", tile=64, overlap=32)
    first = model.predict(pictures((150, 200)))
    assert len(made) == 2
    assert np.array_equal(model.predict(pictures((150, 200)))[0], first[0])
    assert len(made) == 2


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_inside_a_dataloader_worker(device):
    loader = DataLoader(
        PredictsInWorker(BoundaryModel(Constant()), device),
        num_workers=1,
        multiprocessing_context="spawn",
        collate_fn=list,
    )
    (answer,) = next(iter(loader))
    if device == "cpu":
        assert answer == "(8, 8)"
    else:
        assert "DataLoader worker 0" in answer
        assert "SubobjectCollator" in answer
        assert "PendingBatch" in answer


def test_import_is_light_on_transformers():
    code = (
        "import sys; from subtok_data.boundary import BoundaryModel\n"
        "assert 'torch' in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# --- on a GPU ----------------------------------------------------------------------------------


@contextmanager
def waiting_forbidden():
    """Let every synchronisation of the host with the device raise, in all threads."""
    with warnings.catch_warnings():
        # Torch says once in a process that this mode is a prototype; warnings are errors here.
        warnings.filterwarnings("ignore", message=".*[Ss]ynchronization debug mode")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_cuda_agrees_with_a_cpu():
    images = pictures(*[(96, 128)] * 5, (64, 128), (50, 60))
    exact = BoundaryModel.from_pretrained(device="cpu", dtype="float32").predict(images)
    for dtype, most in (("float32", 1), ("auto", 3)):
        model = BoundaryModel.from_pretrained(device="cuda", dtype=dtype)
        maps = model.predict(images)
        alone = [model.predict([image])[0] for image in images]
        for boundary, cpu, single in zip(maps, exact, alone, strict=True):
            assert np.abs(boundary.astype(int) - cpu).max() <= most
            assert np.abs(boundary.astype(int) - single).max() <= most
    with pytest.raises(DeviceError, match="not pickled"):
        pickle.dumps(model)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"tile": 96, "overlap": 32}, {"scales": (1.0, 1.5)}])
@pytest.mark.parametrize("on_device", [False, True])
def test_cuda_does_not_wait(options, on_device):
    images = pictures(*[(96, 128)] * 5, (64, 128), (50, 60))
    model = BoundaryModel.from_pretrained(device="cuda", **options)
    given = [torch.from_numpy(one).cuda() for one in images] if on_device else images
    expected = model.predict(given)  # pinned memory is there from now on
    torch.cuda.synchronize()
    with waiting_forbidden():
        maps = model.predict_on_device(given)
        pending = model.launch(given)
    maps.raise_unless_finite()
    for one, two, three in zip(expected, maps, pending.result(), strict=True):
        assert np.array_equal(one, two.cpu().numpy())
        assert np.array_equal(one, three)


@pytest.mark.gpu
def test_cuda_launch_goes_before_what_the_caller_has_queued():
    images = pictures((96, 128), (64, 128))
    model = BoundaryModel.from_pretrained(device="cuda")
    expected = model.launch(images).result()
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # about a second
    busy = torch.cuda.Event()
    busy.record()
    found = model.launch(images).result()
    assert not busy.query()
    for one, two in zip(expected, found, strict=True):
        assert np.array_equal(one, two)


@pytest.mark.gpu
def test_cuda_weights_are_complete_before_the_first_launch():
    images = pictures((96, 128))
    expected = BoundaryModel.from_pretrained(device="cuda").launch(images).result()
    torch.cuda.synchronize()
    torch.cuda._sleep(1_000_000_000)
    model = BoundaryModel.from_pretrained(device="cuda")
    assert np.array_equal(model.launch(images).result()[0], expected[0])
