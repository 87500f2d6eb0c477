"""Run a boundary network: normalisation, precision, batches on a CPU, logits to quantised maps."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from subtok_data.boundary.conversion import FixedConvolutions, inference_copy
from subtok_data.boundary.tiles import TilePlan
from subtok_data.boundary.weights_io import Normalisation
from subtok_data.devices import DEVICE_FAILURES, Precision, compute_dtype
from subtok_data.errors import ConfigError

__all__ = ["UPSAMPLING", "BoundaryNetwork"]

UPSAMPLING = "bicubic-logits-1"
"""The way from logits to maps, as part of what a map is identified by: raise it with a change."""


class BoundaryNetwork:
    """A module with its normalisation, on a device, in a precision.

    Parameters
    ----------
    module : nn.Module
        See :class:`subtok_data.boundary.BoundaryModel`.
    normalisation : Normalisation
        Of RGB in [0, 1].
    precision : {"auto", "float32", "tf32", "bfloat16", "float16"}
        Of the matrix products: by autocast on a CPU, by a converted copy of the module on CUDA.
    compile : bool
        Run through ``torch.compile``, compiled at the first images.
    name : str
        For messages.

    Examples
    --------
    >>> from subtok_data.boundary import load_network
    >>> loaded = load_network(None)
    >>> network = BoundaryNetwork(loaded.module, loaded.normalisation, "float32", False, "lite0")
    >>> network.to(torch.device("cpu"))
    >>> network.logits(torch.zeros(1, 64, 96, 3, dtype=torch.uint8)).shape
    torch.Size([1, 1, 32, 48])
    """

    def __init__(
        self,
        module: nn.Module,
        normalisation: Normalisation,
        precision: Precision,
        compile: bool,
        name: str,
    ) -> None:
        self.module = module.eval()
        self.normalisation = normalisation
        self.precision: Precision = precision
        self.compile = compile
        self.name = name
        self._converted: nn.Module | None = None
        self._compiled: Callable[..., Any] | None = None

    def to(self, device: torch.device) -> None:
        """Move module and constants, and choose dtype and form of the module for this device."""
        self.dtype = compute_dtype(self.precision, device)
        self.module.to(device)
        # In units of 1 / 255, so that uint8 pixels need no division before. Made on the CPU: a
        # kernel that made them might run later than another stream reads them.
        mean, std = self.normalisation.mean, self.normalisation.std
        self._mean = (255 * torch.tensor(mean)).view(3, 1, 1).to(device)
        self._std = (255 * torch.tensor(std)).view(3, 1, 1).to(device)
        self.device = device
        self._compiled = None
        self._converted = None
        if self.is_converted:
            self._converted = inference_copy(self.module, self.dtype)

    @property
    def is_converted(self) -> bool:
        """Whether a copy of the module runs, in the form that suits a GPU, and not itself.

        A CPU would gain too, but its maps, and so the tokens that are stored, keep their bits.
        """
        return self.device.type == "cuda"

    @property
    def cpu_batch(self) -> int:
        """Images that run together on a CPU.

        Two for SegFormer, whose reshaped tokens send a single image through slower convolutions
        with other roundings. One for all else: more is no faster, and one image alone can have no
        influence on another.
        """
        config = getattr(self.module, "config", None)
        return 2 if getattr(config, "model_type", None) == "segformer" else 1

    @torch.inference_mode()
    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits of uint8 pixels (N, H, W, 3) on the device: float32 (N, 1, h, w).

        Raises
        ------
        ConfigError
            The module gives another shape.
        """
        count = pixels.shape[0]
        reduced = self.dtype != torch.float32
        if reduced and self.device.type == "cpu" and count < self.cpu_batch:
            # Alone, an image would get another map than in company, by up to four levels.
            pixels = pixels.expand(self.cpu_batch, *pixels.shape[1:])
        inputs = pixels.permute(0, 3, 1, 2).to(torch.float32).sub_(self._mean).div_(self._std)
        if self.is_converted:
            output = self._run_converted(inputs.to(self.dtype))
        else:
            dtype = self.dtype if reduced else None
            with torch.autocast(self.device.type, dtype, enabled=reduced):
                output = self._callable()(inputs)
        logits = output if isinstance(output, torch.Tensor) else output.logits
        if logits.ndim != 4 or logits.shape[:2] != (pixels.shape[0], 1):
            raise ConfigError(
                f"boundary model {self.name!r} gave {tuple(logits.shape)} for "
                f"{pixels.shape[0]} image(s): logits of shape (N, 1, h, w) are needed"
            )
        return logits[:count].float()

    @torch.inference_mode()
    def probabilities(
        self, pixels: torch.Tensor, plan: TilePlan | None = None, tiles_at_once: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Boundary probability of every pixel.

        Parameters
        ----------
        pixels : (N, H, W, 3) uint8 Tensor
            On the device; with a plan, N is 1.
        plan : TilePlan, optional
            Run the image in tiles.
        tiles_at_once : int, optional
            How many of them run together.

        Returns
        -------
        probabilities, finite : (N, H, W) float32 Tensor, (N,) bool Tensor
            And whether the logits of each image are finite.
        """
        if plan is None:
            logits = self.logits(pixels)
        else:
            tiles = plan.cut(pixels[0]).split(tiles_at_once)
            logits = plan.blend(torch.cat([self.logits(part) for part in tiles]))
        upsampled = F.interpolate(
            logits, size=tuple(pixels.shape[1:3]), mode="bicubic", align_corners=False
        )
        return upsampled.sigmoid_()[:, 0], logits.isfinite().flatten(1).all(1)

    def update(self, digest: hashlib._Hash) -> None:  # pyright: ignore[reportPrivateUsage]
        """Add architecture, normalisation and weights (as float32) to a hash."""
        digest.update(repr((type(self.module).__name__, self.normalisation)).encode())
        for name, tensor in sorted(self.module.state_dict().items()):
            values = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
            digest.update(f"{name} {values.shape}".encode())
            digest.update(values.tobytes())

    def _run_converted(self, inputs: torch.Tensor) -> Any:
        # Compiled code is traced with what it calls: there the process's own settings hold.
        fixed: AbstractContextManager[Any] = nullcontext()
        if not self.compile:
            fixed = FixedConvolutions(allow_tf32=self.precision != "float32")
        # Whatever autocast the caller is in; not being in one ourselves leaves its cache alone.
        dispatch = torch.autocast(self.device.type, enabled=False)
        entered = dispatch if torch.is_autocast_enabled(self.device.type) else nullcontext()
        try:
            with entered, fixed:
                return self._callable()(inputs)
        except DEVICE_FAILURES:
            raise
        except RuntimeError as error:
            if self.dtype == torch.float32 or "type" not in str(error):
                raise
            raise ConfigError(
                f"boundary model {self.name!r} does not run with weights in "
                f"{str(self.dtype).removeprefix('torch.')}, to which they are converted on "
                f"{str(self.device)!r}: {error}. Give dtype='float32', or let the network make its "
                "tensors in the dtype of its input"
            ) from error

    def _callable(self) -> Callable[..., Any]:
        module = self.module if self._converted is None else self._converted
        if not self.compile:
            return module
        if self._compiled is None:
            self._compiled = torch.compile(module)
        return self._compiled

    def __getstate__(self) -> dict[str, Any]:
        # Compiled code belongs to this process; a model that is converted is not pickled.
        return {**self.__dict__, "module": _Picklable.of(self.module), "_compiled": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        module = state["module"]
        self.module = module.rebuild() if isinstance(module, _Picklable) else module


@dataclass(frozen=True)
class _Picklable:
    """A transformers model as class, configuration and tensors.

    The model itself stops being picklable at its first call, which installs hooks that are local
    functions.
    """

    kind: Callable[[Any], nn.Module]
    config: Any
    state: dict[str, torch.Tensor]

    @staticmethod
    def of(module: nn.Module) -> nn.Module | _Picklable:
        transformers = sys.modules.get("transformers")
        if transformers is None or not isinstance(module, transformers.PreTrainedModel):
            return module
        return _Picklable(type(module), cast("Any", module).config, module.state_dict())

    def rebuild(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):  # the throw-away initial weights draw numbers
            module = self.kind(self.config)
        module.load_state_dict(self.state)
        return module.eval()
