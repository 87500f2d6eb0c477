"""Dense features of images from whatever encoder the user has."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from subtok_data.errors import ConfigError

__all__ = ["FeatureEncoder"]


def _patch_size(module: nn.Module) -> int | None:
    """Pixels per patch that the encoder states, where it states them."""
    config: Any = getattr(module, "config", None)
    # timm keeps it in patch_embed, transformers in the configuration.
    size: Any = getattr(config, "patch_size", None)
    if hasattr(config, "depths"):  # stages: the patch is only where the first one begins
        return None
    if size is None:
        size = getattr(getattr(module, "patch_embed", None), "patch_size", None)
    if isinstance(size, (tuple, list)):
        return int(size[0]) if size and size[0] == size[-1] else None
    return int(size) if isinstance(size, int) else None


class FeatureEncoder(nn.Module):
    """One interface to feature maps: (I, 3, H, W) pixels to (I, C, h, w) features.

    Understands what encoders return: a tensor (I, C, h, w); a list of feature maps (timm's
    ``features_only``); an object with ``feature_maps`` (transformers ``AutoBackbone``),
    ``last_hidden_state`` (a vision transformer's tokens, class and register tokens first) or
    ``latent_dist`` (a diffusers VAE, of which the mode is taken, so that the result is no random
    sample). Without a module the pixels are the features.

    Parameters
    ----------
    module : nn.Module, optional
        The encoder. A diffusers VAE expects pixels in [-1, 1]: normalise with mean 0.5, std 0.5.
    stage : int
        Which of several feature maps; the last by default.
    frozen : bool
        No gradient and evaluation mode, also after ``.train()``.
    stride : int, optional
        Pixels per cell; by default the encoder's patch size where it states one. Pass
        ``encoder.stride`` on to :class:`~subtok_data.nn.TokenEmbedding`.

    Examples
    --------
    >>> encoder = FeatureEncoder(nn.Conv2d(3, 8, 4, stride=4), frozen=True)
    >>> features = encoder(torch.zeros(1, 3, 32, 16))
    >>> tuple(features.shape), features.requires_grad
    ((1, 8, 8, 4), False)
    >>> FeatureEncoder()(torch.zeros(1, 3, 32, 16)).shape[1]
    3
    """

    def __init__(
        self,
        module: nn.Module | None = None,
        *,
        stage: int = -1,
        frozen: bool = False,
        stride: int | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self.stage = stage
        self.frozen = frozen
        self.stride = stride if stride is not None or module is None else _patch_size(module)
        if frozen and module is not None:
            module.requires_grad_(False)
            module.eval()

    def train(self, mode: bool = True) -> FeatureEncoder:
        """Switch between training and evaluation; a frozen encoder stays in evaluation."""
        super().train(mode)
        if self.frozen and self.module is not None:
            self.module.eval()
        return self

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Features (I, C, h, w) of normalised pixels (I, 3, H, W)."""
        if self.module is None:
            return pixel_values.float() if not pixel_values.is_floating_point() else pixel_values
        with torch.no_grad() if self.frozen else nullcontext():
            encode = getattr(self.module, "encode", None)
            output: Any = encode(pixel_values) if callable(encode) else self.module(pixel_values)
            return self._feature_map(output, pixel_values)

    def _feature_map(self, output: Any, pixel_values: Tensor) -> Tensor:
        if isinstance(output, Tensor):
            return self._as_map(output, pixel_values)
        if isinstance(output, Mapping) or hasattr(output, "__dict__"):
            for name in ("feature_maps", "latent_dist", "last_hidden_state"):
                found = getattr(output, name, None)
                if found is not None:
                    return self._feature_map(found, pixel_values)
        mode = getattr(output, "mode", None)
        if callable(mode):
            return cast(Tensor, mode())
        if isinstance(output, (list, tuple)) and output:
            return self._as_map(cast(Tensor, output[self.stage]), pixel_values)
        raise ConfigError(
            f"the encoder returned {type(output).__name__}; expected a tensor (I, C, h, w), a list "
            f"of them, or an output with feature_maps, last_hidden_state or latent_dist"
        )

    def _as_map(self, features: Tensor, pixel_values: Tensor) -> Tensor:
        if features.ndim == 4:
            return features
        if features.ndim != 3 or self.stride is None:
            raise ConfigError(
                f"the encoder returned a tensor of shape {tuple(features.shape)}; a sequence "
                f"(I, tokens, C) can be laid out only with stride= (its patch size)"
            )
        height, width = (side // self.stride for side in pixel_values.shape[-2:])
        prefix = features.shape[1] - height * width
        if prefix < 0:
            raise ConfigError(
                f"the encoder returned {features.shape[1]} tokens for {height}x{width} patches of "
                f"{self.stride} pixels: check stride="
            )
        grid = features[:, prefix:].transpose(1, 2)
        return grid.reshape(features.shape[0], -1, height, width)
