"""Segmenters and prompters by name, and back from a saved configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from subtok_data.errors import ConfigError
from subtok_data.segmenters.base import Component, Prompter, Segmenter
from subtok_data.segmenters.classical import PatchSegmenter, SuperpixelSegmenter
from subtok_data.segmenters.epoc import EPOCSegmenter
from subtok_data.segmenters.panoptic import PanopticSegmenter
from subtok_data.segmenters.prompted import PromptedSegmenter
from subtok_data.segmenters.sam import (
    EfficientSAMPrompter,
    EfficientSAMSegmenter,
    SAMEdgeSegmenter,
    SAMPrompter,
    SAMSegmenter,
)

__all__ = [
    "PROMPTERS",
    "SEGMENTERS",
    "build_prompter",
    "build_segmenter",
    "build_without_weights",
]

C = TypeVar("C", bound=Component)

SEGMENTERS: dict[str, type[Segmenter]] = {
    cls.name: cls
    for cls in (
        EPOCSegmenter,
        EfficientSAMSegmenter,
        PanopticSegmenter,
        PatchSegmenter,
        PromptedSegmenter,
        SAMEdgeSegmenter,
        SAMSegmenter,
        SuperpixelSegmenter,
    )
}
"""Segmenters by the name that stands in a saved configuration."""

PROMPTERS: dict[str, type[Prompter]] = {
    cls.name: cls for cls in (EfficientSAMPrompter, SAMPrompter)
}
"""Prompters by the name that stands in a saved configuration."""


def build_segmenter(
    config: Mapping[str, Any], folder: Path, device: str | torch.device | None = None
) -> Segmenter:
    """Build the segmenter that a saved configuration describes.

    Parameters
    ----------
    config : mapping
        What its ``config`` returned.
    folder : Path
        Where its ``save_model`` wrote.
    device : str or torch.device, optional
        Where its models run; None picks a CUDA device if there is one.

    Raises
    ------
    ConfigError
        A segmenter or prompter that the library does not know.

    Examples
    --------
    >>> config = {"segmenter": "patch", "partitioner": {"patch": 16}}
    >>> build_segmenter(config, Path())
    PatchSegmenter(GridPartitioner(patch=16, num_tokens=None))
    """
    kind = _known(SEGMENTERS, config["segmenter"])
    if not issubclass(kind, PromptedSegmenter):
        return kind.from_config(config, folder, device)
    prompter = config["prompter"]
    return kind.from_parts(
        config,
        build_segmenter(config["base"], folder, device),
        None if prompter is None else build_prompter(prompter, folder, device),
    )


def build_without_weights(
    config: Mapping[str, Any], device: str | torch.device | None = None
) -> Segmenter:
    """Build a segmenter from its configuration alone: without a model, or with the packaged one.

    Raises
    ------
    ConfigError
        A segmenter that the library does not know, or whose weights are elsewhere.

    Examples
    --------
    >>> build_without_weights({"segmenter": "patch", "partitioner": {"patch": 16}})
    PatchSegmenter(GridPartitioner(patch=16, num_tokens=None))
    """
    kind = _known(SEGMENTERS, config["segmenter"])
    if issubclass(kind, EPOCSegmenter):
        options = config["partitioner"]
        threshold, backend = options.get("threshold"), options["backend"]
        return EPOCSegmenter(threshold=threshold, backend=backend, device=device)
    if not issubclass(kind, PatchSegmenter | SuperpixelSegmenter):
        raise ConfigError(
            f"the weights of {config['segmenter']!r} are not in a configuration: give its "
            "segmenter as segmenter=…"
        )
    return kind.from_config(config, Path(), device)


def build_prompter(
    config: Mapping[str, Any], folder: Path, device: str | torch.device | None = None
) -> Prompter:
    """Build the prompter that a saved configuration describes; as :func:`build_segmenter`."""
    return _known(PROMPTERS, config["prompter"]).from_config(config, folder, device)


def _known(classes: Mapping[str, type[C]], name: str) -> type[C]:
    if name not in classes:
        raise ConfigError(
            f"the tokenizer was saved with {name!r}, which is none of {sorted(classes)}: give its "
            "segmenter as segmenter=…"
        )
    return classes[name]
