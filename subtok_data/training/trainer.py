"""Training of a boundary network on accelerate: any number of devices, exact resume.

What a step sees depends only on the seed and the step's number, and the learning rate only on the
number too; weights, their average and the optimiser's state are in the checkpoint. So a run that
was interrupted ends in the weights of one that was not.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from subtok_data.errors import ConfigError, SubtokError
from subtok_data.training.average import MovingAverage
from subtok_data.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from subtok_data.training.config import TrainConfig
from subtok_data.training.draws import Draws
from subtok_data.training.networks import Network, build_network
from subtok_data.training.progress import RunLog
from subtok_data.training.sources import BoundarySource, CheckedSamples, check_sources
from subtok_data.training.validation import validate

__all__ = ["Trainer", "train"]

CHECKPOINT = "checkpoint.safetensors"
#: Settings that may change between the parts of one run.
_FREE = ("checkpoint_every", "validate_every", "log_every", "workers")


class Trainer:
    """One run.

    Parameters
    ----------
    config : TrainConfig
        Settings.
    sources : sequence of BoundarySource
        Labelled images.
    output : path
        Folder of checkpoint, logs, pictures and, at the end, ``final``.
    validation : sequence of BoundarySource
        Labelled images to validate on; none by default.
    init : path, optional
        Initial weights, see `build_network`.
    cpu : bool
        Leave other devices alone.
    tensorboard : bool
        Write TensorBoard logs too; needs the package ``tensorboard``.
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
    >>> from subtok_data.training.config import preset
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
        tensorboard: bool = False,
        progress: bool = False,
    ) -> None:
        self.config = config
        self.output = Path(output)
        # Precision is ours, below: accelerate's belongs to the process, and a second run in the
        # same process could not choose another.
        self._accelerator = Accelerator(
            mixed_precision="no", gradient_accumulation_steps=config.accumulate, cpu=cpu
        )
        main = self._accelerator.is_main_process
        self._progress = progress and main
        self._samples = check_sources(sources, progress=self._progress)
        self._held_out = check_sources(validation) if validation else None
        held_out_problems = self._held_out.problems if self._held_out else ()
        self.problems = (*self._samples.problems, *held_out_problems)
        torch.manual_seed(config.seed)
        self._network = build_network(config.architecture, init)
        self._average = MovingAverage(config.ema)
        self.step = 0
        self.output.mkdir(parents=True, exist_ok=True)
        checkpoint = self._find_checkpoint()
        if checkpoint is not None:
            self.step = checkpoint.step
            self._network.module.load_state_dict(checkpoint.network)
            self._average.state = dict(checkpoint.average)
        self._module, self._optimiser = self._prepare(checkpoint)
        self._log = RunLog(self.output, self.step, tensorboard=tensorboard, active=main)
        self._stop = False

    def stop(self) -> None:
        """Finish the step that is under way, write a checkpoint and leave `run`."""
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
            total=config.steps,
            initial=self.step,
            unit="step",
            desc="training",
            disable=not self._progress,
        )
        with bar, self._log:
            batches = self._batches()
            while self.step < config.steps and not self._stop:
                started = time.perf_counter()
                loss, norm = self._train_step(batches)
                self.step += 1
                if config.ema:
                    self._average.update(self._raw_module(), self.step)
                self._report(loss, norm, time.perf_counter() - started)
                bar.update()
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                if on_step is not None:
                    on_step(self.step, loss)
                last = self.step == config.steps
                if last or self._stop or self.step % config.checkpoint_every == 0:
                    self._save_checkpoint()
                if self._held_out is not None and (last or self.step % config.validate_every == 0):
                    self._validate(self._held_out)
        return self._finish() if self.step == config.steps else None

    # Parts of a run.

    def _prepare(self, checkpoint: Checkpoint | None) -> tuple[nn.Module, Any]:
        config, network = self.config, self._network
        encoder, rest = network.parameter_groups()
        optimiser = torch.optim.AdamW(
            [{"params": encoder}, {"params": rest}],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
        )
        network.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        module, prepared = self._accelerator.prepare(network.module, optimiser)
        if checkpoint is not None:
            state = optimiser.state_dict()
            state["state"] = checkpoint.optimiser
            optimiser.load_state_dict(state)
        if config.ema and not self._average.state:
            self._average.start(network.module)
        device = self._accelerator.device
        self._average.state = {k: v.to(device) for k, v in self._average.state.items()}
        module.train()
        if config.freeze_encoder_norm:
            for norm in network.encoder_norms():
                norm.eval()
        return module, prepared

    def _batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        config = self.config
        per_step = config.batch_size * config.accumulate * self._accelerator.num_processes
        draws = Draws(
            self._samples, config, self.step * per_step, (config.steps - self.step) * per_step
        )
        loader: Any = DataLoader(
            draws,
            batch_size=config.batch_size,
            num_workers=config.workers,
            multiprocessing_context="forkserver" if config.workers else None,
        )
        return iter(self._accelerator.prepare(loader))

    def _train_step(
        self, batches: Iterator[tuple[torch.Tensor, torch.Tensor]]
    ) -> tuple[float, float]:
        accelerator, config = self._accelerator, self.config
        rate = config.learning_rate * self._rate_factor()
        groups = self._optimiser.param_groups
        groups[0]["lr"], groups[1]["lr"] = rate * config.encoder_rate, rate
        total = torch.zeros((), device=accelerator.device)
        norm = math.nan
        for micro in range(config.accumulate):
            pixels, label = next(batches)
            self._seed_dropout(micro)
            with accelerator.accumulate(self._module):
                with torch.autocast(
                    accelerator.device.type,
                    torch.bfloat16,
                    enabled=config.mixed_precision == "bf16",
                ):
                    logits = forward(self._module, pixels, self._network)
                if logits.shape[-2:] != label.shape[-2:]:
                    logits = F.interpolate(logits, label.shape[-2:], mode="bilinear")
                loss = F.binary_cross_entropy_with_logits(logits.float(), label)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    limit = config.clip_norm or math.inf
                    clipped: Any = accelerator.clip_grad_norm_(self._module.parameters(), limit)
                    norm = float(clipped)
                self._optimiser.step()
                self._optimiser.zero_grad()
            total += loss.detach()
        reduced: Any = accelerator.reduce(total, "mean")
        mean = float(reduced) / config.accumulate
        if not math.isfinite(mean):
            raise SubtokError(
                f"the loss is {mean} at step {self.step + 1}: lower learning_rate, or look at the "
                "labels; the last checkpoint is from before"
            )
        return mean, norm

    def _seed_dropout(self, micro: int) -> None:
        """Dropout draws from the number of the forward pass, not from what ran before."""
        number = (self.config.seed * 1_000_003 + self.step) * self.config.accumulate + micro
        accelerator = self._accelerator
        torch.manual_seed(number * accelerator.num_processes + accelerator.process_index)

    def _rate_factor(self) -> float:
        config = self.config
        rise = min(1.0, (self.step + 1) / max(1, config.warmup))
        if config.schedule == "constant":
            return rise
        # Ends at half a per cent, not at nothing: the last steps still train.
        return rise * (0.5 + 0.5 * math.cos(math.pi * self.step / config.steps) + 0.005)

    def _raw_module(self) -> nn.Module:
        return cast(nn.Module, self._accelerator.unwrap_model(self._module))

    def _report(self, loss: float, norm: float, seconds: float) -> None:
        config = self.config
        if self.step % config.log_every and self.step != config.steps:
            return
        images = config.batch_size * config.accumulate * self._accelerator.num_processes
        self._log.write(
            self.step,
            loss=loss,
            learning_rate=float(self._optimiser.param_groups[1]["lr"]),
            gradient_norm=norm,
            images_per_second=images / seconds,
        )

    def _validate(self, samples: CheckedSamples) -> None:
        if not self._accelerator.is_main_process:
            return
        module = self._raw_module()
        trained = {key: value.clone() for key, value in module.state_dict().items()}
        module.load_state_dict(self._weights())
        module.eval()
        loss = validate(
            lambda pixels: forward(module, pixels.to(self._accelerator.device), self._network),
            samples,
            self.config,
            self.output / "pictures" / f"step_{self.step:06d}.png",
        )
        module.load_state_dict(trained)
        module.train()
        if self.config.freeze_encoder_norm:
            for norm in self._network.encoder_norms():
                norm.eval()
        self._log.write(self.step, validation_loss=loss)

    def _weights(self) -> dict[str, torch.Tensor]:
        return self._average.state or dict(self._raw_module().state_dict())

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a run to go on."""
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
            state = cast(
                "dict[int, dict[str, torch.Tensor]]", self._optimiser.state_dict()["state"]
            )
            write_checkpoint(
                self.output / CHECKPOINT,
                Checkpoint(
                    self.step,
                    dict(self._raw_module().state_dict()),
                    self._average.state,
                    state,
                    self._identity(),
                ),
            )
        self._accelerator.wait_for_everyone()

    def _finish(self) -> Path:
        folder = self.output / "final"
        if self._accelerator.is_main_process:
            partial = self.output / "final.partial"
            shutil.rmtree(partial, ignore_errors=True)
            weights = {key: value.cpu() for key, value in self._weights().items()}
            self._network.save(partial, weights, self.config.logit_shift)
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        self._accelerator.wait_for_everyone()
        return folder


def forward(module: nn.Module, pixels: torch.Tensor, network: Network) -> torch.Tensor:
    """Logits (B, 1, h, w) of uint8 pixels (B, 3, H, W)."""
    mean = torch.tensor(network.mean, device=pixels.device).view(1, 3, 1, 1)
    std = torch.tensor(network.std, device=pixels.device).view(1, 3, 1, 1)
    normal = ((pixels.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
    output: Any = module(normal)
    return output if isinstance(output, torch.Tensor) else output.logits


def train(
    config: TrainConfig,
    sources: Sequence[BoundarySource],
    output: str | Path,
    **options: Any,
) -> Path:
    """Train, or go on with the run in `output`, to the end.

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
