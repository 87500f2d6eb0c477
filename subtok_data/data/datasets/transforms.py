"""Augmentation of images with regions: large-scale jitter, and flips that respect the texts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from subtok_data.errors import ConfigError

__all__ = ["LargeScaleJitter", "TextSafeHorizontalFlip", "names_a_side", "refuse_plain_flips"]

IMAGENET_MEAN = (124, 116, 104)
"""Mean colour that SAM's preprocessing subtracts, rounded: padding becomes about 0."""

_SIDES = ("left", "right")
_ENDINGS = r"(?:[\s-]?(?:hand(?:ed)?|most|wards?|side))?"


class LargeScaleJitter(v2.Transform):
    """Resize by a random factor, then crop or pad to a fixed size.

    Large-scale jitter (Ghiasi et al., arXiv 2012.07177) as SCA trains with: the image is fitted
    into ``size`` × ``size``, scaled by a factor drawn evenly from ``scale``, cropped to the size at
    a random place, and padded on the right and below. Boxes, points and masks are transformed with
    it; what leaves the image is dropped afterwards, with its text.

    Parameters
    ----------
    size : int
        Side of the result, px.
    scale : (float, float), optional
        Smallest and largest factor.
    fill : sequence of 3 int, optional
        Colour of the padding, 0 to 255; ImageNet's mean by default, which normalisation turns into
        about 0.
    pad : bool, optional
        Pad. Without it an image that is smaller keeps its size, and tokenization, which resizes
        images to its own canvas, enlarges it again.

    Notes
    -----
    Unlike the original, it antialiases where it makes an image smaller, and draws the place of the
    crop for each axis by itself. Regions whose shorter side is then under 1 px are dropped
    (``min_side`` of :class:`~subtok_data.RegionDataset`).

    Raises
    ------
    ConfigError
        A size below 2, or factors that are not 0 < smallest ≤ largest.

    Examples
    --------
    >>> image = tv_tensors.Image(torch.zeros(3, 40, 60, dtype=torch.uint8))
    >>> LargeScaleJitter(32)({"image": image, "texts": ["a cup"]})["image"].shape
    torch.Size([3, 32, 32])
    """

    def __init__(
        self,
        size: int = 1024,
        scale: tuple[float, float] = (0.1, 2.0),
        *,
        fill: Sequence[int] = IMAGENET_MEAN,
        pad: bool = True,
    ) -> None:
        super().__init__()
        if size < 2:
            raise ConfigError(f"LargeScaleJitter(size={size}): give at least 2 pixels")
        if not 0 < scale[0] <= scale[1]:
            raise ConfigError(f"LargeScaleJitter(scale={scale}): expected 0 < smallest ≤ largest")
        self.size = size
        self.scale = scale
        self.fill = tuple(fill)
        self.pad = pad

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the factor and the place of the crop."""
        height, width = v2.query_size(flat_inputs)
        smallest, largest = self.scale
        factor = smallest + float(torch.rand(())) * (largest - smallest)
        fitted = min(self.size / height, self.size / width) * factor
        # Two pixels at least: torch's antialiasing of bytes fails on a single one.
        size = [max(2, round(height * fitted)), max(2, round(width * fitted))]
        crop = [min(side, self.size) for side in size]
        corner = [
            int(torch.randint(0, side - kept + 1, ()))
            for side, kept in zip(size, crop, strict=True)
        ]
        missing = [self.size - side if self.pad else 0 for side in crop]
        return {"size": size, "corner": corner, "crop": crop, "padding": [0, 0, *missing[::-1]]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize, crop and pad one input."""
        functional = v2.functional
        resized = self._call_kernel(functional.resize, inpt, size=params["size"], antialias=True)
        if params["crop"] != params["size"]:
            top, left = params["corner"]
            height, width = params["crop"]
            resized = self._call_kernel(
                functional.crop, resized, top=top, left=left, height=height, width=width
            )
        if any(params["padding"]):
            is_mask = isinstance(inpt, tv_tensors.Mask)
            if is_mask and inpt.ndim == 2:
                # A map of stored tokens: the padding becomes a token of its own.
                fill: Any = int(inpt.max()) + 1
            else:
                fill = 0 if is_mask else list(self.fill)
            resized = self._call_kernel(
                functional.pad, resized, padding=params["padding"], fill=fill
            )
        return resized


