"""Log of a run: a CSV file, and the trackers of accelerate on request."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from subtok_data.errors import ConfigError

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["PROJECT", "RunLog", "check_trackers"]

PROJECT = "subtok-train"
"""Name of the project, or subfolder, that trackers get."""

_COLUMNS: tuple[str, ...] = (
    "step",
    "loss",
    "learning_rate",
    "gradient_norm",
    "images_per_second",
    "validation_loss",
)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(cast("Mapping[str, Any]", value), f"{prefix}{key}.")
        else:
            yield prefix + key, value if isinstance(value, (bool, int, float)) else str(value)


def check_trackers(trackers: Sequence[str | GeneralTracker]) -> list[Any] | None:
    """Return trackers as accelerate takes them, which leaves out in silence what is not installed.

    None if there are none.

    Parameters
    ----------
    trackers : sequence of str or GeneralTracker
        Names that accelerate knows, or trackers of one's own.

    Raises
    ------
    ConfigError
        A name that accelerate does not know, or whose package is missing.

    Examples
    --------
    >>> check_trackers(["tensorbord"])
    Traceback (most recent call last):
    ...
    subtok_data.errors.ConfigError: no tracker 'tensorbord': accelerate knows aim, ...
    """
    installed = {str(name) for name in get_available_trackers()}
    for tracker in trackers:
        if isinstance(tracker, GeneralTracker):
            continue
        if tracker not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
            raise ConfigError(f"no tracker {tracker!r}: accelerate knows {known}")
        if tracker not in installed:
            raise ConfigError(f"the package of the tracker {tracker!r} is missing: install it")
    return list(trackers) or None


class RunLog:
    """Writer of ``log.csv`` and to trackers; a resumed run drops the rows after its checkpoint.

    Parameters
    ----------
    folder : Path
        Where ``log.csv`` goes.
    step : int
        Finished steps of the checkpoint; 0 starts anew.
    accelerator : Accelerator
        Its trackers are written to, from its main process only, as the file is.
    config : mapping
        Settings of the run, for trackers.

    Examples
    --------
    >>> import tempfile
    >>> from accelerate import Accelerator
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with RunLog(Path(folder), 0, Accelerator(cpu=True), {}) as log:
    ...         log.write(1, loss=0.5)
    ...     (Path(folder) / "log.csv").read_text().splitlines()[1]
    '1,0.5,,,,'
    """

    def __init__(
        self, folder: Path, step: int, accelerator: Accelerator, config: Mapping[str, Any]
    ) -> None:
        self._path = folder / "log.csv"
        self._accelerator = accelerator
        if accelerator.is_main_process:
            rows = self._read_until(step)
            with self._path.open("w", newline="") as file:
                writer = csv.DictWriter(file, _COLUMNS)
                writer.writeheader()
                writer.writerows(rows)
        if accelerator.log_with:
            accelerator.init_trackers(
                PROJECT,
                dict(_flat(config)),
                # Events after the checkpoint are those of steps that come again.
                {"tensorboard": {"purge_step": step + 1}},
            )

    def write(self, step: int, **values: float) -> None:
        """Add a row; columns that are not given stay empty."""
        if self._accelerator.is_main_process:
            # Opened for each row: what is on disk is complete whenever the process ends.
            with self._path.open("a", newline="") as file:
                csv.DictWriter(file, _COLUMNS).writerow(
                    {"step": step, **{key: f"{value:.6g}" for key, value in values.items()}}
                )
        if self._accelerator.log_with:
            self._accelerator.log(values, step=step)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._accelerator.log_with:
            self._accelerator.end_training()

    def _read_until(self, step: int) -> list[dict[str, str]]:
        if step == 0 or not self._path.exists():
            return []
        with self._path.open(newline="") as file:
            return [row for row in csv.DictReader(file) if int(row["step"]) <= step]
