"""Boundary networks to train: normalised pixels in, logits out."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from subtok_data.boundary import (
    IMAGENET_NORMALISATION,
    LiteBoundaryNet,
    Normalisation,
    load_network,
    save_network,
)
from subtok_data.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Network", "build_network"]

#: Name prefixes of the encoder's parameters.
_ENCODER = {"lite": ("stem.", "stages."), "segformer": ("segformer.",)}
_LAST_BIAS = {"lite": "classify.bias", "segformer": "decode_head.classifier.bias"}


@dataclass(frozen=True)
class Network:
    """A network to train.

    Attributes
    ----------
    module : nn.Module
        (B, 3, H, W) float32, normalised → logits (B, 1, h, w), or an output with ``.logits``.
    mean, std : tuple of float
        Normalisation of RGB in [0, 1].
    encoder : tuple of str
        Name prefixes of the encoder's parameters.
    last_bias : str
        Name of the bias of the logits.
    """

    module: nn.Module
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    encoder: tuple[str, ...]
    last_bias: str

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Split the parameters to train into those of the encoder and the rest."""
        named = [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]
        return (
            [p for name, p in named if name.startswith(self.encoder)],
            [p for name, p in named if not name.startswith(self.encoder)],
        )

    def freeze(self, stages: int) -> None:
        """Keep the weights of the stem and of so many stages of a "lite" encoder; 0 keeps none."""
        kept = ("stem.", *(f"stages.{stage}." for stage in range(stages))) if stages else ()
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(not name.startswith(kept))

    def encoder_norms(self) -> Iterator[nn.Module]:
        """Yield the batch normalisations of the encoder."""
        for name, module in self.module.named_modules():
            if name.startswith(self.encoder) and isinstance(module, nn.BatchNorm2d):
                yield module

    def save(self, folder: Path, state: dict[str, torch.Tensor], logit_shift: float = 0.0) -> None:
        """Write `state` in float16 and the configuration, as `BoundaryModel` loads them."""
        module = copy.deepcopy(self.module).cpu()
        module.load_state_dict(state)
        with torch.no_grad():
            module.get_parameter(self.last_bias).add_(logit_shift)
        save_network(module.half().eval(), Normalisation(self.mean, self.std), folder)


def build_network(
    architecture: str, init: str | Path | None = None, *, logit_shift: float = 0.0
) -> Network:
    """Build a network with random weights, or with those of a file.

    Parameters
    ----------
    architecture : {"lite", "segformer"}
        `LiteBoundaryNet`, or SegFormer-b0 with one output channel.
    init : path, optional
        For ``"lite"``: EfficientNet-Lite0 classification weights (``.safetensors`` or ``.pth``; of
        the latter only tensors are read). For either: a folder that `BoundaryModel` loads, to go on
        from.
    logit_shift : float
        What was added to the logits when that folder was saved; it is taken off.

    Raises
    ------
    ConfigError
        An unknown architecture.
    WeightsError
        Weights that do not fit.

    Examples
    --------
    >>> build_network("lite").mean[0]
    0.4980392156862745
    """
    if architecture not in _ENCODER:
        raise ConfigError(f"no architecture {architecture!r}; there are {', '.join(_ENCODER)}")
    if init is not None and Path(init).is_dir():
        loaded = load_network(init)
        if isinstance(loaded.module, LiteBoundaryNet) != (architecture == "lite"):
            raise WeightsError(f"{init} does not hold a network of the architecture {architecture}")
        mean, std = loaded.normalisation.mean, loaded.normalisation.std
        last = _LAST_BIAS[architecture]
        with torch.no_grad():
            loaded.module.get_parameter(last).sub_(logit_shift)
        return Network(loaded.module, mean, std, _ENCODER[architecture], last)
    if architecture == "lite":
        net = LiteBoundaryNet()
        if init is not None:
            net.load_imagenet(_read_state(Path(init)))
        config = net.config
        return Network(
            net,
            config.image_mean,
            config.image_std,
            _ENCODER[architecture],
            _LAST_BIAS[architecture],
        )
    if init is not None:
        raise WeightsError(
            f"{init}: SegFormer starts from a folder with config.json or from nothing"
        )
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    # The default configuration is b0's; a decoder of 256 channels is b0's too.
    shape: Any = SegformerConfig
    segformer = SegformerForSemanticSegmentation(shape(num_labels=1))
    norm = IMAGENET_NORMALISATION
    return Network(
        cast(nn.Module, segformer),
        norm.mean,
        norm.std,
        _ENCODER[architecture],
        _LAST_BIAS[architecture],
    )


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise WeightsError(f"{path} is missing")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    try:
        # Tensors only: nothing in the file is executed.
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(f"{path} does not hold plain weights: {error}") from error
    return state
