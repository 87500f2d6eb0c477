"""``train_trl.py`` trains, stops in mid-epoch and goes on as if it had not."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_trl.py"
SMALL = ["--captions", "16", "--batch-size", "4", "--save-every", "5"]
SMALL += ["--num-tokens", "9", "--size", "96"]


def losses(*arguments: str, folder: Path) -> list[float]:
    command = [sys.executable, "-W", "error", str(EXAMPLE), "--demo", *SMALL, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "18 visual tokens in 2 rows" in done.stdout
    (line,) = re.findall(r"^losses: (.*)$", done.stdout, re.MULTILINE)
    return [float(loss) for loss in line.split()]


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["TRL", "Trainer"])
def test_the_loss_falls_and_a_stopped_run_goes_on(tmp_path, trainer):
    if trainer == "TRL":
        pytest.importorskip("trl", reason="TRL is not installed: pip install 'subtok-data[trl]'")
    options = ["--epochs", "3", *(["--trainer"] if trainer == "Trainer" else [])]
    whole = losses("--out", "whole", *options, folder=tmp_path)
    assert whole[-1] < whole[0]
    # At a step that is logged: a log is the mean since the one before, in the same run.
    stopped = losses("--out", "halves", "--stop-after", "5", *options, folder=tmp_path)
    resumed = losses("--out", "halves", "--resume", *options, folder=tmp_path)
    assert stopped == whole[: len(stopped)]
    assert resumed == whole
