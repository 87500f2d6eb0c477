"""Runs: they learn, they go on exactly, and what they leave behind loads."""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from accelerate.tracking import GeneralTracker
from PIL import Image
from safetensors.torch import load_file

from subtok_data.boundary import BoundaryModel, LiteBoundaryNet
from subtok_data.boundary.lite import LiteConfig
from subtok_data.cli.train import add_train_parser, run_train
from subtok_data.errors import ConfigError, SubtokError, WeightsError
from subtok_data.training import Trainer, preset
from subtok_data.training.checkpoint import read_checkpoint
from subtok_data.training.networks import build_network
from subtok_data.training.readers import LabelMapSource
from subtok_data.training.trainer import CHECKPOINT, train

TINY: dict[str, Any] = {
    "steps": 4,
    "batch_size": 2,
    "crop": 64,
    "checkpoint_every": 2,
    "validate_every": 2,
    "log_every": 1,
    "warmup": 1,
    "min_side": 64,
    "max_side": 128,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> LabelMapSource:
    folder = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for number in range(5):
        labels = np.kron(rng.integers(0, 9, (3, 4)), np.ones((24, 24))).astype(np.uint8)
        colours = rng.integers(0, 255, (9, 3)).astype(np.uint8)
        Image.fromarray(colours[labels]).save(folder / "images" / f"{number}.png")
        Image.fromarray(labels).save(folder / "labels" / f"{number}.png")
    return LabelMapSource(folder / "images", folder / "labels")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Crops this small gain nothing from threads, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def read_log(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "log.csv").read_text().splitlines()))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    "changes",
    [{}, {"accumulate": 2, "mixed_precision": "bf16"},
     {"architecture": "segformer", "label_stride": 4, "ema": 0.0}],
)  # fmt: skip
def test_an_interrupted_run_ends_in_the_same_weights(
    source: LabelMapSource, tmp_path: Path, changes: dict[str, Any]
):
    config = preset("default", **{**TINY, **changes})
    whole = train(config, [source], tmp_path / "whole", validation=[source], cpu=True)

    first = Trainer(config, [source], tmp_path / "parts", validation=[source], cpu=True)
    assert first.run(lambda step, loss: first.stop() if step == 3 else None) is None
    assert not (tmp_path / "parts" / "final").exists()
    second = Trainer(config, [source], tmp_path / "parts", validation=[source], cpu=True)
    assert second.step == 3
    parts = second.run()
    assert parts is not None

    expected, got = weights(whole), weights(parts)
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    states = [read_checkpoint(tmp_path / name / CHECKPOINT) for name in ("whole", "parts")]
    for key, value in states[0].network.items():
        assert torch.equal(value, states[1].network[key])
    for number, state in states[0].optimiser.items():
        for key, value in state.items():
            assert torch.equal(value, states[1].optimiser[number][key])
    rows = [read_log(tmp_path / name) for name in ("whole", "parts")]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]
    assert rows[0][-1]["validation_loss"]

    model = BoundaryModel.from_pretrained(parts, device="cpu")
    assert model.predict([np.zeros((50, 70, 3), np.uint8)])[0].shape == (50, 70)
    assert {one.dtype for one in got.values() if one.is_floating_point()} == {torch.float16}
    previews = sorted((tmp_path / "whole" / "validation").iterdir())
    assert [one.name for one in previews] == ["step_000002.png", "step_000004.png"]


def test_a_run_stops_early_with_the_weights_of_that_step(source: LabelMapSource, tmp_path: Path):
    config = preset("default", **TINY)
    halfway = replace(config, stop_after=2)
    whole = weights(train(config, [source], tmp_path / "whole", cpu=True))
    early = weights(train(halfway, [source], tmp_path / "early", cpu=True))
    assert any(not torch.equal(whole[key], early[key]) for key in whole)
    again = weights(train(halfway, [source], tmp_path / "early", cpu=True))
    assert all(torch.equal(early[key], again[key]) for key in early)

    later = weights(train(config, [source], tmp_path / "early", cpu=True))  # the same curve
    assert all(torch.equal(whole[key], later[key]) for key in whole)
    with pytest.raises(ConfigError, match="has got to step 4 and cannot stop after 2"):
        train(halfway, [source], tmp_path / "early", cpu=True)
    with pytest.raises(ConfigError, match="stop_after is 5; it must be from 1 to steps=4"):
        replace(config, stop_after=5)


