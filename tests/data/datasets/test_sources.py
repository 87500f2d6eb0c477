"""What is no dataset of rows, though it looks like one: the message says what to give instead."""

from __future__ import annotations

from types import new_class
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset

from subtok_data import SubobjectDataset, SubobjectIterableDataset
from subtok_data.data import open_images
from subtok_data.errors import ConfigError

COLUMNS: dict[str, Any] = {"image": [b"1", b"2"], "caption": ["a cat", "a dog"]}


def polars_frame() -> Any:
    """Something that polars would give, which the tests do not install."""
    frame = new_class("DataFrame", exec_body=lambda body: body.update(__module__="polars.frame"))
    return frame()


@pytest.mark.parametrize("wrap", [SubobjectDataset, SubobjectIterableDataset])
@pytest.mark.parametrize(
    ("table", "remedy"),
    [
        (
            pd.DataFrame(COLUMNS),
            r"DataFrame of pandas, .*give rows, dataset\.to_dict\(\"records\"\)",
        ),
        (pa.table(COLUMNS), r"Table of pyarrow, .*datasets\.Dataset\(dataset\)"),
        (polars_frame(), r"DataFrame of polars, .*dataset\.to_dicts\(\)"),
        (COLUMNS, r"of columns give datasets\.Dataset\.from_dict\(dataset\); of splits one"),
        ({"train": Dataset.from_dict(COLUMNS)}, r"give one of them, dataset\['train'\]"),
        ({}, "give rows"),
    ],
)
def test_tables_are_refused_with_the_line_that_makes_rows(wrap, table, remedy):
    with pytest.raises(ConfigError, match=remedy):
        wrap(table)


def test_the_rows_that_are_advised_are_taken():
    images = {"image": [np.zeros((4, 4, 3), np.uint8).tobytes()] * 2, "caption": ["a", "b"]}
    for rows in (
        pd.DataFrame(images).to_dict("records"),
        Dataset.from_pandas(pd.DataFrame(images)),
        Dataset(pa.table(images)),
        Dataset.from_dict(images),
    ):
        assert len(SubobjectDataset(rows)) == 2


@pytest.mark.parametrize(
    ("name", "loader"), [("a.csv", "csv"), ("a.TSV", "csv"), ("b/rows.jsonl", "json")]
)
def test_a_file_of_rows_is_no_folder_of_images(name, loader, tmp_path):
    with pytest.raises(ConfigError, match=rf"a table: .*load_dataset\('{loader}', data_files="):
        SubobjectDataset(name)
    file = tmp_path / "captions.csv"
    file.write_text("image,caption\n")
    with pytest.raises(ConfigError, match="the folder of the images that it names"):
        open_images(file)


def test_an_archive_is_opened_by_the_function_for_it(tmp_path):
    file = tmp_path / "photos.tar"
    file.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"subtok_data\.data\.open_images\("):
        SubobjectDataset(file)
