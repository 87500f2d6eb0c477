"""Regions that are asked for as tokens, on top of those of any other segmenter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from subtok_data.errors import ConfigError, PromptError
from subtok_data.segment import (
    FillRules,
    PromptedPartitioner,
    Prompts,
    RLEMasks,
    add_prompts,
    default_rules,
)
from subtok_data.segmenters.base import (
    AsyncSegmenter,
    Evidence,
    Images,
    PendingInference,
    Prompter,
    Segmenter,
    Sizes,
)
from subtok_data.segmenters.epoc import EPOCSegmenter

__all__ = ["PromptedSegmenter"]


class PromptedSegmenter:
    """Makes tokens of prompts (boxes, points, masks), and cuts the rest like another segmenter.

    Works with any segmenter, and without a promptable model: the region of a box is then the union
    of tokens that fits it best, clipped to it, and that of points the tokens under them
    (:func:`~subtok_data.segment.prompt_regions`). With a ``prompter``, a model finds
    the region. How regions become tokens, see
    :class:`~subtok_data.segment.PromptedPartitioner`. Token fields: ``source`` (0 found, 1
    gap, 2 prompt), ``prompt`` (id of the prompt, −1 for none), and those of the other segmenter.

    Parameters
    ----------
    segmenter : Segmenter, optional
        What cuts the rest; :class:`~subtok_data.EPOCSegmenter` if not given.
    prompter : Prompter, optional
        Model that makes masks of prompts, such as
        :class:`~subtok_data.segmenters.SAMPrompter`. Where it finds nothing, the region
        is found as without it.
    automatic : bool
        Keep the other segmenter's tokens where no region is; False: what no region covers are gaps,
        one token for each connected part.
    rules : FillRules, optional
        Which parts of regions become tokens, and who gets the pixels of the others; by default
        those of 64 pixels or more (:func:`~subtok_data.segment.default_rules`).
    min_iou : float
        Least IoU of a box with a union of tokens; below it, the box itself is the region.

    Raises
    ------
    ConfigError
        Options out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from subtok_data import PatchSegmenter, SubobjectTokenizer
    >>> from subtok_data.segment import Prompts
    >>> tokenizer = SubobjectTokenizer(PromptedSegmenter(PatchSegmenter(32)), size=None)
    >>> prompts = Prompts.of((64, 96), boxes=[[30, 0, 96, 64]])
    >>> tokens = tokenizer(np.zeros((64, 96, 3), np.uint8), prompts=prompts)
    >>> tokens.token_fields["prompt"], tokens.areas
    (array([ 0, -1, -1]), array([4096, 1024, 1024]))
    """

    name: ClassVar[str] = "prompted"
    takes_prompts: ClassVar[bool] = True

    def __init__(
        self,
        segmenter: Segmenter | None = None,
        *,
        prompter: Prompter | None = None,
        automatic: bool = True,
        rules: FillRules | None = None,
        min_iou: float = 0.5,
    ) -> None:
        self.segmenter: Segmenter = EPOCSegmenter() if segmenter is None else segmenter
        self.prompter = prompter
        base = self.segmenter.partitioner
        self.rules = rules or default_rules(base)
        self.partitioner = PromptedPartitioner(base, self.rules, automatic, min_iou)

    @property
    def model(self) -> Any:
        """Model of the other segmenter, else of the prompter; None if neither has one."""
        model = getattr(self.segmenter, "model", None)
        return getattr(self.prompter, "model", None) if model is None else model

    @property
    def is_asynchronous(self) -> bool:
        """Whether the other segmenter is, and no prompter works in between."""
        return self.prompter is None and getattr(self.segmenter, "is_asynchronous", False)

    def to(self, device: str | torch.device) -> PromptedSegmenter:
        """Move the models to a device."""
        for part in (self.segmenter, self.prompter):
            move = getattr(part, "to", None)
            if move is not None:
                move(device)
        return self

    def infer(
        self, images: Images, sizes: Sizes, prompts: Sequence[Any] | None = None
    ) -> list[Evidence]:
        """Return the other segmenter's evidence, and the prompts with the masks found for them.

        Raises
        ------
        PromptError
            Not one entry of prompts per image, prompts for another size than the image's, or
            prompts that the prompter does not take.
        """
        asked = _check(prompts, sizes)
        return _join(self.segmenter.infer(images, sizes), self._find_masks(images, asked))

    def launch(
        self, images: Images, sizes: Sizes, prompts: Sequence[Any] | None = None
    ) -> PendingInference:
        """Start the other segmenter's inference; see :class:`AsyncSegmenter`."""
        if not isinstance(self.segmenter, AsyncSegmenter):
            raise TypeError(f"{type(self.segmenter).__name__} cannot launch: use infer")
        asked = self._find_masks(images, _check(prompts, sizes))
        return _PromptedLaunch(self.segmenter.launch(images, sizes), asked)

    def _find_masks(self, images: Images, asked: Sequence[Prompts | None]) -> list[Prompts | None]:
        """Put what the prompter finds in place of the prompts' own masks."""
        if self.prompter is None or all(one is None for one in asked):
            return list(asked)
        found = self.prompter.prompt_masks(images, asked)
        return [
            one if one is None or masks is None else _with_masks(one, masks)
            for one, masks in zip(asked, found, strict=True)
        ]

    @property
    def config(self) -> Callable[[], dict[str, Any]]:
        """Function that returns options and identity of the weights, as JSON values.

        There is none unless the other segmenter and the prompter have one: then tokens could not be
        told apart.
        """
        for part in (self.segmenter, self.prompter):
            if part is not None and not hasattr(part, "config"):
                raise AttributeError(f"{type(part).__name__} has no config()")
        return self._config

    def _config(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"base": self.segmenter, "prompter": self.prompter}
        return {
            "segmenter": self.name,
            **{name: None if part is None else part.config() for name, part in parts.items()},
            "partitioner": {
                "rules": asdict(self.rules),
                "automatic": self.partitioner.automatic,
                "min_iou": self.partitioner.min_iou,
            },
        }

    def save_model(self, folder: Path) -> None:
        """Write the weights of both parts below ``folder``."""
        for part in (self.segmenter, self.prompter):
            save = getattr(part, "save_model", None)
            if save is not None:
                save(folder)

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], folder: Path, device: str | torch.device | None
    ) -> PromptedSegmenter:
        """Build from what :meth:`config` and :meth:`save_model` wrote."""
        from subtok_data.segmenters.registry import PROMPTERS, SEGMENTERS

        prompter = config["prompter"]
        options = config["partitioner"]
        return cls(
            _known(SEGMENTERS, config["base"]["segmenter"]).from_config(
                config["base"], folder, device
            ),
            prompter=None
            if prompter is None
            else _known(PROMPTERS, prompter["prompter"]).from_config(prompter, folder, device),
            automatic=options["automatic"],
            rules=FillRules(**options["rules"]),
            min_iou=options["min_iou"],
        )