class Seen(GeneralTracker):
    name = "seen"
    requires_logging_directory = False
    tracker = None

    def __init__(self) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {}
        self.logged: list[tuple[int | None, dict[str, Any]]] = []
        self.ended = False

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.logged.append((step, dict(values)))

    def finish(self) -> None:
        self.ended = True


def test_trackers_get_what_the_file_gets(source: LabelMapSource, tmp_path: Path):
    seen = Seen()
    train(
        preset("default", **TINY),
        [source],
        tmp_path,
        validation=[source],
        cpu=True,
        trackers=[seen],
    )
    assert seen.settings["batch_size"] == 2
    assert seen.settings["augment.crop"] == 64
    assert seen.ended
    rows = read_log(tmp_path)
    assert [step for step, _ in seen.logged] == [int(row["step"]) for row in rows]
    for (_, values), row in zip(seen.logged, rows, strict=True):
        given = {key: float(value) for key, value in row.items() if value and key != "step"}
        assert values == pytest.approx(given, rel=1e-4)


@pytest.mark.parametrize(
    ("tracker", "message"),
    [("tensorbord", "accelerate knows .*tensorboard"), ("dvclive", "'dvclive' is missing")],
)
def test_trackers_that_are_not_there(
    source: LabelMapSource, tmp_path: Path, tracker: str, message: str
):
    with pytest.raises(ConfigError, match=message):
        Trainer(preset("default", **TINY), [source], tmp_path / "run", cpu=True, trackers=[tracker])
    assert not (tmp_path / "run").exists()


def test_a_run_that_crashed_goes_on_from_its_checkpoint(source: LabelMapSource, tmp_path: Path):
    config = preset("default", **TINY)

    def crash(step: int, loss: float) -> None:
        if step == 3:
            raise RuntimeError("power cut")

    trainer = Trainer(config, [source], tmp_path, cpu=True)
    with pytest.raises(RuntimeError, match="power cut"):
        trainer.run(crash)
    again = Trainer(config, [source], tmp_path, cpu=True)
    assert again.step == 2
    folder = again.run()
    assert [row["step"] for row in read_log(tmp_path)] == ["1", "2", "3", "4"]
    whole = train(config, [source], tmp_path / "whole", cpu=True)
    assert folder is not None
    assert all(torch.equal(v, weights(whole)[k]) for k, v in weights(folder).items())


def test_another_run_is_not_continued(source: LabelMapSource, tmp_path: Path):
    train(preset("default", **TINY), [source], tmp_path, cpu=True)
    with pytest.raises(ConfigError, match="learning_rate: 0.001, now 0.002"):
        Trainer(preset("default", **TINY, learning_rate=0.002), [source], tmp_path, cpu=True)
    # What cannot change the weights may change.
    Trainer(preset("default", **{**TINY, "log_every": 3}), [source], tmp_path, cpu=True)
    (tmp_path / CHECKPOINT).write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="not a training checkpoint"):
        Trainer(preset("default", **TINY), [source], tmp_path, cpu=True)


@pytest.mark.slow
def test_two_processes_learn_from_the_same_crops(source: LabelMapSource, tmp_path: Path):
    images = Path(source.name(0)).parent
    data = f"labels:{images},{images.parent / 'labels'}"
    common = ["--data", data, "--steps", "10", "--crop", "64", "--cpu"]
    module = ["-m", "subtok_data", "train"]
    alone = [sys.executable, *module, str(tmp_path / "one"), "--batch-size", "4", *common]
    both = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *module,
            str(tmp_path / "two"), "--batch-size", "2", *common]  # fmt: skip
    for command in (alone, both):
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=200)
    losses = [float(read_log(tmp_path / name)[-1]["loss"]) for name in ("one", "two")]
    # Batch statistics are each process's own, everything else is the same.
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


