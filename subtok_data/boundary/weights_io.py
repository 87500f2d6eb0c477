"""Boundary networks in folders: ``config.json``, safetensors, ``preprocessor_config.json``.

A model that runs large images in tiles, images at several scales or on coarser canvases also has
``maps.json``: maps depend on all of them.

Weights are read from safetensors only. A pickle can run any code when it is opened, so it is
refused, and from a hub it is not even downloaded.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from torch import nn

from subtok_data.boundary.padding import CANVAS_MULTIPLE
from subtok_data.errors import WeightsError
from subtok_data.hub import download_folder, is_hub_id
from subtok_data.transformers_io import read_model, read_pretrained

__all__ = [
    "DEFAULT_OVERLAP",
    "DEFAULT_WEIGHTS",
    "IMAGENET_NORMALISATION",
    "LoadedNetwork",
    "MapOptions",
    "Normalisation",
    "load_network",
    "save_network",
]

DEFAULT_OVERLAP = 128
"""Overlap of tiles in pixels."""

#: Folder of the packaged weights that are used when none are named.
DEFAULT_WEIGHTS = Path(__file__).parent / "weights" / "lite1"
_OPTIONS_FILE = "maps.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_HOW_TO_CONVERT = (
    "A pickle may run any code when it is opened and is never loaded. To convert one that you "
    "trust: AutoModelForSemanticSegmentation.from_pretrained(folder, use_safetensors=False)"
    ".save_pretrained(new_folder)"
)


@dataclass(frozen=True)
class Normalisation:
    """What turns RGB in [0, 1] into the network's input: ``(rgb - mean) / std``.

    Attributes
    ----------
    mean, std : tuple of 3 float
        Per channel.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(math.isfinite(value) for value in values):
                raise WeightsError(f"image {name} {values!r} must be three finite numbers")
        if min(self.std) <= 0:
            raise WeightsError(f"image std {self.std!r} must be above 0")


IMAGENET_NORMALISATION = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class MapOptions:
    """What decides about a map beside the network.

    Attributes
    ----------
    tile : int or None
        Side in pixels of the tiles that large images are run in; None runs every image as a whole.
    overlap : int
        Least overlap of neighbouring tiles in pixels.
    scales : tuple of float
        Multiples of the image's size.
    canvas_step : int
        Of which the sides of a canvas are multiples, in pixels.
    """

    tile: int | None = None
    overlap: int = DEFAULT_OVERLAP
    scales: tuple[float, ...] = (1.0,)
    canvas_step: int = CANVAS_MULTIPLE


@dataclass(frozen=True)
class LoadedNetwork:
    """A network, how its input is normalised, the name to show for it, and how it is run."""

    module: nn.Module
    normalisation: Normalisation
    name: str
    options: MapOptions


@runtime_checkable
class _SavesItself(Protocol):
    def save_pretrained(self, save_directory: str) -> object: ...


def load_network(name_or_folder: str | os.PathLike[str] | None) -> LoadedNetwork:
    """Load a boundary network in float32 on the CPU.

    Parameters
    ----------
    name_or_folder : str or path, optional
        None for the packaged weights; a local folder; or a hub id such as
        ``"chendelong/DirectSAM-b0-1024px-sa1b-2ep-1017"``, fetched into the Hugging Face cache.

    Returns
    -------
    LoadedNetwork

    Raises
    ------
    WeightsError
        Nothing there, no safetensors, an unknown architecture, more than one output channel, or
        weights that do not fit it.

    Examples
    --------
    >>> load_network(None).name
    'lite1'
    """
    folder, name = _folder_of(name_or_folder)
    _check_files(folder, name)
    config = _read_json(folder / "config.json", name)
    kind = config.get("model_type")
    load = _FAMILIES.get(str(kind), _load_transformers)
    try:
        module = load(folder, config)
    except WeightsError as error:
        raise WeightsError(f"{name}: {error}") from error.__cause__
    except Exception as error:
        # Readers of configurations and tensors raise almost anything on files that do not fit.
        raise WeightsError(
            f"{name}: model_type {kind!r} cannot be loaded from {str(folder)!r}: {error}"
        ) from error
    return LoadedNetwork(
        module, _normalisation(folder, config, name), name, _read_options(folder, name)
    )


def save_network(
    module: nn.Module, normalisation: Normalisation, folder: Path, options: MapOptions | None = None
) -> None:
    """Write what :func:`load_network` reads.

    Raises
    ------
    WeightsError
        The module knows neither ``save_pretrained`` nor is it one of this library.
    """
    from subtok_data.boundary.lite import LiteBoundaryNet

    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(module, LiteBoundaryNet):
        _save_lite(module, folder)
    elif isinstance(module, _SavesItself):
        module.save_pretrained(str(folder))
    else:
        raise WeightsError(
            f"{type(module).__name__} has no save_pretrained: only transformers models and "
            "LiteBoundaryNet can be saved"
        )
    values = {
        "do_normalize": True,
        "do_rescale": True,
        "image_mean": list(normalisation.mean),
        "image_std": list(normalisation.std),
        "rescale_factor": 1 / 255,
    }
    _write_json(folder / "preprocessor_config.json", values)
    if options is not None and options != MapOptions(overlap=options.overlap):
        _write_json(folder / _OPTIONS_FILE, asdict(options))
    else:  # of a model that was saved here before
        (folder / _OPTIONS_FILE).unlink(missing_ok=True)


