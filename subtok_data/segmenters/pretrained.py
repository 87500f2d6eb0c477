"""Segmenters and prompters with a model: loaded on first use, moved, told apart and saved."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from subtok_data.devices import refuse_in_worker, refuse_to_pickle, resolve_device
from subtok_data.errors import ConfigError, WeightsError
from subtok_data.segmenters.base import Component
from subtok_data.transformers_io import read_model

__all__ = ["ModelComponent", "TransformersModel", "load_pretrained", "model_hash"]

# Says where a model was read and by what, not what it computes.
_PASSING = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")


def load_pretrained(
    auto_model: Any, read_processor: Callable[[str, Any], Any], name: str | Path
) -> tuple[Any, Any]:
    """Load a model of transformers and its processor.

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
        Nothing there, another kind of model, a pickle, missing or misshapen weights, or a model
        that needs code of its own.
    """
    try:
        model = read_model(auto_model, name)
        return model, read_processor(str(name), model)
    except WeightsError:
        raise
    except Exception as error:  # transformers raises many kinds, down to AttributeError
        reason = str(error).strip().split("\n")[0]
        raise WeightsError(
            f"{auto_model.__name__} {str(name)!r} cannot be loaded: {reason}; expected a folder or "
            "hub id with config.json, *.safetensors and the processor's configuration, for a model "
            "of that kind"
        ) from error


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


class TransformersModel:
    """A model of transformers with its processor.

    Parameters
    ----------
    model : nn.Module
        In eval mode.
    processor : object
        Makes the model's inputs.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.processor = processor

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.model.device

    def to(self, device: str | torch.device) -> None:
        """Move the model to a device."""
        self.model.to(device)

    def identity(self) -> str:
        """Return the SHA-256 of model and processor."""
        return model_hash(self.model, self.processor)

    def save(self, folder: Path) -> None:
        """Write model and processor."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)


class ModelComponent(Component):
    """A segmenter or prompter with a model that is loaded on first use.

    What :meth:`_open` and :meth:`_adopt` return has ``device``, ``to``, ``identity`` and ``save``,
    as :class:`TransformersModel`; an object of the user's own may lack them.

    Parameters
    ----------
    model : str, Path, nn.Module or object
        A folder or hub id, loaded at first use; a model, with ``processor``; or what wraps one.
    processor : object, optional
        Image processor, for a model that is given as a module.
    device : str or torch.device, optional
        Where the model runs; None picks a CUDA device if there is one.

    Raises
    ------
    ConfigError
        A module without its processor, or a processor without its module.
    """

    folder: ClassVar[str]
    """Where a saved tokenizer has the model."""

    def __init__(self, model: Any, processor: Any, device: str | torch.device | None) -> None:
        if isinstance(model, nn.Module) == (processor is None):
            raise ConfigError(
                "give a folder or hub id alone, or a module together with its image processor: "
                f"{self.class_name}({type(model).__name__}, processor={type(processor).__name__})"
            )
        self._source: str | Path | None = model if isinstance(model, str | Path) else None
        self._device = device
        self._hash: str | None = None
        self._opened: Any = None
        if isinstance(model, nn.Module):
            self._opened = self._adopt(model.eval().to(resolve_device(device)), processor)
        elif self._source is None:
            self._opened = model

    def _open(self, source: str | Path, device: torch.device) -> Any:
        """Load the model of a folder or hub id onto a device."""
        raise NotImplementedError

    def _adopt(self, module: nn.Module, processor: Any) -> Any:
        """Wrap a module that was given."""
        return TransformersModel(module, processor)

    def _loaded(self) -> Any:
        """Return the model to use: loads it, and refuses an accelerator in a DataLoader worker."""
        if self._opened is None:
            self._opened = self._open(self._source or "", resolve_device(self._device))
        refuse_in_worker(self.device)
        return self._opened

    def load(self) -> None:
        """Load the model now; otherwise the first image loads it."""
        self._loaded()

    @property
    def model(self) -> Any:
        """The model, loaded on first use; None if there is none behind an object of your own."""
        return getattr(self._loaded(), "model", None)

    @property
    def device(self) -> torch.device:
        """Where the model runs, or is going to."""
        if self._opened is None:
            return resolve_device(self._device)
        return torch.device(getattr(self._opened, "device", "cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the model."""
        found = getattr(self.model, "dtype", None)
        return found if isinstance(found, torch.dtype) else torch.float32

    def to(self, device: str | torch.device) -> Self:
        """Move the model to a device; ``"cuda"`` is the current one of the caller."""
        self._device = resolve_device(device)
        if hasattr(self._opened, "to"):
            self._opened.to(self._device)
        return self

    def _saved(self) -> Any:
        found = self._loaded()
        if not (hasattr(found, "identity") and hasattr(found, "save")):
            raise ConfigError(
                f"{type(found).__name__} cannot be saved or told apart from others: give it "
                f"identity() and save(folder), or give {self.class_name} a model that the "
                "library loads"
            )
        return found

    def model_hash(self) -> str:
        """Return the identity of model and processor, SHA-256."""
        found = self._saved()
        if self._hash is None:
            self._hash = str(found.identity())
        return self._hash

    def save_model(self, folder: Path) -> None:
        """Write model and processor below ``folder``."""
        self._saved().save(folder / self.folder)

    def __getstate__(self) -> dict[str, Any]:
        if self._opened is not None:
            refuse_to_pickle(self, self.device)
        return self.__dict__

    def _described(self) -> list[str]:
        model = self.model if self._source is None else None
        what = type(model).__name__ if self._source is None else repr(str(self._source))
        where = self._device if self._opened is None else self.device
        return [what] if where is None else [what, f"device={str(where)!r}"]
