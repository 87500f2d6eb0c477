"""A small boundary network: EfficientNet-Lite0 encoder and a light top-down decoder.

The encoder is EfficientNet-Lite0 (no squeeze-and-excite, ReLU6; Tan and Le, arXiv 1905.11946, and
the "lite" variant of the TensorFlow TPU repository). The decoder is SegFormer's all-MLP head
(arXiv 2105.15203, section 3.2) with its linear maps folded into one a stage and applied before
upsampling, and a depthwise 3 x 3 convolution after each upsampling, which puts the edge in its
place. The last map predicts 2 x 2 sub-pixels, so logits come at 1/2 side for the price of 1/4.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from subtok_data.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LiteBoundaryNet", "LiteConfig"]

#: kernel, stride, expansion, output channels, repeats
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)

#: Stages whose output the decoder reads: sides 1/2, 1/4, 1/8, 1/16, 1/32.
_TAPS = (0, 1, 2, 4, 6)
_STEM = 32
_BN_EPS = 1e-3


@dataclass(frozen=True)
class LiteConfig:
    """Shape and input of the network.

    Attributes
    ----------
    decoder_channels : int
        Width of the decoder.
    image_mean, image_std : tuple of float
        Normalisation of RGB in [0, 1], as the ImageNet weights expect it: (x − 127) / 128.
    """

    decoder_channels: int = 64
    image_mean: tuple[float, float, float] = (127 / 255, 127 / 255, 127 / 255)
    image_std: tuple[float, float, float] = (128 / 255, 128 / 255, 128 / 255)

    def __post_init__(self) -> None:
        if self.decoder_channels < 8:
            raise ConfigError(f"decoder_channels is {self.decoder_channels}; it must be 8 or more")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``config.json``, with ``model_type``."""
        return {"model_type": "subtok-lite", **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LiteConfig:
        """Inverse of `to_dict`; keys that are not fields are ignored."""
        return cls(
            decoder_channels=int(values["decoder_channels"]),
            image_mean=_triple(values["image_mean"]),
            image_std=_triple(values["image_std"]),
        )


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(v) for v in values)
    return red, green, blue


class _SameConv(nn.Conv2d):
    """Convolution with TensorFlow's padding: an odd pixel of padding goes right and down."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.stride[0] == 1:
            return super().forward(input)
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads: list[int] = []
        for side in (input.shape[-1], input.shape[-2]):
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(input, pads), self.weight, self.bias, self.stride, 0, 1, self.groups)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    padding = kernel // 2 if stride == 1 else 0
    return _SameConv(inputs, outputs, kernel, stride, padding=padding, groups=groups, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_BN_EPS, momentum=0.01)


class _Block(nn.Module):
    """Inverted residual block; attribute order is the key order of the published weights."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = inputs * expand
        layers: list[nn.Module] = []
        if expand != 1:
            layers += [_conv(inputs, wide, 1), _norm(wide), nn.ReLU6(inplace=True)]
        layers += [
            _conv(wide, wide, kernel, stride, wide),
            _norm(wide),
            nn.ReLU6(inplace=True),
            _conv(wide, outputs, 1),
            _norm(outputs),
        ]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layers(x)
        return x + y if self.residual else y