def _folder_of(name_or_folder: str | os.PathLike[str] | None) -> tuple[Path, str]:
    if name_or_folder is None:
        return DEFAULT_WEIGHTS, DEFAULT_WEIGHTS.name
    name = os.fspath(name_or_folder)
    path = Path(name).expanduser()
    if path.is_dir():
        return path, path.resolve().name
    if path.exists():
        raise WeightsError(
            f"{name!r} is a file: give the folder that holds config.json and model.safetensors. "
            + (_HOW_TO_CONVERT if path.suffix in _PICKLES else "")
        )
    if not is_hub_id(name_or_folder):
        raise WeightsError(
            f"no folder {name!r}: give a folder with config.json and model.safetensors, or a hub "
            "id such as 'chendelong/DirectSAM-b0-1024px-sa1b-2ep-1017'"
        )
    return download_folder(name), name


def _check_files(folder: Path, name: str) -> None:
    names = sorted(path.name for path in folder.iterdir())
    if "config.json" not in names:
        raise WeightsError(f"{name}: no config.json in {str(folder)!r}, which holds {names}")
    if any(entry.endswith(".safetensors") for entry in names):
        return
    pickles = [entry for entry in names if entry.endswith(_PICKLES)]
    if pickles:
        raise WeightsError(f"{name}: only {pickles}, no safetensors. {_HOW_TO_CONVERT}")
    raise WeightsError(f"{name}: no *.safetensors in {str(folder)!r}. {_HOW_TO_CONVERT}")


def _load_transformers(folder: Path, config: Mapping[str, Any]) -> nn.Module:
    del config
    import torch
    from transformers import AutoConfig, AutoModelForSemanticSegmentation

    channels = read_pretrained(AutoConfig, folder).num_labels
    if channels != 1:
        raise WeightsError(
            f"the network has {channels} output channels; a boundary network has 1 (num_labels=1)"
        )
    with _quiet_transformers():
        return read_model(AutoModelForSemanticSegmentation, folder, dtype=torch.float32)


def _load_lite(folder: Path, config: Mapping[str, Any]) -> nn.Module:
    from safetensors.torch import load_file

    from subtok_data.boundary.lite import LiteBoundaryNet, LiteConfig

    module = LiteBoundaryNet(LiteConfig.from_dict(config))
    module.load_state_dict(load_file(folder / "model.safetensors"))
    return module.float()


def _save_lite(module: Any, folder: Path) -> None:
    from safetensors.torch import save_file

    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", module.config.to_dict())


#: Loaders of this library's own networks by the ``model_type`` of their ``config.json``; every
#: other type is left to transformers.
_FAMILIES: dict[str, Callable[[Path, Mapping[str, Any]], nn.Module]] = {"subtok-lite": _load_lite}


def _normalisation(folder: Path, config: Mapping[str, Any], name: str) -> Normalisation:
    file = folder / "preprocessor_config.json"
    values = _read_json(file, name) if file.exists() else config
    if values.get("do_normalize") is False:
        return Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    if "image_mean" not in values or "image_std" not in values:
        return IMAGENET_NORMALISATION
    try:
        mean, std = (tuple(map(float, values[key])) for key in ("image_mean", "image_std"))
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{name}: {file.name} holds no usable image_mean, image_std") from error
    return Normalisation(cast("Any", mean), cast("Any", std))


def _read_options(folder: Path, name: str) -> MapOptions:
    file = folder / _OPTIONS_FILE
    if not file.exists():
        return MapOptions()
    values = _read_json(file, name)
    keys = [field.name for field in fields(MapOptions)]
    tile, overlap, scales, canvas_step = (values.get(key) for key in keys)
    if (
        set(values) != set(keys)
        or not (tile is None or type(tile) is int)
        or type(overlap) is not int
        or type(canvas_step) is not int
        or not isinstance(scales, list)
        or any(type(scale) is not float for scale in cast("list[object]", scales))
    ):
        raise WeightsError(
            f"{name}: {file.name} holds {values}, expected whole tile (or null), overlap and "
            "canvas_step, and scales, a list of decimal numbers"
        )
    return MapOptions(tile, overlap, tuple(cast("list[float]", scales)), canvas_step)


@contextmanager
def _quiet_transformers() -> Generator[None]:
    """Switch off the progress bar for loading, which takes a fraction of a second."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _read_json(file: Path, name: str) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{name}: {file.name} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{name}: {file.name} holds no object")
    return cast("dict[str, Any]", values)


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
