"""The notebook: runs from top to bottom in a fresh kernel, its classes in worker processes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "first_batch.ipynb"


def test_is_stored_without_outputs():
    nbformat = pytest.importorskip("nbformat")
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert not cell.get("outputs"), "clear the outputs: they are large and differ by machine"
        assert cell.get("execution_count") is None


@pytest.mark.skipif(sys.platform != "linux", reason="classes of a notebook need forked workers")
def test_runs_from_top_to_bottom(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    options = {
        "timeout": 250,
        "kernel_name": "python3",
        "resources": {"metadata": {"path": tmp_path}},
    }
    done = nbclient.NotebookClient(notebook, **options).execute()

    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    images = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(images) == 1
    said = "".join(output.get("text", "") for output in outputs if output.get("name") == "stdout")
    batches = re.findall(r"^\[([\d, ]+)\] \[", said, re.MULTILINE)
    assert sorted(int(one) for batch in batches for one in batch.split(",")) == list(range(6))
    errors = [output["text"] for output in outputs if output.get("name") == "stderr"]
    assert not [text for text in errors if "Traceback" in text or "Error" in text]
