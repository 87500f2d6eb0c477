"""A network as a GPU runs it: BatchNorm folded, weights in half precision and channels last.

Autocast would cast all weights again in every forward, and when it is left in one thread it empties
a cache of casts that training uses in another; cuDNN's settings belong to the whole process too. So
a copy of the network is converted once, and its convolutions are told how to compute in each call.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

__all__ = ["FixedConvolutions", "Foldable", "inference_copy"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@runtime_checkable
class Foldable(Protocol):
    """A network that knows which of its BatchNorms can be folded."""

    def foldable(self) -> Sequence[tuple[str, str]]:
        """Names of convolutions, each with the BatchNorm that is all that reads it."""
        ...


def inference_copy(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Copy a network for inference in one precision.

    Parameters
    ----------
    module : nn.Module
        In eval mode; stays as it is. BatchNorms are folded into convolutions where it is
        `Foldable`, in float64.
    dtype : torch.dtype
        Of weights and buffers. BatchNorms that remain keep float32, since their variances leave
        the range of float16.

    Returns
    -------
    nn.Module
        On the same device, in eval mode, without gradients, channels last.

    Examples
    --------
    >>> from subtok_data.boundary import LiteBoundaryNet
    >>> net = LiteBoundaryNet().eval()
    >>> half = inference_copy(net, torch.bfloat16)
    >>> sum(isinstance(one, nn.BatchNorm2d) for one in net.modules())
    53
    >>> sum(isinstance(one, nn.BatchNorm2d) for one in half.modules())
    1
    """
    copied = copy.deepcopy(module).requires_grad_(False)
    if isinstance(copied, Foldable):
        for convolution, norm in copied.foldable():
            _fold(
                cast("nn.Conv2d", copied.get_submodule(convolution)),
                cast("nn.BatchNorm2d", copied.get_submodule(norm)),
            )
            copied.set_submodule(norm, nn.Identity())
    for part in copied.modules():
        if not isinstance(part, _NORMS):
            for values in (part.parameters(recurse=False), part.buffers(recurse=False)):
                for tensor in values:
                    if tensor.is_floating_point():
                        tensor.data = tensor.data.to(dtype)
    return copied.to(memory_format=torch.channels_last)


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise ValueError("a BatchNorm without running statistics cannot be folded")
    weight = convolution.weight
    scale = (variance.double() + norm.eps).rsqrt()
    shift = -mean.double() * scale
    if convolution.bias is not None:
        shift = shift + convolution.bias.double() * scale
    if norm.affine:
        scale = scale * norm.weight.double()
        shift = shift * norm.weight.double() + norm.bias.double()
    folded = weight.double() * scale.view(-1, 1, 1, 1)
    convolution.weight = nn.Parameter(folded.to(weight.dtype), requires_grad=False)
    convolution.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=False)


class FixedConvolutions(TorchFunctionMode):
    """Let cuDNN choose convolutions by shape and not by timing, so that runs give equal bits.

    It holds in the thread that enters it, for calls of ``conv2d`` and ``conv_transpose2d``. The
    settings of the process (``torch.backends.cudnn``) are neither used nor changed.

    Parameters
    ----------
    allow_tf32 : bool
        Whether float32 convolutions may round their inputs to TF32's 10 bits.

    Examples
    --------
    >>> with FixedConvolutions(allow_tf32=False):
    ...     nn.Conv2d(3, 8, 3)(torch.zeros(1, 3, 16, 16)).shape
    torch.Size([1, 8, 14, 14])
    """

    def __init__(self, allow_tf32: bool) -> None:
        super().__init__()
        self._allow_tf32 = allow_tf32

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replace convolutions of batches; leave all else alone."""
        del types
        named = kwargs or {}
        if func is torch.conv2d and _is_batch(args, named):
            return self._conv2d(*args, **named)
        if func is torch.conv_transpose2d and _is_batch(args, named):
            return self._conv_transpose2d(*args, **named)
        return func(*args, **named)

    def _conv2d(
        self,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> torch.Tensor:
        dilation = _pair(dilation)
        if padding == "same":
            spans = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
            pads = [part for span in reversed(spans) for part in (span // 2, span - span // 2)]
            input, padding = F.pad(input, pads), 0
        padding = 0 if padding == "valid" else padding
        return self._convolve(
            input, weight, bias, _pair(stride), _pair(padding), dilation, False, [0, 0], groups
        )

    def _conv_transpose2d(
        self,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> torch.Tensor:
        more = _pair(output_padding)
        return self._convolve(
            input, weight, bias, _pair(stride), _pair(padding), _pair(dilation), True, more, groups
        )

    def _convolve(self, *arguments: Any) -> torch.Tensor:
        # benchmark, deterministic, cudnn_enabled, allow_tf32: conv2d takes them from the process.
        enabled = torch.backends.cudnn.enabled
        return torch.ops.aten._convolution(*arguments, False, True, enabled, self._allow_tf32)


def _is_batch(args: tuple[Any, ...], named: dict[str, Any]) -> bool:
    given = args[0] if args else named.get("input")
    return isinstance(given, torch.Tensor) and given.ndim == 4


def _pair(value: Any) -> list[int]:
    pair = list(value) if isinstance(value, Sequence) else [value]
    return pair * 2 if len(pair) == 1 else pair
