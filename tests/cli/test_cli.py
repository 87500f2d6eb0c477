"""The command ``subtok``: what it prints, writes and returns, and how a run goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_panoptic, tiny_sam
from helpers.faulty import KillsDecoder
from helpers.tiny_efficient_sam import make_model, save_torchscript
from PIL import Image

from subtok_data import (
    ImageFiles,
    PatchSegmenter,
    SubobjectCollator,
    SubobjectDataset,
    SubobjectTokenizer,
)
from subtok_data.boundary import BoundaryModel
from subtok_data.cli import bench, main
from subtok_data.data import tokenize_dataset
from subtok_data.errors import ConfigError, SubtokError, WorkerCrashError

PATCH = ["--segmenter", "patch", "--size", "64", "--executor", "inline"]


def save_photos(folder, count, *, size=(72, 96), seed=0):
    """Smooth random pictures, each with shapes that have edges."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture = np.full((*size, 3), rng.integers(0, 256, 3), np.uint8)
        for _ in range(4):
            y, x = (int(rng.integers(0, side - 20)) for side in size)
            picture[y : y + 20, x : x + 24] = rng.integers(0, 256, 3)
        Image.fromarray(picture).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture
def photos(tmp_path):
    return save_photos(tmp_path / "photos", 6)


# --- the command itself ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [[], ["demo"], ["tokenize"], ["export"], ["cache"], ["maps"], ["bench"], ["train"], ["eval"]],
)
def test_help_has_examples(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    words = capsys.readouterr().out
    assert "examples:" in words
    assert " ".join(["subtok", *command]) in words.split("examples:")[1]


@pytest.mark.parametrize("arguments", [[], ["unknown"], ["tokenize"], ["demo", "--size", "x"]])
def test_wrong_usage_is_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: subtok" in capsys.readouterr().err


def test_help_is_fast_since_it_imports_no_torch():
    code = (
        "import sys\n"
        "from subtok_data.cli import build_parser\n"
        "build_parser().format_help()\n"
        "heavy = {'torch', 'numba', 'transformers', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_python_m_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "subtok_data", "--version"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout.startswith("subtok-data ")


# --- maps --------------------------------------------------------------------------------------


def test_maps_of_a_folder_are_those_of_the_model(photos, tmp_path, capsys):
    out = tmp_path / "maps"
    options = ["--scales", "1,1.5", "--canvas-step", "64", "--device", "cpu"]
    arguments = ["maps", str(photos), str(out), *options]
    assert main(arguments) == 0
    assert "6 maps in" in capsys.readouterr().err
    model = BoundaryModel.from_pretrained(device="cpu", scales=(1.0, 1.5), canvas_step=64)
    for number in range(6):
        image = np.asarray(Image.open(photos / f"{number:02d}.png"))
        written = np.asarray(Image.open(out / f"{number:02d}.png"))
        assert np.array_equal(written, model.predict([image])[0])
    (out / "03.png").unlink()
    before = (out / "02.png").stat().st_mtime_ns
    assert main(arguments) == 0
    assert (out / "03.png").exists()
    assert (out / "02.png").stat().st_mtime_ns == before


def test_maps_of_some_images_and_of_bad_ones(photos, tmp_path, capsys):
    wanted = tmp_path / "masks"
    wanted.mkdir()
    for stem in ("01", "04", "nowhere"):
        (wanted / f"{stem}.npz").touch()
    (photos / "04.png").write_bytes(b"no image")
    out = tmp_path / "maps"
    options = [str(out), "--only-with", str(wanted), "--device", "cpu"]
    assert main(["maps", str(photos), *options]) == 1
    assert "04.png" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["01.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scales", "1,x"], "numbers separated by commas"),
        (["--scales", "0"], "above 0"),
        (["--canvas-step", "100"], "--canvas-step 100 must be a positive multiple of 32"),
        (["--only-with", "nowhere"], "'nowhere' is not a folder"),
        (["--weights", "nowhere"], "no folder 'nowhere'"),
    ],
)
def test_maps_that_cannot_be_made(photos, tmp_path, capsys, options, message):
    assert main(["maps", str(photos), str(tmp_path / "maps"), *options]) in (1, 2)
    assert message in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["maps", str(tmp_path / "empty"), str(tmp_path / "maps")]) == 2


