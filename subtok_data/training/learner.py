"""One optimiser step: network, AdamW, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from subtok_data.errors import SubtokError
from subtok_data.training.checkpoint import Checkpoint

if TYPE_CHECKING:
    from accelerate import Accelerator

    from subtok_data.training.config import TrainConfig
    from subtok_data.training.networks import Network

__all__ = ["Learner", "MovingAverage"]

Pairs = Iterator[tuple[torch.Tensor, torch.Tensor]]


class Learner:
    """A network on its devices, with its optimiser and averaged weights.

    Parameters
    ----------
    config : TrainConfig
        Settings.
    network : Network
        Is moved to the accelerator's device, and trained in place.
    accelerator : Accelerator
        Devices of the run; its gradient accumulation is that of the settings.
    checkpoint : Checkpoint, optional
        Where to go on; from the network as it is by default.

    Attributes
    ----------
    module : nn.Module
        The network as accelerate runs it.
    """

    def __init__(
        self,
        config: TrainConfig,
        network: Network,
        accelerator: Accelerator,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self._config = config
        self._network = network
        self._accelerator = accelerator
        self._average = MovingAverage(config.ema)
        if checkpoint is not None:
            network.module.load_state_dict(checkpoint.network)
            self._average.state = dict(checkpoint.average)
        encoder, rest = network.parameter_groups()
        optimiser = torch.optim.AdamW(
            [{"params": encoder}, {"params": rest}],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
        )
        network.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        prepared: Any = accelerator.prepare(network.module, optimiser)
        self.module: nn.Module = prepared[0]
        self._optimiser: Any = prepared[1]
        if checkpoint is not None:
            state = optimiser.state_dict()
            state["state"] = checkpoint.optimiser
            optimiser.load_state_dict(state)
        if config.ema and not self._average.state:
            self._average.start(network.module)
        self._average.state = {k: v.to(self._device) for k, v in self._average.state.items()}
        self._train_mode(self.module)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the last step, for all but the encoder."""
        return float(self._optimiser.param_groups[1]["lr"])

    def learn(self, batches: Pairs, step: int) -> tuple[float, float]:
        """Take one step.

        Parameters
        ----------
        batches : iterator of (Tensor, Tensor)
            Pixels (B, 3, H, W) uint8 and label (B, 1, h, w); one is taken for each part of a step.
        step : int
            Steps that are finished.

        Returns
        -------
        loss, norm : float
            Mean over all processes, and the norm of the gradient before it is clipped.

        Raises
        ------
        SubtokError
            The loss is not finite any more.
        """
        config = self._config
        rate = config.learning_rate * _rate_factor(config, step)
        groups = self._optimiser.param_groups
        groups[0]["lr"], groups[1]["lr"] = rate * config.encoder_rate, rate
        total = torch.zeros((), device=self._device)
        norm = math.nan
        for micro in range(config.accumulate):
            pixels, label = next(batches)
            self._seed_dropout(step * config.accumulate + micro)
            with self._accelerator.accumulate(self.module):
                loss = self._loss(pixels, label)
                self._accelerator.backward(loss)
                if self._accelerator.sync_gradients:
                    limit = config.clip_norm or math.inf
                    clipped: Any = self._accelerator.clip_grad_norm_(
                        self.module.parameters(), limit
                    )
                    norm = float(clipped)
                self._optimiser.step()
                self._optimiser.zero_grad()
            total += loss.detach()
        reduced: Any = self._accelerator.reduce(total, "mean")
        mean = float(reduced) / config.accumulate
        if not math.isfinite(mean):
            raise SubtokError(
                f"the loss is {mean} at step {step + 1}: lower learning_rate, or look at the "
                "labels; the last checkpoint is from before"
            )
        if config.ema:
            self._average.update(self._raw_module(), step + 1)
        return mean, norm

    def _loss(self, pixels: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        half = self._config.mixed_precision == "bf16"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=half):
            logits = self._logits(self.module, pixels)
        if logits.shape[-2:] != label.shape[-2:]:
            logits = F.interpolate(logits, label.shape[-2:], mode="bilinear")
        return F.binary_cross_entropy_with_logits(logits.float(), label)

    def _logits(self, module: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        """Compute logits (B, 1, h, w) of uint8 pixels (B, 3, H, W)."""
        mean = torch.tensor(self._network.mean, device=pixels.device).view(1, 3, 1, 1)
        std = torch.tensor(self._network.std, device=pixels.device).view(1, 3, 1, 1)
        normal = ((pixels.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
        output: Any = module(normal)
        return output if isinstance(output, torch.Tensor) else output.logits

    def _seed_dropout(self, micro: int) -> None:
        """Seed dropout by the number of the forward pass, whatever ran before."""
        config, accelerator = self._config, self._accelerator
        number = config.seed * 1_000_003 * config.accumulate + micro
        torch.manual_seed(number * accelerator.num_processes + accelerator.process_index)

    @contextmanager
    def averaged(self) -> Generator[Callable[[torch.Tensor], torch.Tensor]]:
        """Give a function from uint8 pixels (B, 3, H, W) to logits (B, 1, h, w), for validation.

        It uses the averaged weights; outside of the context, training goes on where it was.
        """
        module = self._raw_module()
        trained = {key: value.clone() for key, value in module.state_dict().items()}
        module.load_state_dict(self._weights())
        module.eval()
        try:
            yield lambda pixels: self._logits(module, pixels.to(self._device))
        finally:
            module.load_state_dict(trained)
            self._train_mode(module)

    def checkpoint(self, step: int, run: dict[str, Any]) -> Checkpoint:
        """Collect what a run needs to go on after a number of finished steps."""
        state: dict[int, dict[str, torch.Tensor]] = self._optimiser.state_dict()["state"]
        network = dict(self._raw_module().state_dict())
        return Checkpoint(step, network, self._average.state, state, run)

    def save(self, folder: Path) -> None:
        """Write the averaged weights as `BoundaryModel` loads them."""
        weights = {key: value.cpu() for key, value in self._weights().items()}
        self._network.save(folder, weights, self._config.logit_shift)

    @property
    def _device(self) -> torch.device:
        return self._accelerator.device

    def _raw_module(self) -> nn.Module:
        return cast(nn.Module, self._accelerator.unwrap_model(self.module))

    def _weights(self) -> dict[str, torch.Tensor]:
        return self._average.state or dict(self._raw_module().state_dict())

    def _train_mode(self, module: nn.Module) -> None:
        module.train()
        if self._config.freeze_encoder_norm:
            for norm in self._network.encoder_norms():
                norm.eval()


def _rate_factor(config: TrainConfig, step: int) -> float:
    """Compute the share of the learning rate: linear warm-up, then constant or half a cosine."""
    rise = min(1.0, (step + 1) / max(1, config.warmup))
    if config.schedule == "constant":
        return rise
    # Ends at half a per cent, not at nothing: the last steps still train.
    return rise * (0.5 + 0.5 * math.cos(math.pi * step / config.steps) + 0.005)


class MovingAverage:
    """Exponential moving average of a module's parameters and float buffers.

    Parameters
    ----------
    decay : float
        Share of the old average that a step keeps, once the run is long enough.

    Attributes
    ----------
    state : dict of str to Tensor
        The averages, under the names of the module's state.

    Examples
    --------
    >>> module = nn.Linear(1, 1)
    >>> average = MovingAverage(0.9)
    >>> average.start(module)
    >>> average.update(module, step=1)
    >>> sorted(average.state)
    ['bias', 'weight']
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.state: dict[str, torch.Tensor] = {}

    def start(self, module: nn.Module) -> None:
        """Start the average from the weights of a module."""
        self.state = {key: value.detach().clone() for key, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Average in the weights after optimiser step number `step`, from 1 on."""
        # Early on a long memory would hold the initial weights.
        decay = min(self.decay, (1 + step) / (10 + step))
        for key, value in module.state_dict().items():
            if value.dtype.is_floating_point:
                self.state[key].lerp_(value, 1 - decay)
            else:
                self.state[key].copy_(value)
