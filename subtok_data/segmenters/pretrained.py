"""Models of transformers for segmenters: loaded with every weight, or refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from subtok_data.errors import WeightsError

__all__ = ["best_device", "load_pretrained", "model_hash"]

# Says where a model was read and by what, not what it computes.
_PASSING = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")


def load_pretrained(
    auto_model: Any, read_processor: Callable[[str, Any], Any], name: str | Path
) -> tuple[Any, Any]:
    """Load a model and its processor, safetensors only.

    transformers fills weights that a file lacks with random numbers and a warning; here they are
    an error.

    Parameters
    ----------
    auto_model : class
        Class of transformers with ``from_pretrained``.
    read_processor : callable
        Takes the name and the model, and reads the processor.
    name : str or Path
        Folder, or hub id.

    Returns
    -------
    model : nn.Module
        In eval mode.
    processor : object

    Raises
    ------
    WeightsError
        Nothing there, another kind of model, a pickle, missing or misshapen weights.
    """
    what = f"{auto_model.__name__} {str(name)!r}"
    try:
        model, found = auto_model.from_pretrained(
            str(name), output_loading_info=True, use_safetensors=True
        )
        processor = read_processor(str(name), model)
    except Exception as error:  # transformers raises many kinds, down to AttributeError
        reason = str(error).strip().split("\n")[0]
        raise WeightsError(
            f"{what} cannot be loaded: {reason}; expected a folder or hub id with config.json, "
            "*.safetensors and the processor's configuration, for a model of that kind"
        ) from error
    lacking = sorted([*found["missing_keys"], *(str(key) for key in found["mismatched_keys"])])
    if lacking:
        raise WeightsError(
            f"{what}: {len(lacking)} weights are missing or have another shape, the first are "
            f"{lacking[:3]}; give the weights of that architecture"
        )
    return model.eval(), processor


def best_device(device: str | torch.device | None) -> torch.device:
    """Return the device asked for; None picks a CUDA device if there is one.

    Examples
    --------
    >>> best_device("cpu").type
    'cpu'
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def model_hash(model: nn.Module, processor: Any) -> str:
    """Return the SHA-256 of architecture, weights (as float32) and processor options.

    Parameters
    ----------
    model : nn.Module
        With or without a ``config`` of transformers.
    processor : object
        With or without ``to_dict``.

    Examples
    --------
    >>> len(model_hash(nn.Linear(2, 1), None))
    64
    """
    digest = hashlib.sha256(type(model).__name__.encode())
    for described in (getattr(model, "config", None), processor):
        to_dict = getattr(described, "to_dict", dict[str, Any])
        options: dict[str, Any] = to_dict()
        options = {key: value for key, value in options.items() if key not in _PASSING}
        digest.update(json.dumps(options, sort_keys=True, default=str).encode())
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