class TextSafeHorizontalFlip(v2.RandomHorizontalFlip):
    """Flip an image left to right, unless a text of it says left or right.

    Looks at ``"texts"`` (of the regions) and ``"row_texts"`` (all strings in the other columns) of
    the dict that a dataset with regions calls its transform with. Words are whole words: left,
    right, lefthand, right-handed, leftmost, rightwards …; not leftover, bright.

    Parameters
    ----------
    p : float, optional
        Probability of a flip where one is allowed.
    words : sequence of str, optional
        Words for the sides; name those of the texts' language.

    Examples
    --------
    >>> image = tv_tensors.Image(torch.arange(3, dtype=torch.uint8).repeat(3, 1, 1))
    >>> flip = TextSafeHorizontalFlip(p=1.0)
    >>> flip({"image": image, "texts": ["a cup"]})["image"][0].tolist()
    [[2, 1, 0]]
    >>> flip({"image": image, "texts": ["the cup on the left"]})["image"][0].tolist()
    [[0, 1, 2]]
    """

    def __init__(self, p: float = 0.5, words: Sequence[str] = _SIDES) -> None:
        super().__init__(p)
        self.words = tuple(words)

    def forward(self, *inputs: Any) -> Any:
        """Flip, or return the inputs as they are."""
        for given in inputs:
            if isinstance(given, Mapping):
                texts = [*given.get("texts", ()), *given.get("row_texts", ())]
                if any(names_a_side(text, self.words) for text in texts):
                    return inputs if len(inputs) > 1 else given
        return super().forward(*inputs)


def names_a_side(text: str, words: Sequence[str] = _SIDES) -> bool:
    """Tell whether a text says left or right, as a word of its own.

    Examples
    --------
    >>> [names_a_side(text) for text in ("the Left one", "right-hand side", "rightmost")]
    [True, True, True]
    >>> [names_a_side(text) for text in ("leftover rice", "bright light", "upright")]
    [False, False, False]
    """
    sides = "|".join(map(re.escape, words))
    pattern = rf"(?<![^\W\d_])(?:{sides}){_ENDINGS}(?![^\W\d_])"
    return re.search(pattern, text, re.IGNORECASE) is not None


def refuse_plain_flips(transform: Callable[..., Any] | None) -> None:
    """Refuse a transform that flips left to right whatever the texts say.

    Looks into containers, attributes and closures of the transform. A flip that a function of its
    own calls cannot be seen from outside.

    Raises
    ------
    ConfigError
        Naming the transform to take instead.
    """
    for part in _parts(transform, set()):
        name = getattr(part, "__name__", type(part).__name__)
        plain = re.search("horizontal_?flip|hflip", name, re.IGNORECASE) is not None
        if plain and not isinstance(part, TextSafeHorizontalFlip):
            raise ConfigError(
                f"{name} in the transform of a dataset with region texts: a text that says left or "
                "right would be wrong of the flipped image. Take TextSafeHorizontalFlip(p) "
                "instead, which leaves such rows as they are"
            )


def _parts(transform: Any, seen: set[int]) -> Iterator[Any]:
    """A transform, and the transforms it is made of."""
    if id(transform) in seen or isinstance(transform, (torch.Tensor, str, bytes, int, float)):
        return
    seen.add(id(transform))
    inside: list[Any] = []
    if isinstance(transform, Mapping):
        inside += transform.values()
    elif isinstance(transform, (list, tuple, set)):
        inside += transform
    elif callable(transform) and not isinstance(transform, type):
        yield transform
        inside += getattr(transform, "__dict__", {}).values()
        inside += [getattr(transform, name, None) for name in ("__self__", "func", "args")]
        inside += [cell.cell_contents for cell in getattr(transform, "__closure__", None) or ()]
        if isinstance(transform, nn.Module):
            inside += nn.Module.children(transform)
    for part in inside:
        yield from _parts(part, seen)
