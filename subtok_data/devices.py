"""Where models run, and in which precision: one rule for every segmenter and prompter."""

from __future__ import annotations

import os
from typing import Literal

import torch
from torch.utils.data import get_worker_info

from subtok_data.arguments import check_choice, describe
from subtok_data.errors import ConfigError, SubtokError

__all__ = [
    "DEVICE_FAILURES",
    "DeviceError",
    "DeviceMemoryError",
    "Precision",
    "check_device",
    "compute_dtype",
    "refuse_in_worker",
    "refuse_to_pickle",
    "resolve_device",
]

if hasattr(os, "register_at_fork"):
    # The threads that torch computes with do not exist in a forked child, which would wait for them
    # for ever. Torch does the same in DataLoader workers; others fork too, datasets.map for one.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))

Precision = Literal["auto", "float32", "tf32", "bfloat16", "float16"]
_DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class DeviceError(SubtokError, RuntimeError):
    """A device is used where it must not be: an accelerator inside a DataLoader worker."""


class DeviceMemoryError(SubtokError, torch.OutOfMemoryError):
    """The memory of a device does not hold what one image needs; the message says what would."""


DEVICE_FAILURES: tuple[type[Exception], ...] = (
    torch.OutOfMemoryError,
    *((torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()),
)
"""What says nothing about an image: a device without memory, or one that is lost."""


def check_device(device: str | int | torch.device) -> torch.device:
    """Read a device, and raise unless torch has it; its index is not chosen yet.

    Inside a DataLoader worker accelerators are not asked for: what uses one there is refused by
    :func:`refuse_in_worker`.

    Raises
    ------
    ConfigError
        No device of that name, or torch finds none.

    Examples
    --------
    >>> check_device("gpu")
    Traceback (most recent call last):
    ...
    subtok_data.errors.ConfigError: device='gpu': torch knows no such device; give 'cuda', ...
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        given = repr(device) if isinstance(device, str | int) else describe(device)
        raise ConfigError(
            f"device={given}: torch knows no such device; give 'cuda', 'cuda:1' or 'cpu', or leave "
            "it out"
        ) from error
    if found.type != "cuda" or get_worker_info() is not None:
        return found
    if not torch.cuda.is_available():
        raise ConfigError(f"device={str(device)!r}, but torch finds no CUDA device: use 'cpu'")
    count = torch.cuda.device_count()
    if str(found) != "cuda" and found.index >= count:
        raise ConfigError(f"device={str(device)!r}, but torch finds {count}, 'cuda:0' and up")
    return found


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Resolve the device of a model: the given one, or the current CUDA device, or the CPU.

    Inside a DataLoader worker, None is the CPU, and an accelerator is refused.

    Parameters
    ----------
    device : str, torch.device or None
        ``"cuda"`` becomes the current device of the caller, such as ``"cuda:1"``.

    Returns
    -------
    torch.device
        With an index on CUDA.

    Raises
    ------
    DeviceError
        An accelerator, inside a DataLoader worker.
    ConfigError
        An unknown device, or one that torch does not find.

    Examples
    --------
    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if device is None:
        if get_worker_info() is not None or not torch.cuda.is_available():
            return torch.device("cpu")
        device = "cuda"
    found = check_device(device)
    refuse_in_worker(found)
    if found.type != "cuda":
        return found
    # "cuda" alone would mean another device after every torch.cuda.set_device.
    return torch.device("cuda", torch.cuda.current_device()) if str(found) == "cuda" else found


def refuse_in_worker(device: torch.device) -> None:
    """Raise if an accelerator is about to be used inside a DataLoader worker.

    Raises
    ------
    DeviceError
        With what to do instead.

    Examples
    --------
    >>> refuse_in_worker(torch.device("cuda"))  # the main process may
    """
    info = get_worker_info()
    if info is None or device.type == "cpu":
        return
    raise DeviceError(
        f"a model on {str(device)!r} was called inside DataLoader worker {info.id} "
        f"(process {os.getpid()}): workers share no device with the main process. Tokenize in the "
        "main process: use SubobjectCollator as collate_fn, or SubobjectLoader; their workers "
        "return a PendingBatch that is finished there. Or use num_workers=0, or device='cpu'."
    )


def refuse_to_pickle(owner: object, device: torch.device) -> None:
    """Raise if a model on an accelerator is about to be pickled, say for a DataLoader worker.

    Raises
    ------
    DeviceError
        With what to do instead.

    Examples
    --------
    >>> refuse_to_pickle("a model", torch.device("cpu"))
    """
    if device.type != "cpu":
        raise DeviceError(
            f"{owner!r} is not pickled: a copy of a model on {str(device)!r} in another process "
            "would take device memory there. Workers need no model (see SubobjectCollator); to "
            "send one, move it with .to('cpu') first."
        )


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Dtype of the network's matrix products; logits and what follows are always float32.

    ``"auto"`` is float16 on CUDA, bfloat16 on a CPU with bfloat16 instructions (AVX-512 BF16 or
    AMX), float32 elsewhere. Float16 rounds eight times finer than bfloat16 at the same speed.
    ``"tf32"`` is float32 whose convolutions may round their inputs to 10 bits on CUDA, as torch's
    own do by default; those of ``"float32"`` do not.

    Examples
    --------
    >>> compute_dtype("float32", torch.device("cpu"))
    torch.float32
    """
    if precision != "auto":
        check_choice("dtype", precision, ("auto", *_DTYPES))
        return _DTYPES[precision]
    if device.type == "cuda":
        return torch.float16
    if device.type == "cpu" and _cpu_has_bfloat16():
        return torch.bfloat16
    return torch.float32


def _cpu_has_bfloat16() -> bool:
    # torch computes bfloat16 on every CPU, but slower than float32 where it must emulate it. The
    # probes have no public name in all versions admitted.
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, probe, bool)()) for probe in probes)
