"""The protocol of segmenters: evidence from a device, then a partition made on the CPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from subtok_data.errors import ConfigError
from subtok_data.segment import Partitioner, Prompts, RLEMasks

__all__ = [
    "AsyncSegmenter",
    "Evidence",
    "Images",
    "PendingInference",
    "Prompter",
    "Segmenter",
    "Sizes",
    "partitioner_config",
    "refuse_prompts",
    "takes_prompts",
]

Evidence = Mapping[str, NDArray[Any]]
Images = Sequence[NDArray[np.uint8]]
Sizes = Sequence[tuple[int, int]]


@runtime_checkable
class Segmenter(Protocol):
    """A way of cutting images into tokens.

    Attributes
    ----------
    partitioner : Partitioner
        Picklable, from a module that imports no torch: it runs in worker processes.
    """

    @property
    def partitioner(self) -> Partitioner:
        """What turns evidence into a partition."""
        ...

    def infer(
        self, images: Images, sizes: Sizes, prompts: Sequence[Any] | None = None
    ) -> list[Evidence]:
        """Return named arrays for each image.

        Parameters
        ----------
        images : sequence of (H, W, 3) uint8 arrays
            May differ in size.
        sizes : sequence of (int, int)
            Height and width of each image.
        prompts : sequence, optional
            One :class:`~subtok_data.segment.Prompts` or None per image. All are None
            unless the segmenter has an attribute ``takes_prompts = True``.
        """
        ...


class PendingInference(Protocol):
    """Inference under way on a device."""

    def result(self) -> list[Evidence]:
        """Wait for the device and return the evidence of each image."""
        ...


@runtime_checkable
class AsyncSegmenter(Segmenter, Protocol):
    """A segmenter whose inference runs beside the host."""

    @property
    def is_asynchronous(self) -> bool:
        """Whether ``launch`` returns before the work is done."""
        ...

    def launch(
        self, images: Images, sizes: Sizes, prompts: Sequence[Any] | None = None
    ) -> PendingInference:
        """Start inference and return at once."""
        ...


@runtime_checkable
class Prompter(Protocol):
    """A model that makes masks of prompts."""

    def prompt_masks(
        self, images: Images, prompts: Sequence[Prompts | None]
    ) -> list[RLEMasks | None]:
        """Return one mask for each prompt of each image.

        Parameters
        ----------
        images : sequence of (H, W, 3) uint8 arrays
            May differ in size.
        prompts : sequence of Prompts or None
            One entry per image, on the pixels of that image; None for an image without prompts.

        Returns
        -------
        list of RLEMasks or None
            Masks of the size of the image, in the order of the prompts, scored by predicted IoU.
            An empty mask says that the model found nothing. None for an image without prompts.

        Raises
        ------
        PromptError
            A prompt that the model does not take.
        """
        ...


def takes_prompts(segmenter: object) -> bool:
    """Whether a segmenter makes tokens of prompts: it says so by ``takes_prompts = True``.

    Examples
    --------
    >>> takes_prompts(None)
    False
    """
    return bool(getattr(segmenter, "takes_prompts", False))


def refuse_prompts(segmenter: object, prompts: Sequence[Any] | None) -> None:
    """Raise ConfigError for prompts given to a segmenter that takes none.

    Examples
    --------
    >>> refuse_prompts(None, [None])
    """
    if prompts is not None and any(prompt is not None for prompt in prompts):
        raise ConfigError(
            f"{type(segmenter).__name__} takes no prompts, got {len(prompts)}; "
            "use a segmenter for prompted regions, or leave prompts out"
        )


def partitioner_config(partitioner: object) -> dict[str, Any]:
    """Options of a partitioner that is a dataclass, as JSON values; those that are None left out.

    Examples
    --------
    >>> from subtok_data.segment import GridPartitioner
    >>> partitioner_config(GridPartitioner(patch=16))
    {'patch': 16}
    """
    options = dataclasses.asdict(cast(Any, partitioner))
    return {name: value for name, value in options.items() if value is not None}
