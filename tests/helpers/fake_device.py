"""A device that computes on the CPU, and counts how often the host would wait for it.

Its tensors say that they are on ``meta``, so that nothing takes them for CPU tensors; operations
between them and CPU tensors are refused as on a real device.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

DEVICE = torch.device("meta")

# Results whose size, or whose value in Python, the host must wait for.
WAITS = (
    "_local_scalar_dense",
    "_unique2",
    "bincount",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "unique_dim",
)
MIXES = ("_to_copy", "copy_")


class FakeTensor(torch.Tensor):
    """A CPU tensor in disguise."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> FakeTensor:
        self = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=DEVICE
        )
        self.inner = inner
        return self

    def __repr__(self) -> str:  # printing would read values
        return f"FakeTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        with FakeDevice():  # nobody counts
            return func(*args, **(kwargs or {}))


def fake(value: Any) -> Any:
    """Put tensors, or all of a mapping or module, on the fake device."""
    if isinstance(value, torch.nn.Module):
        for module in value.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    module._parameters[name] = torch.nn.Parameter(fake(parameter.detach()))
        return value
    return tree_map_only(torch.Tensor, lambda one: FakeTensor(one.clone()), value)


def real(tensor: torch.Tensor) -> torch.Tensor:
    """Return the values of a tensor of the fake device, for comparisons."""
    return tensor.inner if isinstance(tensor, FakeTensor) else tensor.detach()


class FakeDevice(TorchDispatchMode):
    """Runs what is on the fake device; ``waits`` counts what the host would have waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.uploads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = dict(kwargs or {})
        name = func.name().split("::")[1].split(".")[0]
        flat, spec = tree_flatten((args, kwargs))
        tensors = [one for one in flat if isinstance(one, torch.Tensor)]
        on_device = [isinstance(one, FakeTensor) for one in tensors]
        asked = kwargs.get("device")
        to_fake = asked is not None and torch.device(asked).type == "meta"
        if not any(on_device) and not to_fake:
            return func(*args, **kwargs)
        alien = [t for t, is_fake in zip(tensors, on_device, strict=True) if not is_fake and t.ndim]
        if alien and any(on_device) and name not in MIXES:
            raise RuntimeError(f"{name}: tensors on the fake device and on the CPU")
        stays = asked is None or to_fake
        if name in MIXES:
            stays = to_fake or (asked is None and on_device[0])
            if on_device[-1] and not stays:
                self.waits[f"{name} to the host"] += 1
            elif not on_device[-1] and stays and tensors[-1].ndim:
                self.uploads += 1
        elif name in WAITS:
            self.waits[name] += 1
        elif name.startswith("index") and any(t.dtype == torch.bool for t in tensors[1:]):
            self.waits[f"{name} by a mask"] += 1
        inner = [one.inner if isinstance(one, FakeTensor) else one for one in flat]
        args, kwargs = tree_unflatten(inner, spec)
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        if name == "_to_copy":
            kwargs["non_blocking"] = False
        found = func(*args, **kwargs)
        if name.endswith("_") and isinstance(args[0], torch.Tensor):
            return flat[0]
        if name == "_to_copy" and found is args[0]:
            found = found.clone()
        return tree_map_only(torch.Tensor, FakeTensor, found) if stays else found