# --- tokenize ----------------------------------------------------------------------------------


def test_a_folder_is_tokenized_and_read_back(photos, tmp_path, capsys):
    out = tmp_path / "tokens"
    assert main(["tokenize", str(photos), "--out", str(out), *PATCH]) == 0
    words = capsys.readouterr()
    assert words.out.startswith("6 images, 24 tokens in ")  # 64 × 48 in patches of 32
    assert words.err == ""
    sample = SubobjectDataset(ImageFiles(photos), tokens=out)[5]
    assert int(sample.token_maps[0].max()) == 3


def test_stored_tokens_give_the_same_batches_without_the_model(photos, tmp_path, monkeypatch):
    out = tmp_path / "tokens"
    options = ["--size", "64", "--max-tokens", "9", "--executor", "inline", "--batch-size", "3"]
    assert main(["tokenize", str(photos), "--out", str(out), *options]) == 0
    collator = SubobjectCollator(SubobjectTokenizer(max_tokens=9, size=64), shape_size=4)
    files = ImageFiles(photos)
    live = [
        collator([SubobjectDataset(files)[i] for i in rows]) for rows in (range(3), range(3, 6))
    ]

    def no_model(*_, **__):
        raise RuntimeError("the model ran")

    monkeypatch.setattr(BoundaryModel, "predict", no_model)
    dataset = SubobjectDataset(files, tokens=out)
    for rows, wanted in zip((range(3), range(3, 6)), live, strict=True):
        batch = collator([dataset[i] for i in rows])
        assert list(batch) == list(wanted)
        for key, value in wanted.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(batch[key], value), key
            else:
                assert batch[key] == value


def test_bad_files_are_reported_with_their_reason_and_exit_code_1(photos, tmp_path, capsys):
    (photos / "00.png").write_bytes((photos / "01.png").read_bytes()[:60])
    (photos / "03.png").write_bytes(b"")
    (photos / "04.png").write_text("no image")
    out = tmp_path / "tokens"
    assert main(["tokenize", str(photos), "--out", str(out), *PATCH]) == 1
    words = capsys.readouterr()
    assert words.out.startswith("3 images, 12 tokens")
    assert "3 of 6 rows have no tokens" in words.err
    for name, reason in (("00", "truncated"), ("03", "empty"), ("04", "not an image")):
        line = next(line for line in words.err.splitlines() if f"{name}.png" in line)
        assert line.count(f"{name}.png") == 1
        assert reason in line
    # Reading them back: bad samples say why, or are replaced, and the others are there.
    dataset = SubobjectDataset(ImageFiles(photos), tokens=out, on_error="replace")
    assert [bool(dataset[i].replaced) for i in range(6)] == [True, False, False, True, True, False]


