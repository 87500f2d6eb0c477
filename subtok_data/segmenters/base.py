"""What a segmenter is: evidence from a device, then a partition made on the CPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, cast, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from subtok_data.arguments import describe
from subtok_data.errors import ConfigError
from subtok_data.segment import (
    Partitioner,
    Prompts,
    RLEMasks,
)

__all__ = [
    "Component",
    "Evidence",
    "Images",
    "PendingInference",
    "Prompter",
    "PrompterLike",
    "ReadyInference",
    "Segmenter",
    "SegmenterLike",
    "Sizes",
    "as_prompter",
    "as_segmenter",
    "partitioner_config",
    "refuse_prompts",
]

Evidence = Mapping[str, NDArray[Any]]
Images = Sequence[NDArray[np.uint8]]
Sizes = Sequence[tuple[int, int]]


class PendingInference(Protocol):
    """Inference under way on a device."""

    def result(self) -> Sequence[Evidence | Exception]:
        """Wait for the device and return the evidence of each image.

        Returns
        -------
        sequence of Evidence or Exception
            One entry per image. An exception in place of evidence says what is wrong with that one
            image, and its sample fails; the others go on. To raise says that the launch failed as a
            whole: then each image is inferred by itself, unless the device failed.
        """
        ...


class ReadyInference:
    """Evidence that is there already, as a :class:`PendingInference`.

    Examples
    --------
    >>> ReadyInference([{}]).result()
    [{}]
    """

    def __init__(self, evidence: Sequence[Evidence | Exception]) -> None:
        self._evidence = evidence

    def result(self) -> Sequence[Evidence | Exception]:
        """Return the evidence of each image."""
        return self._evidence


class Component:
    """What segmenters and prompters have in common: a device, options and weights.

    The defaults are those of a component without a model whose options nobody knows.
    """

    name: ClassVar[str] = ""
    """Stands for the class in a saved configuration."""

    @property
    def class_name(self) -> str:
        """Name of the class, for messages."""
        return type(self).__name__

    @property
    def device(self) -> torch.device:
        """Where the model runs; the CPU if there is none."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the model's products; float32 if there is no model."""
        return torch.float32

    def to(self, device: str | torch.device) -> Self:
        """Move the model, if there is one, to a device; return the component."""
        del device
        return self

    def load(self) -> None:
        """Load the model, if there is one, now and in this thread, not at its first use.

        Another thread may have another current device, and would load it there.
        """

    def config(self) -> dict[str, Any] | None:
        """Return options and identity of the weights, as JSON values; None if they are unknown.

        Without it, tokens cannot be stored: they could not be told apart.
        """
        return None

    def save_model(self, folder: Path) -> None:
        """Write the weights, if there are any, below ``folder``."""

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], folder: Path, device: str | torch.device | None
    ) -> Self:
        """Build from what :meth:`config` and :meth:`save_model` wrote."""
        del config, folder, device
        raise ConfigError(f"{cls.__name__} has no from_config(): build it, and give it as it is")

    def _described(self) -> list[str]:
        """Arguments that say what it is, for ``repr``."""
        return []

    def __repr__(self) -> str:
        return f"{self.class_name}({', '.join(self._described())})"


class Segmenter(Component):
    """A way of partitioning images into tokens; base class of all in the library.

    A segmenter needs ``partitioner`` and ``infer``; the rest has defaults. One of your own may
    derive from this class, or be any object with the two (:func:`as_segmenter`).

    Attributes
    ----------
    partitioner : Partitioner
        Picklable, from a module that imports no torch: it runs in worker processes.
    takes_prompts : bool
        Whether it makes tokens of prompts.
    default_strength : float or None
        ``strength`` of a tokenizer that is given neither that nor ``num_tokens``; None where the
        segmenter has a granularity of its own.
    default_min_area : int
        ``min_area`` of a tokenizer that is given none, nor merges by ``num_tokens`` or
        ``strength``: above 0 where texture leaves tokens of a few pixels.
    """

    partitioner: Partitioner
    takes_prompts: bool = False
    default_strength: float | None = None
    default_min_area: int = 0

    @property
    def is_asynchronous(self) -> bool:
        """Whether :meth:`launch` returns before the work is done."""
        return False

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
            unless ``takes_prompts``.
        """
        raise NotImplementedError(f"{self.class_name} has no infer()")

    def launch(
        self, images: Images, sizes: Sizes, prompts: Sequence[Any] | None = None
    ) -> PendingInference:
        """Start :meth:`infer`, and return at once if the segmenter is asynchronous."""
        return ReadyInference(self.infer(images, sizes, prompts))

    def __repr__(self) -> str:
        return f"{self.class_name}({', '.join([*self._described(), repr(self.partitioner)])})"


class Prompter(Component):
    """A model that makes masks of prompts; base class of all in the library.

    One of your own may derive from it, or be any object with ``prompt_masks``
    (:func:`as_prompter`).
    """

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
            A prompt that the model does not take, or prompts for an image of another size.
        """
        raise NotImplementedError(f"{self.class_name} has no prompt_masks()")


@runtime_checkable
class SegmenterLike(Protocol):
    """The least a segmenter has; see :class:`Segmenter` for what it may have besides."""

    @property
    def partitioner(self) -> Partitioner:
        """Turns evidence into a partition."""
        ...

    def infer(
        self, images: Images, sizes: Sizes, prompts: Sequence[Any] | None = None
    ) -> list[Any]:
        """Return named arrays for each image."""
        ...


@runtime_checkable
class PrompterLike(Protocol):
    """The least a prompter has; see :class:`Prompter` for what it may have besides."""

    def prompt_masks(self, images: Images, prompts: Sequence[Prompts | None]) -> list[Any]:
        """Return one mask for each prompt of each image."""
        ...


