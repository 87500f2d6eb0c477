"""Prompted regions as tokens, on top of those of any other segmenter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch

from subtok_data.segment import (
    FillRules,
    PromptedPartitioner,
    Prompts,
    RLEMasks,
    add_prompts,
    default_rules,
    fit_prompts,
)
from subtok_data.segmenters.base import (
    Component,
    Evidence,
    Images,
    PendingInference,
    PrompterLike,
    Segmenter,
    SegmenterLike,
    Sizes,
    as_prompter,
    as_segmenter,
)
from subtok_data.segmenters.epoc import EPOCSegmenter

__all__ = ["PromptedSegmenter"]


class PromptedSegmenter(Segmenter):
    """Make tokens of prompts (boxes, points, masks), and of the rest as another segmenter does.

    Works with any segmenter, and without a promptable model: the region of a box is then the union
    of tokens that fits it best, clipped to it, and that of points the tokens under them
    (:func:`~subtok_data.segment.prompt_regions`). With a ``prompter``, a model finds
    the region. How regions become tokens, see
    :class:`~subtok_data.segment.PromptedPartitioner`. Token fields: ``source`` (0 found, 1
    gap, 2 prompt), ``prompt`` (id of the prompt, −1 for none), and those of the other segmenter.

    Parameters
    ----------
    segmenter : Segmenter, optional
        Partitions the rest; :class:`~subtok_data.EPOCSegmenter` if not given.
    prompter : Prompter, optional
        Model that makes masks of prompts, such as
        :class:`~subtok_data.segmenters.SAMPrompter`. Where it finds nothing, the region
        is found as without it.
    automatic : bool
        Keep the other segmenter's tokens where no region is; False: what no region covers are gaps,
        one token for each connected part.
    rules : FillRules, optional
        Which parts of regions become tokens, and who gets the pixels of the others; by default
        those of 64 pixels or more (``default_rules``).
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
    takes_prompts: bool = True

    def __init__(
        self,
        segmenter: SegmenterLike | None = None,
        *,
        prompter: PrompterLike | None = None,
        automatic: bool = True,
        rules: FillRules | None = None,
        min_iou: float = 0.5,
    ) -> None:
        self.segmenter = EPOCSegmenter() if segmenter is None else as_segmenter(segmenter)
        self.prompter = None if prompter is None else as_prompter(prompter)
        self.automatic = automatic
        self.min_iou = min_iou
        self.default_strength = self.segmenter.default_strength
        self.default_min_area = self.segmenter.default_min_area
        base = self.segmenter.partitioner
        self.rules = rules or default_rules(base)
        self.partitioner = PromptedPartitioner(base, self.rules, automatic, min_iou)

    def _parts(self) -> list[Component]:
        return [part for part in (self.segmenter, self.prompter) if part is not None]

    @property
    def device(self) -> torch.device:
        """Where the other segmenter's model runs, or the prompter's if only that is not the CPU."""
        devices = [part.device for part in self._parts()]
        return next((device for device in devices if device.type != "cpu"), devices[0])

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the other segmenter's model."""
        return self.segmenter.dtype

    @property
    def is_asynchronous(self) -> bool:
        """Whether the other segmenter is, and no prompter works in between."""
        return self.prompter is None and self.segmenter.is_asynchronous

    def to(self, device: str | torch.device) -> Self:
        """Move the models to a device."""
        for part in self._parts():
            part.to(device)
        return self

    def load(self) -> None:
        """Load the models now."""
        for part in self._parts():
            part.load()

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
        asked = fit_prompts(prompts, sizes)
        return _join(self.segmenter.infer(images, sizes), self._find_masks(images, asked))

    def launch(
        self, images: Images, sizes: Sizes, prompts: Sequence[Any] | None = None
    ) -> PendingInference:
        """Start the other segmenter's inference; see :class:`Segmenter`."""
        asked = self._find_masks(images, fit_prompts(prompts, sizes))
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

    def config(self) -> dict[str, Any] | None:
        """Options and identity of the weights; None if those of one of its parts are unknown."""
        configs = [part.config() for part in self._parts()]
        if None in configs:
            return None
        return {
            "segmenter": self.name,
            "base": configs[0],
            "prompter": None if self.prompter is None else configs[1],
            "partitioner": {
                "rules": asdict(self.rules),
                "automatic": self.automatic,
                "min_iou": self.min_iou,
            },
        }

    def save_model(self, folder: Path) -> None:
        """Write the weights of both parts below ``folder``."""
        for part in self._parts():
            part.save_model(folder)

    @classmethod
    def from_parts(
        cls, config: Mapping[str, Any], segmenter: Segmenter, prompter: PrompterLike | None
    ) -> Self:
        """Build from what :meth:`config` wrote and the parts that it describes."""
        options = config["partitioner"]
        return cls(
            segmenter,
            prompter=prompter,
            automatic=options["automatic"],
            rules=FillRules(**options["rules"]),
            min_iou=options["min_iou"],
        )

    def __repr__(self) -> str:
        options = f"automatic={self.automatic}, rules={self.rules}, min_iou={self.min_iou}"
        return f"PromptedSegmenter({self.segmenter!r}, prompter={self.prompter!r}, {options})"


class _PromptedLaunch:
    """Evidence on its way, and the prompts that join it."""

    def __init__(self, launch: PendingInference, asked: Sequence[Prompts | None]) -> None:
        self._launch = launch
        self._asked = asked

    def result(self) -> Sequence[Evidence | Exception]:
        """Wait for the device and return the evidence of each image, or why it has none."""
        return [
            found if isinstance(found, Exception) else add_prompts(found, one)
            for found, one in zip(self._launch.result(), self._asked, strict=True)
        ]


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
