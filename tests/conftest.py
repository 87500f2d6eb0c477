from __future__ import annotations

import os
from pathlib import Path

import pytest


def find_data() -> Path | None:
    """Folder of the real images: $SUBTOK_TEST_DATA, or shared/data beside the checkout."""
    named = os.environ.get("SUBTOK_TEST_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    return folder if (folder / "photos").is_dir() else None


@pytest.fixture(scope="session")
def data_dir() -> Path:
    folder = find_data()
    if folder is None:
        pytest.skip("real images are absent: set SUBTOK_TEST_DATA to their folder")
    return folder
