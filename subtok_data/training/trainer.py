"""Training of a boundary network on accelerate: any number of devices, exact resume.

What a step sees depends only on the seed and the step's number, and the learning rate only on the
number too; weights, their average and the optimiser's state are in the checkpoint. So a run that
was interrupted ends in the weights of one that was not.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from torch.utils.data import DataLoader
from tqdm import tqdm

from subtok_data.data import WorkerStart, worker_start_method
from subtok_data.errors import ConfigError
from subtok_data.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from subtok_data.training.config import TrainConfig
from subtok_data.training.crops import Crops
from subtok_data.training.learner import Learner
from subtok_data.training.networks import build_network
from subtok_data.training.run_log import RunLog, check_trackers
from subtok_data.training.samples import BoundarySource, CheckedSamples, check_sources
from subtok_data.training.validation import validate

__all__ = ["Trainer", "train"]

CHECKPOINT = "checkpoint.safetensors"

#: Settings that may change between the parts of one run.
_FREE = ("stop_after", "checkpoint_every", "validate_every", "log_every", "workers")


class Trainer:
    """A training run; it goes on where an earlier one in the same folder stopped.

    Parameters
    ----------
    config : TrainConfig
        Settings.
    sources : sequence of BoundarySource
        Labelled images.
    output : path
        Folder of checkpoint, logs, images of validation and, at the end, ``final``.
    validation : sequence of BoundarySource
        Labelled images to validate on; none by default.
    init : path, optional
        Initial weights, see `build_network`.
    cpu : bool
        Leave other devices alone.
    trackers : sequence of str or GeneralTracker
        Where losses and rates go besides ``log.csv``: names that accelerate knows
        (``"tensorboard"``, ``"wandb"``, ``"mlflow"``, …), or trackers of one's own.
    progress : bool
        Show a bar.

    Attributes
    ----------
    step : int
        Finished steps.
    problems : tuple of str
        Samples that cannot be trained on.

    Examples
    --------
    >>> from subtok_data.training import preset
    >>> trainer = Trainer(preset("default"), sources, "run")  # doctest: +SKIP
    >>> folder = trainer.run()  # doctest: +SKIP
    """

    def __init__(
        self,
        config: TrainConfig,
        sources: Sequence[BoundarySource],
        output: str | Path,
        *,
        validation: Sequence[BoundarySource] = (),
        init: str | Path | None = None,
        cpu: bool = False,
        trackers: Sequence[str | GeneralTracker] = (),
        progress: bool = False,
    ) -> None:
        self.config = config
        self.output = Path(output)
        # Precision is ours, below: accelerate's belongs to the process, and a second run in the
        # same process could not choose another.
        self._accelerator = Accelerator(
            mixed_precision="no",
            gradient_accumulation_steps=config.accumulate,
            cpu=cpu,
            log_with=check_trackers(trackers),
            project_dir=self.output,
        )
        main = self._accelerator.is_main_process
        self._progress = progress and main
        self._samples = check_sources(sources, progress=self._progress)
        self._held_out = check_sources(validation) if validation else None
        held_out_problems = self._held_out.problems if self._held_out else ()
        self.problems = (*self._samples.problems, *held_out_problems)
        self.output.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config.seed)
        network = build_network(config.architecture, init, logit_shift=config.logit_shift)
        network.freeze(config.frozen_stages)
        checkpoint = self._find_checkpoint()
        self.step = 0 if checkpoint is None else checkpoint.step
        self._end = config.stop_after or config.steps
        if self.step > self._end:
            raise ConfigError(
                f"the run in {self.output} has got to step {self.step} and cannot stop after "
                f"{self._end}: leave stop_after out, or take another folder"
            )
        self._learner = Learner(config, network, self._accelerator, checkpoint)
        self._log = RunLog(self.output, self.step, self._accelerator, config.to_dict())
        self._stop = False

    def stop(self) -> None:
        """Make `run` return after the step under way, with a checkpoint."""
        self._stop = True

    def run(self, on_step: Callable[[int, float], None] | None = None) -> Path | None:
        """Train to the last step.

        Parameters
        ----------
        on_step : callable, optional
            Called with the number of finished steps and the loss of the last one.

        Returns
        -------
        Path or None
            Folder that `BoundaryModel` loads; None if `stop` ended the run before its last step.

        Raises
        ------
        SubtokError
            The loss is not finite any more.
        """
        config = self.config
        bar = tqdm(
            total=self._end,
            initial=self.step,
            unit="step",
            desc="training",
            disable=not self._progress,
        )
        with bar, self._log:
            batches = self._batches()
            while self.step < self._end and not self._stop:
                started = time.perf_counter()
                loss, norm = self._learner.learn(batches, self.step)
                self.step += 1
                self._report(loss, norm, time.perf_counter() - started)
                bar.update()
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                if on_step is not None:
                    on_step(self.step, loss)
                last = self.step == self._end
                if last or self._stop or self.step % config.checkpoint_every == 0:
                    self._save_checkpoint()
                if self._held_out is not None and (last or self.step % config.validate_every == 0):
                    self._validate(self._held_out)
        return self._finish() if self.step == self._end else None

    # Parts of a run.

    def _batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        config = self.config
        per_step = config.batch_size * config.accumulate * self._accelerator.num_processes
        crops = Crops(
            self._samples, config, self.step * per_step, (config.steps - self.step) * per_step
        )
        loader: Any = DataLoader(
            crops,
            batch_size=config.batch_size,
            num_workers=config.workers,
            multiprocessing_context=worker_start_method() if config.workers else None,
            worker_init_fn=WorkerStart(),  # accelerate keeps it, and no class of ours
        )
        return iter(self._accelerator.prepare(loader))

    def _report(self, loss: float, norm: float, seconds: float) -> None:
        config = self.config
        if self.step % config.log_every and self.step != self._end:
            return
        images = config.batch_size * config.accumulate * self._accelerator.num_processes
        self._log.write(
            self.step,
            loss=loss,
            learning_rate=self._learner.learning_rate,
            gradient_norm=norm,
            images_per_second=images / seconds,
        )

    def _validate(self, samples: CheckedSamples) -> None:
        if not self._accelerator.is_main_process:
            return
        preview = self.output / "validation" / f"step_{self.step:06d}.png"
        with self._learner.averaged() as predict:
            loss = validate(predict, samples, self.config, preview)
        self._log.write(self.step, validation_loss=loss)

    def _identity(self) -> dict[str, Any]:
        """Collect what must be equal for a run to go on."""
        names = hashlib.sha256()
        for index in range(len(self._samples)):
            names.update(Path(self._samples.name(index)).name.encode() + b"\0")
        settings = {k: v for k, v in self.config.to_dict().items() if k not in _FREE}
        return {
            **settings,
            "processes": self._accelerator.num_processes,
            "samples": names.hexdigest(),
        }

    def _find_checkpoint(self) -> Checkpoint | None:
        path = self.output / CHECKPOINT
        if not path.exists():
            return None
        checkpoint = read_checkpoint(path)
        checkpoint.require_same(self._identity())
        return checkpoint

    def _save_checkpoint(self) -> None:
        if self._accelerator.is_main_process:
            checkpoint = self._learner.checkpoint(self.step, self._identity())
            write_checkpoint(self.output / CHECKPOINT, checkpoint)
        self._accelerator.wait_for_everyone()

    def _finish(self) -> Path:
        folder = self.output / "final"
        if self._accelerator.is_main_process:
            partial = self.output / "final.partial"
            shutil.rmtree(partial, ignore_errors=True)
            self._learner.save(partial)
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        self._accelerator.wait_for_everyone()
        return folder


def train(
    config: TrainConfig,
    sources: Sequence[BoundarySource],
    output: str | Path,
    **options: Any,
) -> Path:
    """Train to the end, from the start or from the checkpoint in `output`.

    Parameters
    ----------
    config, sources, output, **options
        See `Trainer`.

    Returns
    -------
    Path
        Folder that `BoundaryModel.from_pretrained` loads.

    Raises
    ------
    ConfigError
        Nothing to train on, or `output` holds another run.
    """
    folder = Trainer(config, sources, output, **options).run()
    if folder is None:
        raise ConfigError("the run was stopped before its last step")
    return folder