class _Refine(nn.Module):
    """Depthwise 3 x 3, then pointwise, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = _norm(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.pointwise(torch.relu(self.norm(self.depthwise(x))))


class LiteBoundaryNet(nn.Module):
    """Logit of the boundary probability at half the input's side.

    Parameters
    ----------
    config : LiteConfig, optional
        Width and normalisation.

    Examples
    --------
    >>> net = LiteBoundaryNet().eval()
    >>> with torch.inference_mode():
    ...     tuple(net(torch.zeros(1, 3, 64, 96)).shape)
    (1, 1, 32, 48)
    """

    def __init__(self, config: LiteConfig | None = None) -> None:
        super().__init__()
        self.config = config or LiteConfig()
        self.stem = nn.Sequential(_conv(3, _STEM, 3, 2), _norm(_STEM), nn.ReLU6(inplace=True))
        stages: list[nn.Module] = []
        inputs = _STEM
        for kernel, stride, expand, outputs, repeats in _STAGES:
            blocks: list[nn.Module] = []
            for index in range(repeats):
                blocks.append(_Block(inputs, outputs, kernel, stride if index == 0 else 1, expand))
                inputs = outputs
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        width = self.config.decoder_channels
        # Side 1/2 enters as 2 x 2 pixels side by side: a quarter of the work of a map at 1/2.
        channels = [_STAGES[_TAPS[0]][3] * 4, *(_STAGES[tap][3] for tap in _TAPS[1:])]
        self.project = nn.ModuleList(nn.Conv2d(c, width, 1, bias=False) for c in channels)
        self.refine = nn.ModuleList(_Refine(width) for _ in range(4))
        self.norm = _norm(width)
        self.classify = nn.Conv2d(width, 4, 1)
        # Boundaries cover a few per cent of the pixels: start at that rate, not at one half.
        nn.init.constant_(_bias(self.classify), -3.0)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised RGB (B, 3, H, W), sides multiples of 32, to logits (B, 1, H/2, W/2)."""
        features: list[torch.Tensor] = []
        x = self.stem(pixels)
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in _TAPS:
                features.append(x)
        features[0] = F.pixel_unshuffle(features[0], 2)
        maps = [layer(f) for layer, f in zip(self.project, features, strict=True)]
        x = self.refine[3](maps[4])
        for level in (3, 2, 1):
            x = F.interpolate(x, maps[level].shape[-2:], mode="bilinear", align_corners=False)
            x = x + maps[level] + (maps[0] if level == 1 else 0)
            x = self.refine[level - 1](x)
        return F.pixel_shuffle(self.classify(torch.relu(self.norm(x))), 2)

    def foldable(self) -> list[tuple[str, str]]:
        """Names of convolutions, each with the BatchNorm that is all that reads it."""
        found: list[tuple[str, str]] = []
        for name, part in self.named_modules():
            if isinstance(part, _Refine):
                found.append((f"{name}.depthwise", f"{name}.norm"))
            elif isinstance(part, nn.Sequential):
                found += [
                    (f"{name}.{at}", f"{name}.{at + 1}")
                    for at, (one, two) in enumerate(pairwise(part))
                    if isinstance(one, nn.Conv2d) and isinstance(two, nn.BatchNorm2d)
                ]
        return found

    def load_imagenet(self, state: Mapping[str, torch.Tensor]) -> None:
        """Set the encoder from EfficientNet-Lite0 classification weights, matched by order.

        Parameters
        ----------
        state : mapping
            State dict whose encoder entries come in the order of the layers (every published
            EfficientNet-Lite0 does); what follows the last block is ignored.

        Raises
        ------
        WeightsError
            A shape differs.
        """
        own = {
            key: value
            for part, module in (("stem", self.stem), ("stages", self.stages))
            for key, value in module.state_dict(prefix=part + ".").items()
            if not key.endswith("num_batches_tracked")
        }
        given = [(k, v) for k, v in state.items() if not k.endswith("num_batches_tracked")]
        if len(given) < len(own):
            raise WeightsError(
                f"the encoder has {len(own)} tensors, the given weights only {len(given)}"
            )
        loaded: dict[str, torch.Tensor] = {}
        for (key, value), (name, tensor) in zip(own.items(), given, strict=False):
            if value.shape != tensor.shape:
                raise WeightsError(
                    f"{name} {tuple(tensor.shape)} does not fit {key} {tuple(value.shape)}: "
                    "these are not EfficientNet-Lite0 weights in layer order"
                )
            loaded[key] = tensor
        self.load_state_dict(loaded, strict=False)


def _bias(layer: nn.Conv2d) -> torch.Tensor:
    if layer.bias is None:
        raise ConfigError("the last layer has no bias")
    return layer.bias