def test_json_report(photos, tmp_path, capsys):
    (photos / "02.png").write_bytes(b"")
    arguments = ["tokenize", str(photos), "--out", str(tmp_path / "t"), *PATCH, "--json"]
    assert main(arguments) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["rows"], report["images"], report["tokens"]) == (6, 5, 20)
    assert [row["index"] for row in report["failed"]] == [2]
    assert main(arguments) == 1  # nothing left to do: still not all rows have tokens
    again = json.loads(capsys.readouterr().out)
    assert (again["images"], again["rows_done_before"]) == (0, 6)
    assert again["failed"] == report["failed"]


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(
    photos, tmp_path, capsys, monkeypatch
):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    arguments = ["--size", "64", "--executor", "inline", "--batch-size", "2", "--shard-rows", "2"]
    assert main(["tokenize", str(photos), "--out", str(whole), *arguments]) == 0
    capsys.readouterr()

    read = ImageFiles.__getitem__

    def stop_at_4(self, index):
        if index == 4:
            raise KeyboardInterrupt
        return read(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(ImageFiles, "__getitem__", stop_at_4)
        # One batch is read ahead of what is written, so that at least the first shard is there.
        patch.setattr("subtok_data.data.tokenize.shards._AHEAD", 1)
        assert main(["tokenize", str(photos), "--out", str(broken), *arguments]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    shards = {file.name for file in broken.glob("data/*/*.parquet")}
    assert "tokens-000000.parquet" in shards
    assert "tokens-000002.parquet" not in shards
    assert main(["tokenize", str(photos), "--out", str(broken), *arguments]) == 0
    assert "rows were there already" in capsys.readouterr().out
    assert files_of(broken) == files_of(whole)


def files_of(folder):
    """Content of every file of a store but how it was made, which has times."""
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name != "provenance.jsonl"
    }


def test_parts_are_made_apart_and_finished_together(photos, tmp_path, capsys):
    (photos / "03.png").write_bytes(b"")
    common = ["--shard-rows", "2", *PATCH]
    whole, out = tmp_path / "whole", tmp_path / "parts"
    assert main(["tokenize", str(photos), "--out", str(whole), *common]) == 1
    part = ["tokenize", str(photos), "--out", str(out), *common, "--part"]
    assert main([*part, "1/2"]) == 1
    capsys.readouterr()
    assert main(["tokenize", str(out), "--status"]) == 1
    words = capsys.readouterr().out
    assert "1 of 3 shards (6 rows) are whole" in words
    assert "not finished" in words
    assert "missing: 0, 2" in words
    assert main(["tokenize", str(out), "--finish"]) == 2
    assert "2 of 3 shards are missing" in capsys.readouterr().err
    assert main([*part, "0/2"]) == 0
    assert "when all parts are done: subtok tokenize" in capsys.readouterr().out
    assert main(["tokenize", str(out), "--finish", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {
        "rows": 6,
        "num_failed": 1,
        "folder": str(out),
    }
    assert files_of(out) == files_of(whole)
    assert main(["tokenize", str(out), "--status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["finished"] is True


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--part", "3"], "--part 3: give I/N, such as 0/64"),
        (["--part", "2/2"], "of 2 parts the last is 1"),
        (["--part", "a/b"], "give I/N"),
        (["--shard-rows", "0"], "--shard-rows 0"),
        (["--gpus", "0.5"], "--gpus is an option of --engine ray"),
        (["--engine", "ray", "--actors", "4"], "--actors 4: give LOW:HIGH"),
        (["--engine", "ray", "--actors", "2:1"], "--actors 2:1"),
        (["--verify", "0"], "--verify 0: give the number of rows"),
        (["--verify", "5"], "no finished tokens"),
        (["--status"], "no finished tokens"),
        (["--finish"], "no finished tokens"),
    ],
)
def test_impossible_parts_are_one_clear_line(photos, tmp_path, capsys, options, words):
    assert main(["tokenize", str(photos), "--out", str(tmp_path / "t"), *PATCH, *options]) == 2
    message = capsys.readouterr().err
    assert message.startswith("subtok: ")
    assert words in message
    assert message.count("\n") == 1
    assert not (tmp_path / "t").exists()
    assert main(["tokenize", str(photos), *PATCH]) == 2
    assert "--out DIR" in capsys.readouterr().err


def test_damage_is_seen_by_status_and_mended_by_the_same_command(photos, tmp_path, capsys):
    out = tmp_path / "t"
    command = ["tokenize", str(photos), "--out", str(out), "--shard-rows", "2", *PATCH]
    assert main(command) == 0
    before = files_of(out)
    shard = out / "data/part=000/tokens-000001.parquet"
    shard.write_bytes(shard.read_bytes()[:-30])
    capsys.readouterr()
    assert main(["tokenize", str(out), "--status"]) == 1
    words = capsys.readouterr()
    assert "2 of 3 shards" in words.out
    assert "tokens-000001.parquet is damaged" in words.err
    assert main(command) == 0
    assert files_of(out) == before


def test_verify_compares_and_changed_photos_are_named(photos, tmp_path, capsys):
    out = tmp_path / "t"
    command = ["tokenize", str(photos), "--out", str(out), *PATCH]
    assert main(command) == 0
    capsys.readouterr()
    assert main([*command, "--verify", "4"]) == 0
    assert capsys.readouterr().out == "4 of 4 rows come out as they are stored\n"
    assert main(["tokenize", str(out), "--verify", "4"]) == 0
    words = capsys.readouterr().out
    assert "4 rows were decoded: 0 problems\nimages were not compared" in words
    assert main(["tokenize", str(out), "--verify", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["problems"], found["images_compared"]) == (4, [], False)
    (photos / "02.png").write_bytes((photos / "01.png").read_bytes())
    assert main([*command, "--verify", "6", "--json"]) == 1
    (row,) = json.loads(capsys.readouterr().out)["differing"]
    assert (row["index"], row["what"]) == (2, "the image is another one")
    assert main(command) == 2
    assert "1 images are not those" in capsys.readouterr().err
    assert main([*command, "--redo-changed"]) == 0
    assert main([*command, "--verify", "6"]) == 0


def test_precision_belongs_to_the_tokens(photos, tmp_path, capsys):
    out = tmp_path / "t"
    command = ["tokenize", str(photos), "--out", str(out), "--size", "64", "--device", "cpu"]
    command += ["--executor", "inline", "--num-tokens", "4"]
    assert main([*command, "--dtype", "float32"]) == 0
    capsys.readouterr()
    assert main([*command, "--dtype", "bfloat16"]) == 2
    assert "made on cpu in float32, asked for cpu in bfloat16" in capsys.readouterr().err
    assert main([*command, "--dtype", "bfloat16", "--mixed"]) == 0
    assert main([*command, "--segmenter", "patch", "--dtype", "float32"]) == 2
    assert "--dtype is an option of --segmenter epoc" in capsys.readouterr().err


def test_another_configuration_is_refused(photos, tmp_path, capsys):
    arguments = ["tokenize", str(photos), "--out", str(tmp_path / "t"), *PATCH]
    assert main(arguments) == 0
    capsys.readouterr()
    assert main([*arguments, "--max-tokens", "2"]) == 2
    words = capsys.readouterr().err
    assert words.startswith("subtok: ")
    assert "holds tokens with --max-tokens None, asked for --max-tokens 2" in words
    assert words.count("\n") == 1
    save_photos(photos / "more", 1)
    assert main(arguments) == 2
    words = capsys.readouterr().err
    assert "holds tokens of 6 rows, the dataset has 7: it has grown since" in words
    assert "but all its images have tokens" in words  # they are the same photos
    assert words.count("\n") == 1


def test_sources_are_files_and_tokens_lie_where_a_uri_says(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SUBTOK_CACHE", str(tmp_path / "cache"))
    files = sorted(str(path) for path in photos.rglob("*") if path.is_file())
    out = "memory://cli/tokens"
    assert main(["tokenize", *files[:2], "--out", out, *PATCH]) == 0
    assert main(["tokenize", out, "--status"]) == 0
    assert f"1 of 1 shards (2 rows) are whole in {out}, finished" in capsys.readouterr().out
    assert main(["tokenize", f"{photos}/*.png", "--out", str(tmp_path / "t"), *PATCH]) == 0
    capsys.readouterr()
    for url in ("https://example.org/photos", "https://example.org/a.tar"):
        assert main(["tokenize", url, "--out", str(tmp_path / "none"), *PATCH]) == 2
        assert "is a web address: download it" in capsys.readouterr().err
    assert main(["tokenize", str(photos), "--out", "https://example.org/t", *PATCH]) == 2
    assert "address of a web page" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_tokens_of_another_tokenizer_are_refused_by_the_collator(photos, tmp_path):
    main(["tokenize", str(photos), "--out", str(tmp_path / "t"), *PATCH])
    dataset = SubobjectDataset(ImageFiles(photos), tokens=tmp_path / "t")
    other = SubobjectTokenizer(PatchSegmenter(16), size=64)
    with pytest.raises(ConfigError, match="tokenize again"):
        SubobjectCollator(other)([dataset[0]])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--threshold", "0.1", "--num-tokens", "5"], "both control how fine"),
        (
            ["--strength", "0.3", "--num-tokens", "5"],
            "--num-tokens 5 and --strength 0.3: both control",
        ),
        (["--strength", "0.3", "--threshold", "0.2"], "--threshold 0.2 and --strength 0.3: both"),
        (["--strength", "nan"], "--strength nan: expected a number from 0 to 1"),
        (["--segmenter", "patch", "--strength", "0.3"], "gives no boundary map"),
        (["--threshold", "1.5"], "1.5"),
        (["--max-tokens", "0"], "--max-tokens 0"),
        (["--size", "8"], "--size 8"),
        (["--segmenter", "patch", "--threshold", "0.2"], "--threshold is an option of --segmenter"),
        (["--segmenter", "sam", "--weights", "x"], "--weights is an option of --segmenter epoc"),
        (["--segmenter-model", "x"], "option of --segmenter sam, sam-edges, efficient-sam, panop"),
        (["--segmenter", "sam"], "--segmenter sam needs --segmenter-model PATH: a folder or hub"),
        (["--segmenter", "sam-edges"], "--segmenter sam-edges needs --segmenter-model PATH"),
        (["--segmenter", "efficient-sam"], "needs --segmenter-model PATH: EfficientSAM's Torch"),
        (["--segmenter", "panoptic"], "needs --segmenter-model PATH: a folder or hub id of Mask2"),
        (["--segmenter", "efficient-sam", "--segmenter-model", "no.pt"], "'no.pt' does not exist"),
        (
            ["--segmenter", "sam", "--segmenter-model", "x", "--points-per-side", "0"],
            "--points-per-side 0",
        ),
        (["--weights", "no-such-weights"], "no-such-weights"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--split", "train"], "folder of images"),
        (["--segment-workers", "0"], "--segment-workers 0"),
    ],
)
def test_impossible_options_are_one_clear_line(photos, tmp_path, capsys, options, words):
    code = main(["tokenize", str(photos), "--out", str(tmp_path / "t"), *options])
    message = capsys.readouterr().err
    assert code in (1, 2)
    assert message.startswith("subtok: ")
    assert words in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("segmenter", "options"),
    [
        ("sam", ["--points-per-side", "2"]),
        ("sam-edges", ["--points-per-side", "2", "--threshold", "0.3"]),
        ("efficient-sam", ["--points-per-side", "3"]),
        ("panoptic", []),
    ],
)
def test_models_cut_photos_from_the_command_line(photos, tmp_path, capsys, segmenter, options):
    model = tmp_path / "model"
    model.mkdir()
    if segmenter == "panoptic":
        tiny_panoptic.save_model("mask2former", model)
    elif segmenter == "efficient-sam":
        save_torchscript(make_model(), model / "efficient_sam_vitt_torchscript.pt")
    else:
        tiny_sam.save_model("sam", model)
    out = tmp_path / "tokens"
    arguments = ["--segmenter", segmenter, "--segmenter-model", str(model), *options]
    common = [*arguments, "--size", "64", "--max-tokens", "5"]
    assert main(["tokenize", str(photos), "--out", str(out), *common, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["images"], report["failed"]) == (6, [])
    assert 6 <= report["tokens"] <= 30
    image, pictures = photos / "00.png", tmp_path / "pictures"
    assert main(["demo", str(image), "--out", str(pictures), *common, "--json"]) == 0
    (timing,) = json.loads(capsys.readouterr().out)["images"]
    assert timing["coverage"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--num-tokens 0", "--num-tokens 0: expected a whole number of at least 1"),
        ("--threshold 0.1 --strength 0.3", "--threshold 0.1 and --strength 0.3: both control"),
        ("--num-tokens 5 --max-tokens 4", "--num-tokens 5 is above --max-tokens 4: leave out"),
        ("--size 8", "--size 8 is smaller than one step of the boundary model; give at least 32"),
        (
            "--segmenter patch --strength 0.3",
            "--strength 0.3: GridPartitioner gives no boundary map to measure borders on; give "
            "--num-tokens or --max-tokens",
        ),
        ("--device gpu", "--device 'gpu': torch knows no such device"),
        ("--workers -1", "--workers -1: give"),
        ("--image-column", "--image-column: expected one argument"),
    ],
)
def test_messages_name_options_as_the_command_does(photos, tmp_path, capsys, options, message):
    try:
        code = main(["tokenize", str(photos), "--out", str(tmp_path / "t"), *options.split()])
    except SystemExit as end:  # of argparse
        code = end.code
    said = capsys.readouterr().err
    assert code == 2
    assert message in said
    assert "or None" not in said
    assert "_" not in said.replace(str(tmp_path), "")


def test_demo_takes_photos_as_they_are_named(photos, tmp_path, capsys):
    files = [str(photos / "00.png"), str(photos / "03.png")]
    options = ["--out", str(tmp_path / "pictures"), *PATCH[:4], "--json"]
    assert main(["demo", *files, *options]) == 0
    images = json.loads(capsys.readouterr().out)["images"]
    assert [one["image"] for one in images] == ["00.png", "03.png"]
    assert main(["demo", str(photos), *options]) == 0
    assert len(json.loads(capsys.readouterr().out)["images"]) == 6


def test_an_output_folder_that_is_a_file_is_one_clear_line(photos, capsys):
    taken = photos / "00.png"
    assert main(["tokenize", str(photos), "--out", str(taken), *PATCH]) == 1
    assert main(["demo", str(taken), "--out", str(taken), "--segmenter", "patch"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("subtok: ") and "00.png" in line for line in lines)


def test_a_dataset_on_disk_with_splits(photos, tmp_path, capsys):
    datasets = pytest.importorskip("datasets")
    files = sorted(str(file) for file in photos.iterdir())
    data = datasets.Dataset.from_dict({"image": files, "label": list(range(6))})
    data = data.cast_column("image", datasets.Image())
    folder, out = tmp_path / "data", tmp_path / "tokens"
    datasets.DatasetDict(train=data, test=data.select([0, 1])).save_to_disk(str(folder))
    arguments = ["tokenize", str(folder), "--out", str(out), *PATCH]
    assert main(arguments) == 2
    assert "['test', 'train']" in capsys.readouterr().err
    assert main([*arguments, "--split", "test"]) == 0
    assert main(["tokenize", str(folder / "train"), "--out", str(tmp_path / "2"), *PATCH]) == 0
    rows = SubobjectDataset(datasets.load_from_disk(str(folder))["test"], tokens=out)
    assert [row.columns["label"] for row in (rows[0], rows[1])] == [0, 1]
    missing = ["tokenize", str(folder / "train"), "--out", str(tmp_path / "3"), *PATCH]
    assert main([*missing, "--image-column", "photo"]) == 2
    assert "['image', 'label']" in capsys.readouterr().err


def test_workers_and_executors_store_the_same_bytes(photos, tmp_path):
    tokenizer = SubobjectTokenizer(PatchSegmenter(16), size=64, max_tokens=7)
    found = []
    for number, options in enumerate(
        [
            {"executor": "inline"},
            {"executor": "thread", "segment_workers": 2},
            {"executor": "process", "segment_workers": 2, "num_workers": 2},
        ]
    ):
        out = tmp_path / str(number)
        done = []
        report = tokenize_dataset(
            ImageFiles(photos),
            tokenizer,
            out,
            batch_size=2,
            on_progress=lambda rows, _, done=done: done.append(rows),
            **options,
        )
        assert report.images == sum(done) == 6
        again = []
        tokenize_dataset(
            ImageFiles(photos), tokenizer, out, on_progress=lambda *n, again=again: again.append(n)
        )
        assert again == [(6, 0)]
        found.append(files_of(out))
    assert found[0] == found[1] == found[2]


def test_a_decoding_worker_that_dies_is_an_error_that_says_how_to_go_on(tmp_path):
    tokenizer = SubobjectTokenizer(PatchSegmenter(32), size=64)
    with pytest.raises(WorkerCrashError, match="run again to go on"):
        tokenize_dataset(
            KillsDecoder(6),
            tokenizer,
            tmp_path / "t",
            num_workers=1,
            executor="inline",
            batch_size=1,
        )


class _Picky(PatchSegmenter):
    """Cannot infer images with a white corner."""

    def infer(self, images, sizes, prompts=None):
        if any(image[0, 0].min() == 255 for image in images):
            raise ValueError("white corner")
        return super().infer(images, sizes, prompts)


def test_an_image_that_cannot_be_inferred_does_not_stop_the_others(tmp_path):
    images = [np.full((64, 64, 3), level, np.uint8) for level in (0, 255, 9)]
    tokenizer = SubobjectTokenizer(_Picky(), size=64)
    report = tokenize_dataset(images, tokenizer, tmp_path / "a", executor="inline")
    assert [(row.index, row.reason) for row in report.failed] == [
        (1, "sample 1 failed in infer: ValueError: white corner")
    ]
    with pytest.raises(SubtokError, match="every image of a batch: white corner"):
        tokenize_dataset(images[1:2] * 2, tokenizer, tmp_path / "b", executor="inline")


def test_rows_with_several_images(tmp_path):
    image = np.zeros((64, 64, 3), np.uint8)
    rows = [{"image": [image, image]}, {"image": [image]}, {"image": [image, b"bad"]}]
    tokenizer = SubobjectTokenizer(PatchSegmenter(32), size=64)
    report = tokenize_dataset(rows, tokenizer, tmp_path / "t", executor="inline")
    assert (report.images, report.tokens) == (3, 12)
    dataset = SubobjectDataset(rows, tokens=tmp_path / "t")
    assert [len(dataset[i].token_maps) for i in (0, 1)] == [2, 1]
    assert dataset.tokens.lengths().tolist() == [8, 4, 0]


# --- demo and bench ----------------------------------------------------------------------------


def test_demo_draws_bundled_photos_and_prints_a_table(tmp_path, capsys):
    out = tmp_path / "pictures"
    assert main(["demo", "--out", str(out), "--size", "64", "--strengths", "0.4", "--counts"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("image")
    assert "segment ms" in lines[0]
    assert [line.split()[0] for line in lines[2:6]] == ["astronaut", "chelsea", "coffee", "rocket"]
    assert all("100.0%" in line for line in lines[2:6])
    assert len(list(out.glob("*.png"))) == 8


def test_demo_of_a_folder_reports_bad_images(photos, tmp_path, capsys):
    (photos / "05.png").write_bytes(b"")
    out = tmp_path / "pictures"
    arguments = ["demo", str(photos), "--out", str(out), "--segmenter", "patch"]
    assert main([*arguments, "--size", "64", "--format", "jpg", "--json"]) == 1
    words = capsys.readouterr()
    report = json.loads(words.out)
    assert [image["tokens"] for image in report["images"]] == [4] * 5
    assert [failed["image"] for failed in report["failed"]] == ["05.png"]
    assert "05.png" in words.err
    assert sorted(os.listdir(out)) == [f"{number:02d}.jpg" for number in range(5)]


def test_demo_of_a_single_missing_image(tmp_path, capsys):
    assert main(["demo", str(tmp_path / "no.jpg"), "--out", str(tmp_path)]) == 2
    assert "no.jpg" in capsys.readouterr().err


MEASURE = """
import argparse
from figures import Table, add_json_option, write_json
parser = argparse.ArgumentParser()
add_json_option(parser)
args, _ = parser.parse_known_args()
write_json(args.json, [Table("Growth", ["", "ms"], [["small", 0.1234], ["large", 1234.5]])])
"""


def test_bench_all_writes_tables_into_a_page(tmp_path):
    folder, page, out = tmp_path / "benchmarks", tmp_path / "page.md", tmp_path / "out"
    folder.mkdir()
    for name in ("figures.py", "run_all.py"):
        shutil.copy(Path(__file__).parents[2] / "benchmarks" / name, folder)
    (folder / "bench_startup.py").write_text(MEASURE)
    (folder / "bench_memory.py").write_text("raise SystemExit('no memory')")
    page.write_text(
        "<!-- figures: startup -->\nold\n<!-- end -->\n<!-- figures: gpu -->\nkept\n<!-- end -->"
    )
    rest = ["--json", str(out), "--markdown", str(page), "--only", "memory", "startup"]
    # One that fails is told by the exit code, and the other runs all the same.
    assert bench.run(bench.argparse.Namespace(name="all", rest=rest), folder) == 1
    record = json.loads((out / "startup.json").read_text())
    assert record["machine"]["cores"] >= 1
    assert record["command"] == "python benchmarks/bench_startup.py"
    text = page.read_text()
    assert "| small | 0.123 |\n| large | 1,234 |" in text
    assert "old" not in text
    assert "kept" in text
    again = ["--json", str(out), "--markdown", str(page), "--only"]
    assert bench.run(bench.argparse.Namespace(name="all", rest=again), folder) == 0
    assert page.read_text() == text


def test_bench_runs_a_script_of_the_checkout(tmp_path, capsys):
    (tmp_path / "bench_nothing.py").write_text("import sys; sys.exit(len(sys.argv))")
    args = bench.argparse.Namespace(name="nothing", rest=["--a", "b"])
    assert bench.run(args, tmp_path) == 3
    args.name = "other"
    with pytest.raises(ConfigError, match="there are nothing"):
        bench.run(args, tmp_path)
    with pytest.raises(ConfigError, match="source checkout"):
        bench.run(args, tmp_path / "absent")