@pytest.mark.slow
def test_the_loss_falls(source: LabelMapSource, tmp_path: Path):
    losses: list[float] = []
    config = preset("default", **{**TINY, "steps": 150, "warmup": 5})
    Trainer(config, [source], tmp_path, cpu=True).run(lambda step, loss: losses.append(loss))
    assert np.mean(losses[-20:]) < 0.75 * np.mean(losses[:5])


def test_a_loss_that_is_not_finite_stops_the_run(source: LabelMapSource, tmp_path: Path):
    trainer = Trainer(preset("default", **TINY), [source], tmp_path, cpu=True)
    with torch.no_grad():
        next(trainer._learner.module.parameters()).fill_(float("nan"))
    with pytest.raises(SubtokError, match="loss is nan at step 1"):
        trainer.run()


# Networks.


def classification_weights(net: LiteBoundaryNet) -> dict[str, torch.Tensor]:
    """Entries under foreign names, in layer order, with a head behind them."""
    own = {k: v for k, v in net.state_dict().items() if k.startswith(("stem", "stages"))}
    return {f"foreign.{n}.{k.rpartition('.')[2]}": v for n, (k, v) in enumerate(own.items())} | {
        "head.weight": torch.zeros(1000, 1280)
    }


def test_an_encoder_is_loaded_by_order(tmp_path: Path):
    torch.manual_seed(1)
    given = LiteBoundaryNet()
    path = tmp_path / "weights.pth"
    torch.save(classification_weights(given), path)
    loaded = build_network("lite", path).module
    for name, value in given.state_dict().items():
        if name.startswith(("stem", "stages")) and not name.endswith("tracked"):
            assert torch.equal(loaded.state_dict()[name], value)


def test_encoders_that_do_not_fit_are_refused(tmp_path: Path):
    net = LiteBoundaryNet()
    with pytest.raises(WeightsError, match="only 1"):
        net.load_imagenet({"a": torch.zeros(1)})
    wrong = classification_weights(net)
    wrong[next(iter(wrong))] = torch.zeros(3)
    with pytest.raises(WeightsError, match="does not fit"):
        net.load_imagenet(wrong)
    (tmp_path / "a.pth").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="plain weights"):
        build_network("lite", tmp_path / "a.pth")
    with pytest.raises(ConfigError, match="lite, segformer"):
        build_network("resnet")


def test_frozen_stages_keep_their_weights(source: LabelMapSource, tmp_path: Path):
    start = train(preset("default", **TINY), [source], tmp_path / "first", cpu=True)
    config = preset("default", **TINY, frozen_stages=2, seed=1)
    end = train(config, [source], tmp_path / "second", init=start, cpu=True)
    before, after = weights(start), weights(end)
    kept = ("stem.", "stages.0.", "stages.1.")
    for name in before:
        if name.endswith((".weight", ".bias")):
            assert torch.equal(before[name], after[name]) == name.startswith(kept)


def test_a_run_without_change_gives_back_its_start(source: LabelMapSource, tmp_path: Path):
    """The shift of saved logits is taken off on the way in, and added once on the way out."""
    start = train(preset("default", **TINY), [source], tmp_path / "first", cpu=True)
    config = preset("default", **{**TINY, "steps": 1}, frozen_stages=7, learning_rate=1e-12)
    end = train(config, [source], tmp_path / "second", init=start, cpu=True)
    images = [np.full((64, 64, 3), 90, np.uint8)]
    maps = [
        BoundaryModel.from_pretrained(folder, device="cpu", dtype="float32").predict(images)[0]
        for folder in (start, end)
    ]
    assert np.abs(maps[0].astype(int) - maps[1]).max() <= 2


