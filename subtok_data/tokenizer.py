"""``SubobjectTokenizer``: a segmenter, a budget and an order; images in, tokens out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from subtok_data.errors import ConfigError, PromptError
from subtok_data.images import DEFAULT_SIZE, Canvas, image_size, to_rgb
from subtok_data.segment import (
    Budget,
    MergeCost,
    Order,
    Overflow,
    Prompts,
    SegmentTask,
    add_prompts,
    segment_image,
)
from subtok_data.segmenters import SEGMENTERS, EPOCSegmenter, Segmenter, takes_prompts
from subtok_data.tokenized_image import TokenizedImage

__all__ = ["DEFAULT_MIN_AREA", "SubobjectTokenizer"]
DEFAULT_MIN_AREA = 64
"""Pixels: on photos at the default size, tokens below it follow texture rather than things."""

CONFIG_FILE = "subtok_config.json"
FORMAT_VERSION = 1
"""Raised when the same configuration would give other tokens than before."""


class SubobjectTokenizer:
    """Cut images into a variable number of subobject tokens.

    Works offline with the packaged boundary model. Every pixel ends up in exactly one token.

    Parameters
    ----------
    segmenter : Segmenter, optional
        How images are cut; :class:`~subtok_data.EPOCSegmenter` if not given.
    threshold : float, optional
        Boundary threshold of the default segmenter, in (0, 1). Not together with ``segmenter``
        (give it there) or ``num_tokens``.
    num_tokens : int, optional
        Exactly this many tokens per image (fewer where an image has not that many minima).
    max_tokens : int, optional
        At most this many tokens per image, by merging neighbours.
    min_area : int, optional
        Tokens smaller than this many pixels are merged into a neighbour. By default
        ``DEFAULT_MIN_AREA`` for tokens by threshold, where texture near it leaves crumbs;
        0 for everything else. ``min_area=0`` is the paper's.
    merge : {"balanced", "boundary"}, optional
        Merge cost; see :class:`~subtok_data.segment.Budget`.
    overflow : {"merge", "drop"}, optional
        ``"drop"`` loses the smallest tokens over ``max_tokens``, as the paper does, for comparison
        only.
    order : {"area", "raster"}, optional
        Order of the tokens: descending area (the paper's), or centers row by row.
    size : int or None, optional
        Longest side of the image that is cut, in pixels; None keeps images as they are.
    square : bool, optional
        Squash images to (size, size), as the paper does.
    device : str or torch.device, optional
        Where the boundary model runs; None picks a CUDA device if there is one.

    Examples
    --------
    >>> import numpy as np
    >>> from subtok_data import SubobjectTokenizer
    >>> tokenizer = SubobjectTokenizer(max_tokens=64)
    >>> tokens = tokenizer(np.zeros((120, 160, 3), np.uint8))
    >>> tokens.token_map.shape, int(tokens.areas.sum()) == 384 * 512
    ((384, 512), True)
    """

    def __init__(
        self,
        segmenter: Segmenter | None = None,
        *,
        threshold: float | None = None,
        num_tokens: int | None = None,
        max_tokens: int | None = None,
        min_area: int | None = None,
        merge: MergeCost = "balanced",
        overflow: Overflow = "merge",
        order: Order = "area",
        size: int | None = DEFAULT_SIZE,
        square: bool = False,
        device: str | torch.device | None = None,
    ) -> None:
        if threshold is not None and num_tokens is not None:
            raise ConfigError(
                f"threshold={threshold} and num_tokens={num_tokens} both set the granularity: "
                "give one"
            )
        if segmenter is None:
            segmenter = EPOCSegmenter(threshold=threshold, device=device)
        elif threshold is not None or device is not None:
            raise ConfigError(
                "threshold and device belong to the segmenter when one is given: "
                f"{type(segmenter).__name__}(threshold=…, device=…)"
            )
        if min_area is None:
            cutter = getattr(segmenter, "segmenter", segmenter)  # below prompts, or itself
            by_threshold = isinstance(cutter, EPOCSegmenter) and num_tokens is None
            min_area = DEFAULT_MIN_AREA if by_threshold else 0
        self.segmenter = segmenter
        self.canvas = Canvas(size, square)
        self.budget = Budget(
            num_tokens=num_tokens,
            max_tokens=max_tokens,
            min_area=min_area,
            merge=merge,
            overflow=overflow,
        )
        self.order: Order = order
        self.segment_task()  # an impossible order or count is refused here, not in a worker

    @property
    def device(self) -> torch.device:
        """Where the segmenter's model runs; the CPU for segmenters without a model."""
        model = getattr(self.segmenter, "model", None)
        return torch.device("cpu") if model is None else model.device

    def to(self, device: str | torch.device) -> SubobjectTokenizer:
        """Move the segmenter's model, if it has one, and return the tokenizer."""
        move = getattr(self.segmenter, "to", None)
        if move is not None:
            move(device)
        return self

    def segment_task(
        self, *, shape_size: int | None = None, max_tokens: int | None = None
    ) -> SegmentTask:
        """Everything a worker process needs to cut images: small, picklable, free of torch.

        Parameters
        ----------
        shape_size : int, optional
            Also sample each token's shape on a grid of this side.
        max_tokens : int, optional
            A limit below the tokenizer's own, for one image that has less room.
        """
        budget = self.budget if max_tokens is None else self.budget.capped(max_tokens)
        return SegmentTask(self.segmenter.partitioner, budget, self.order, shape_size)

    def __call__(self, images: Any, *, prompts: Any = None, shape_size: int | None = None) -> Any:
        """Cut one image or a list of images.

        Parameters
        ----------
        images : image or list of images
            Path, bytes, PIL image, array (H, W, 3) or (H, W), tensor (3, H, W); a list may mix
            sizes.
        prompts : Prompts, or list of Prompts or None, optional
            Regions to look for in the image, or in each image of a list, in pixels of the source.
            Segmenters that take prompts make tokens of them
            (:class:`~subtok_data.PromptedSegmenter`); with the others, ``.prompt_tokens`` says
            which token fits each best.
        shape_size : int, optional
            Also give each token's shape on a grid of this side, as ``.shapes`` (N, r, r) bool.

        Returns
        -------
        TokenizedImage or list of TokenizedImage

        Raises
        ------
        ImageError
            If a value cannot become an RGB image.
        PromptError
            If prompts are for an image of another size, or not one entry per image.
        """
        if isinstance(images, list):
            return self._tokenize(images, prompts, shape_size)
        return self._tokenize([images], [prompts], shape_size)[0]

    def _tokenize(
        self, values: Sequence[Any], prompts: Sequence[Any] | None, shape_size: int | None
    ) -> list[TokenizedImage]:
        sources = [to_rgb(value) for value in values]
        images = [self.canvas.fit(source) for source in sources]
        asked = _fit_prompts(prompts, sources, images)
        sizes = [image_size(image) for image in images]
        taken = asked if takes_prompts(self.segmenter) else None
        task = self.segment_task(shape_size=shape_size)
        found: list[TokenizedImage] = []
        for source, image, size, one, evidence in zip(
            sources, images, sizes, asked, self.segmenter.infer(images, sizes, taken), strict=True
        ):
            evidence = add_prompts(evidence, one)
            cut = segment_image(task, evidence, size, image)
            found.append(TokenizedImage.of(image, cut, evidence, image_size(source)))
        return found

    def config(self) -> dict[str, Any]:
        """Everything that decides the tokens, as JSON values."""
        describe = getattr(self.segmenter, "config", None)
        if describe is None:
            raise ConfigError(
                f"{type(self.segmenter).__name__} has no config(): give it one that returns its "
                "options as JSON values, so that stored tokens can be told apart"
            )
        return self._own_config(describe())

    def _own_config(self, segmenter: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            **segmenter,
            "budget": asdict(self.budget),
            "order": self.order,
            "canvas": asdict(self.canvas),
        }

    @property
    def config_hash(self) -> str:
        """Sixteen hexadecimal digits that differ when the tokens may differ."""
        text = json.dumps(self.config(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write configuration and weights to a folder that :meth:`from_pretrained` reads.

        A segmenter of your own is named only: give it to :meth:`from_pretrained` again.
        Transformers' ``Trainer`` calls this at each checkpoint, for its ``data_collator``.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        known = hasattr(self.segmenter, "config")
        config = (
            self.config()
            if known
            else self._own_config({"segmenter": type(self.segmenter).__name__})
        )
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_model = getattr(self.segmenter, "save_model", None)
        if save_model is not None:
            save_model(folder)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        segmenter: Segmenter | None = None,
        device: str | torch.device | None = None,
    ) -> SubobjectTokenizer:
        """Read what :meth:`save_pretrained` wrote.

        Parameters
        ----------
        folder : str or Path
            Where it was written.
        segmenter : Segmenter, optional
            In place of the saved one; needed where that is not one of the library's.
        device : str or torch.device, optional
            Where the boundary model runs.

        Raises
        ------
        ConfigError
            If the folder holds no tokenizer, one of another format version, or one with a segmenter
            that the library does not know.
        """
        file = Path(folder) / CONFIG_FILE
        if not file.is_file():
            raise ConfigError(f"no tokenizer in {str(folder)!r}: {CONFIG_FILE} is missing")
        config: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if config["format_version"] != FORMAT_VERSION:
            raise ConfigError(
                f"{str(file)!r} has format version {config['format_version']}, this version of "
                f"subtok_data reads {FORMAT_VERSION}"
            )
        if segmenter is None:
            if config["segmenter"] not in SEGMENTERS:
                raise ConfigError(
                    f"{str(file)!r} was saved with the segmenter {config['segmenter']!r}, which is "
                    f"none of {sorted(SEGMENTERS)}: give it as segmenter=…"
                )
            segmenter = SEGMENTERS[config["segmenter"]].from_config(config, Path(folder), device)
        return cls(
            segmenter,
            order=config["order"],
            size=config["canvas"]["size"],
            square=config["canvas"]["square"],
            **config["budget"],
        )

    def __repr__(self) -> str:
        return (
            f"SubobjectTokenizer({type(self.segmenter).__name__}, {self.segmenter.partitioner}, "
            f"{self.budget}, order={self.order!r}, {self.canvas})"
        )


def _fit_prompts(
    prompts: Sequence[Any] | None,
    sources: Sequence[NDArray[np.uint8]],
    images: Sequence[NDArray[np.uint8]],
) -> list[Prompts | None]:
    """Prompts of each image, in pixels of the image that is cut."""
    if prompts is None:
        return [None] * len(images)
    if len(prompts) != len(images):
        raise PromptError(
            f"{len(prompts)} prompts for {len(images)} images: give one Prompts, or None, per image"
        )
    fitted: list[Prompts | None] = []
    for place, (one, source, image) in enumerate(zip(prompts, sources, images, strict=True)):
        if one is not None and one.size != source.shape[:2]:
            raise PromptError(
                f"image {place} has {source.shape[0]} × {source.shape[1]} pixels, its prompts are "
                f"for {one.size[0]} × {one.size[1]}: give the size of the source, upright"
            )
        fitted.append(None if one is None else one.resized(image_size(image)))
    return fitted
