"""Log of a run: a CSV file, and TensorBoard events on request."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subtok_data.errors import ConfigError

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["RunLog"]

_COLUMNS: tuple[str, ...] = (
    "step",
    "loss",
    "learning_rate",
    "gradient_norm",
    "images_per_second",
    "validation_loss",
)


class RunLog:
    """Writer of ``log.csv``; a resumed run drops the rows after its checkpoint.

    Parameters
    ----------
    folder : Path
        Where ``log.csv`` and ``tensorboard`` go.
    step : int
        Finished steps of the checkpoint; 0 starts anew.
    tensorboard : bool
        Write event files too.
    active : bool
        False on all but one process: nothing is written.

    Raises
    ------
    ConfigError
        The package ``tensorboard`` is missing.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with RunLog(Path(folder), 0) as log:
    ...         log.write(1, loss=0.5)
    ...     (Path(folder) / "log.csv").read_text().splitlines()[1]
    '1,0.5,,,,'
    """

    def __init__(
        self, folder: Path, step: int, *, tensorboard: bool = False, active: bool = True
    ) -> None:
        self._path = folder / "log.csv"
        self._active = active
        self._board: Any = None
        if not active:
            return
        rows = self._read_until(step)
        with self._path.open("w", newline="") as file:
            writer = csv.DictWriter(file, _COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        if tensorboard:
            try:
                module = importlib.import_module("torch.utils.tensorboard")
            except ImportError as error:
                raise ConfigError(
                    "TensorBoard logs need the package 'tensorboard': pip install tensorboard"
                ) from error
            self._board = module.SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, **values: float) -> None:
        """Add a row; columns that are not given stay empty."""
        if not self._active:
            return
        # Opened for each row: what is on disk is complete whenever the process ends.
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, _COLUMNS).writerow(
                {"step": step, **{key: f"{value:.6g}" for key, value in values.items()}}
            )
        if self._board is not None:
            for key, value in values.items():
                self._board.add_scalar(key, value, step)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._board is not None:
            self._board.close()

    def _read_until(self, step: int) -> list[dict[str, str]]:
        if step == 0 or not self._path.exists():
            return []
        with self._path.open(newline="") as file:
            return [row for row in csv.DictReader(file) if int(row["step"]) <= step]