class _PromptedLaunch:
    """Evidence on its way, and the prompts that join it."""

    def __init__(self, launch: PendingInference, asked: Sequence[Prompts | None]) -> None:
        self._launch = launch
        self._asked = asked

    def result(self) -> list[Evidence]:
        """Wait for the device and return the evidence of each image."""
        return _join(self._launch.result(), self._asked)


def _known(classes: Mapping[str, Any], name: str) -> Any:
    if name not in classes:
        raise ConfigError(
            f"the segmenter was saved with {name!r}, which is none of {sorted(classes)}: give "
            "segmenter=PromptedSegmenter(…) with your own part"
        )
    return classes[name]


def _check(prompts: Sequence[Any] | None, sizes: Sizes) -> list[Prompts | None]:
    """One entry per image, each on the pixels of its image."""
    if prompts is None:
        return [None] * len(sizes)
    if len(prompts) != len(sizes):
        raise PromptError(
            f"{len(prompts)} entries of prompts for {len(sizes)} images: give one Prompts, or "
            "None, per image"
        )
    for place, (one, size) in enumerate(zip(prompts, sizes, strict=True)):
        if one is not None and tuple(one.size) != tuple(size):
            raise PromptError(
                f"image {place} of {size[0]} × {size[1]} pixels has prompts for "
                f"{one.size[0]} × {one.size[1]}: give prompts.resized({tuple(size)})"
            )
    return list(prompts)


def _with_masks(prompts: Prompts, found: RLEMasks) -> Prompts:
    """Prompts with the masks that were found; those not found keep what they had."""
    if len(found) != len(prompts) or tuple(found.size) != tuple(prompts.size):
        raise ValueError(
            f"a prompter gave {len(found)} masks of {found.size} pixels for {len(prompts)} prompts "
            f"in {prompts.size} pixels: expected one per prompt, of the size of the image"
        )
    if prompts.masks is not None:
        lost = found.areas == 0
        runs = [(prompts.masks if gone else found).runs(i) for i, gone in enumerate(lost)]
        scores = np.where(lost, prompts.masks.scores, found.scores)
        found = RLEMasks.from_runs(runs, found.size, scores)
    return replace(prompts, masks=found)


def _join(evidence: Sequence[Evidence], asked: Sequence[Prompts | None]) -> list[Evidence]:
    return [add_prompts(found, one) for found, one in zip(evidence, asked, strict=True)]
