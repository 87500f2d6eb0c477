"""Errors from DataLoader workers: what was raised there is what is read here."""

from __future__ import annotations

import traceback
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_tokenizers import byte_tokenizer
from PIL import Image
from torch.utils.data import DataLoader

from subtok_data import (
    PatchSegmenter,
    SubobjectCollator,
    SubobjectDataset,
    SubobjectLoader,
    SubobjectTokenizer,
    TextConfig,
)
from subtok_data.batch import BatchError
from subtok_data.errors import ConfigError, SampleError, SubtokError


def tokenizer() -> SubobjectTokenizer:
    return SubobjectTokenizer(PatchSegmenter(16), size=32)


def rows(folder: Path, *, bad: int | None = None) -> list[dict[str, str]]:
    for number in range(4):
        image = np.full((32, 32, 3), 60 * number, np.uint8)
        Image.fromarray(image).save(folder / f"{number}.png")
        if number == bad:
            (folder / f"{number}.png").write_bytes(b"cut off")
    return [{"image": str(folder / f"{n}.png"), "caption": "a"} for n in range(4)]


def all_of(samples, *, plain: bool, **options) -> SubtokError:
    """The error that reading all batches by workers ends with."""
    if plain:
        collator = SubobjectCollator(tokenizer(), **options)
        loader = DataLoader(samples, batch_size=2, num_workers=1, collate_fn=collator)
    else:
        options |= {"batch_size": 2, "num_workers": 1, "executor": "inline"}
        loader = SubobjectLoader(samples, tokenizer(), **options)
    with pytest.raises(SubtokError) as info:
        list(loader)
    if not plain:
        loader.close()
    return info.value


@pytest.mark.parametrize("plain", [False, True])
def test_the_first_and_the_last_line_are_the_error(plain, tmp_path):
    error = all_of(SubobjectDataset(rows(tmp_path, bad=2)), plain=plain)
    assert isinstance(error, SampleError)
    path = str(tmp_path / "2.png")
    assert (error.index, error.path, error.stage) == (2, path, "decode")
    own = f"sample 2 ({path!r}) failed in decode: not an image in any format "
    assert str(error).startswith(own)
    assert str(error).endswith('; on_error="replace" takes another sample instead')
    lines = "".join(traceback.format_exception(error)).splitlines()
    assert f"in DataLoader worker process 0: {own}" in lines[0]
    assert lines[-1] == f"subtok_data.errors.SampleError: {error}"
    assert any("in decode_row" in line for line in lines)  # where in the worker


def test_a_missing_file_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = all_of(SubobjectDataset([{"image": "photos/a.jpg"}] * 2), plain=False)
    assert f"No such file or directory: 'photos/a.jpg', looked for in {str(tmp_path)!r}" in str(
        error
    )


def test_a_wrong_caption_column_lists_the_columns(tmp_path):
    text = TextConfig(byte_tokenizer(), caption="captions")
    error = all_of(rows(tmp_path), plain=False, text=text)
    assert str(error).count("\n") == 0
    assert "no column 'captions' for the text" in str(error)
    assert "['caption']; did you mean 'caption'?" in str(error)


def test_a_wrong_image_column_is_one_line(tmp_path):
    error = all_of(rows(tmp_path), plain=True, image_column="photo")
    assert isinstance(error, ConfigError)
    assert str(error).startswith("no image column 'photo': the row has ['caption', 'image']")
    assert "\n" not in str(error)


class Failing:
    """Rows that raise an error of many lines, or text that looks like what torch writes."""

    def __init__(self, message: str) -> None:
        self.message = message

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        try:
            return int("x")
        except ValueError as error:
            raise BatchError(self.message) from error


@pytest.mark.parametrize(
    "message",
    [
        "two\n- lines: of\n  it",
        "",
        "Caught BatchError in DataLoader worker process 0.\nOriginal something else",
    ],
)
def test_messages_of_many_lines_stay_whole(message):
    with pytest.raises(BatchError) as info:
        list(DataLoader(Failing(message), num_workers=1))
    assert str(info.value) == message
    assert "invalid literal for int()" in str(info.value.__cause__)