@pytest.mark.parametrize("changes", [{"frozen_stages": 8}, {"frozen_stages": -1}])
def test_stages_that_are_not_there_cannot_be_frozen(changes: dict[str, int]):
    with pytest.raises(ConfigError, match=r"frozen_stages is .*0 to 7"):
        preset("default", **changes)
    with pytest.raises(ConfigError, match="0 for segformer"):
        preset("epoc", frozen_stages=1)


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (160, 32)])
def test_logits_come_at_half_the_side(size: tuple[int, int]):
    net = LiteBoundaryNet(LiteConfig(decoder_channels=16)).eval()
    with torch.inference_mode():
        assert net(torch.zeros(2, 3, *size)).shape == (2, 1, size[0] // 2, size[1] // 2)


def test_padding_follows_tensorflow():
    # A stride-2 convolution on even sides pads right and below only: shifting by two shifts by one.
    net = LiteBoundaryNet().eval()
    x = torch.rand(1, 3, 96, 96)
    with torch.inference_mode():
        a = net.stem(x)[..., 1:-2, 1:-2]
        b = net.stem(torch.roll(x, (2, 2), (2, 3)))[..., 2:-1, 2:-1]
    torch.testing.assert_close(a, b)


def test_configuration_round_trip():
    config = LiteConfig(decoder_channels=24)
    assert LiteConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ConfigError, match="decoder_channels is 2"):
        LiteConfig(decoder_channels=2)


# Command line.


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_train_parser(parser.add_subparsers())
    return parser.parse_args(["train", *arguments])


def test_the_command_trains_and_reports(
    source: LabelMapSource, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    images = Path(source.name(0)).parent
    bad = tmp_path / "bad"
    bad.mkdir()
    for one in images.iterdir():
        Image.open(one).save(bad / one.name)
    Image.fromarray(np.zeros((3, 3, 3), np.uint8)).save(bad / "0.png")
    options = parse(
        str(tmp_path / "run"), "--data", f"labels:{bad},{images.parent / 'labels'}",
        "--steps", "1", "--batch-size", "2", "--crop", "64", "--cpu",
    )  # fmt: skip
    assert run_train(options) == 0
    told = capsys.readouterr().err
    assert "left out: " in told
    assert "0.png" in told
    assert (tmp_path / "run" / "final" / "model.safetensors").exists()
    assert run_train(options) == 0
    assert "going on after step 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(
            "fork", marks=pytest.mark.skipif(sys.platform != "linux", reason="no safe fork")
        ),
        pytest.param("forkserver", marks=pytest.mark.slow),
    ],
)
def test_workers_of_a_killed_run_end(source: LabelMapSource, tmp_path: Path, method: str):
    """Accelerate makes a loader of its own, which keeps what starts the workers."""
    script = f"""
import sys
from subtok_data import cli
from subtok_data.training import trainer
if __name__ == "__main__":
    trainer.worker_start_method = lambda: {method!r}
    sys.exit(cli.main(sys.argv[1:]))
"""
    (tmp_path / "train.py").write_text(script)
    images = Path(source.name(0)).parent
    process = subprocess.Popen(
        [
            sys.executable, str(tmp_path / "train.py"), "train", str(tmp_path / "run"),
            "--data", f"labels:{images},{images.parent / 'labels'}", "--steps", "100000",
            "--batch-size", "2", "--crop", "64", "--workers", "2", "--checkpoint-every", "1",
            "--cpu",
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    while not (tmp_path / "run" / CHECKPOINT).exists():
        assert process.poll() is None
        time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 2
    process.kill()
    process.wait()
    left = psutil.wait_procs(family, timeout=5)[1]
    for one in left:
        one.kill()
    assert not left


def test_the_command_refuses_what_is_missing(tmp_path: Path):
    with pytest.raises(ConfigError, match="does not exist"):
        run_train(parse(str(tmp_path), "--data", "labels:a,b", "--init", str(tmp_path / "none")))
    with pytest.raises(SystemExit, match="2"):
        parse(str(tmp_path))