def as_segmenter(segmenter: object) -> Segmenter:
    """Give a segmenter what it lacks: one of your own may have ``partitioner`` and ``infer`` only.

    Parameters
    ----------
    segmenter : SegmenterLike
        What it has of the attributes of :class:`Segmenter` is used.

    Returns
    -------
    Segmenter
        Itself if it is one; else a view of it, with yours as ``.own``.

    Raises
    ------
    ConfigError
        No partitioner, or no ``infer``.

    Examples
    --------
    >>> from subtok_data.segment import GridPartitioner
    >>> class Cells:
    ...     partitioner = GridPartitioner(patch=8)
    ...     def infer(self, images, sizes, prompts=None):
    ...         return [{} for _ in images]
    >>> as_segmenter(Cells()).takes_prompts
    False
    """
    if isinstance(segmenter, Segmenter):
        return segmenter
    if isinstance(segmenter, type):
        raise ConfigError(
            f"segmenter is {describe(segmenter)}: give an instance, {segmenter.__name__}(…)"
        )
    if isinstance(segmenter, str | int):
        raise ConfigError(
            f"segmenter is {describe(segmenter)}: give an instance, such as PatchSegmenter(32) or "
            'SuperpixelSegmenter("slic"); a number of tokens is num_tokens=, a folder or hub id of '
            "a boundary model EPOCSegmenter(…)"
        )
    if not isinstance(segmenter, SegmenterLike):
        raise ConfigError(
            f"{type(segmenter).__name__} is no segmenter: it needs an attribute partitioner and a "
            "method infer(images, sizes, prompts), as subtok_data.segmenters.Segmenter has them"
        )
    return _OwnSegmenter(segmenter)


def as_prompter(prompter: object) -> Prompter:
    """Give a prompter what it lacks: one of your own may have ``prompt_masks`` only.

    Parameters
    ----------
    prompter : PrompterLike
        What it has of the attributes of :class:`Prompter` is used.

    Returns
    -------
    Prompter
        Itself if it is one; else a view of it, with yours as ``.own``.

    Raises
    ------
    ConfigError
        No ``prompt_masks``.
    """
    if isinstance(prompter, Prompter):
        return prompter
    if not isinstance(prompter, PrompterLike):
        raise ConfigError(
            f"{type(prompter).__name__} is no prompter: it needs a method "
            "prompt_masks(images, prompts), as subtok_data.segmenters.Prompter has it"
        )
    return _OwnPrompter(prompter)


class _Own(Component):
    """A user's object, with defaults for what it lacks: the only place that looks."""

    def __init__(self, own: Any) -> None:
        self.own = own

    @property
    def class_name(self) -> str:
        return type(self.own).__name__

    @property
    def device(self) -> torch.device:
        found = getattr(self.own, "device", None)
        return super().device if found is None else torch.device(found)

    @property
    def dtype(self) -> torch.dtype:
        found = getattr(self.own, "dtype", None)
        return found if isinstance(found, torch.dtype) else super().dtype

    def to(self, device: str | torch.device) -> Self:
        if hasattr(self.own, "to"):
            self.own.to(device)
        return self

    def load(self) -> None:
        if hasattr(self.own, "load"):
            self.own.load()

    def config(self) -> dict[str, Any] | None:
        return self.own.config() if hasattr(self.own, "config") else None

    def save_model(self, folder: Path) -> None:
        if hasattr(self.own, "save_model"):
            self.own.save_model(folder)


class _OwnSegmenter(_Own, Segmenter):
    def __init__(self, own: Any) -> None:
        super().__init__(own)
        self.partitioner = own.partitioner
        self.takes_prompts = bool(getattr(own, "takes_prompts", False))
        self.default_strength = getattr(own, "default_strength", None)
        self.default_min_area = int(getattr(own, "default_min_area", 0))

    @property
    def is_asynchronous(self) -> bool:
        return bool(getattr(self.own, "is_asynchronous", False))

    def infer(
        self, images: Images, sizes: Sizes, prompts: Sequence[Any] | None = None
    ) -> list[Evidence]:
        return self.own.infer(images, sizes, prompts)

    def launch(
        self, images: Images, sizes: Sizes, prompts: Sequence[Any] | None = None
    ) -> PendingInference:
        if not self.is_asynchronous:
            return super().launch(images, sizes, prompts)
        return self.own.launch(images, sizes, prompts)


class _OwnPrompter(_Own, Prompter):
    def prompt_masks(
        self, images: Images, prompts: Sequence[Prompts | None]
    ) -> list[RLEMasks | None]:
        return self.own.prompt_masks(images, prompts)


def refuse_prompts(segmenter: Segmenter, prompts: Sequence[Any] | None) -> None:
    """Raise ConfigError for prompts given to a segmenter that takes none.

    Examples
    --------
    >>> refuse_prompts(Segmenter(), [None])
    """
    if prompts is not None and any(prompt is not None for prompt in prompts):
        raise ConfigError(
            f"{segmenter.class_name} takes no prompts, got {len(prompts)}; "
            "use PromptedSegmenter, or leave prompts out"
        )


def partitioner_config(partitioner: Partitioner) -> dict[str, Any]:
    """Options of a partitioner that is a dataclass, as JSON values; those that are None left out.

    Examples
    --------
    >>> from subtok_data.segment import GridPartitioner
    >>> partitioner_config(GridPartitioner(patch=16))
    {'patch': 16}
    """
    options = dataclasses.asdict(cast(Any, partitioner))
    return {name: value for name, value in options.items() if value is not None}
