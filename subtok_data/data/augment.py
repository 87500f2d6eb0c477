"""Live augmentation: an image and what lies on it together, keyed by (seed, epoch, index)."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import tv_tensors

from subtok_data.data.moving import prompts_from_tensors, prompts_to_tensors
from subtok_data.data.sample import Sample
from subtok_data.errors import ConfigError
from subtok_data.images import to_rgb

__all__ = ["augment", "keyed_randomness"]


@contextmanager
def keyed_randomness(*key: int) -> Generator[None]:
    """Seed Python's, numpy's and torch's global generators from a key, and restore them afterwards.

    The same key gives the same augmentation in any process, for any number of workers.
    """
    seed = int(np.random.SeedSequence([part & 0xFFFFFFFF for part in key]).generate_state(1)[0])
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


def augment(sample: Sample, transform: Callable[..., Any]) -> Sample:
    """Apply a transform to every image of a sample, and with it to its token map and prompts.

    Parameters
    ----------
    sample : Sample
        Changed in place and returned.
    transform : callable
        Called as ``transform(image)`` with a ``tv_tensors.Image`` (3, H, W) uint8; as
        ``transform(image, mask)`` with a ``tv_tensors.Mask`` (H, W) when the sample has stored
        tokens; as ``transform({"image": image, …})`` when it has prompts: with what
        :func:`~subtok_data.data.moving.prompts_to_tensors` gives, and ``"row_texts"``, all strings
        in the other columns of the row. torchvision's transforms v2 do all three.

    Raises
    ------
    ConfigError
        If image and token map leave the transform with different sizes, or it changes the number
        of boxes, points or masks.

    Notes
    -----
    Prompts of which nothing is left in the picture are dropped; ``Prompts.ids`` of the others tells
    which they are.
    """
    for place, image in enumerate(sample.images):
        moved: dict[str, Any] = {
            "image": tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1))
        }
        if sample.token_maps is not None:
            # int32: torchvision's nearest resize takes no int16.
            token_map = torch.from_numpy(sample.token_maps[place].astype(np.int32))
            moved["token_map"] = tv_tensors.Mask(token_map)
        if sample.prompts is not None:
            moved |= prompts_to_tensors(sample.prompts[place])
            moved = transform({**moved, "row_texts": list(_strings(sample.columns))})
        elif sample.token_maps is not None:
            moved = dict(zip(moved, transform(*moved.values()), strict=True))
        else:
            moved["image"] = transform(moved["image"])
        sample.images[place] = to_rgb(moved["image"])
        size = (sample.images[place].shape[0], sample.images[place].shape[1])
        if sample.token_maps is not None:
            sample.token_maps[place] = _same_size(moved["token_map"], size)
        if sample.prompts is not None:
            sample.prompts[place] = prompts_from_tensors(sample.prompts[place], moved, size)
    return sample


def _strings(value: Any) -> Iterator[str]:
    """All strings in nested columns."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _strings(inner)


def _same_size(mask: Any, size: tuple[int, int]) -> NDArray[Any]:
    token_map = np.ascontiguousarray(torch.as_tensor(mask).numpy())
    if token_map.shape != size:
        raise ConfigError(
            f"the transform gave an image of {size} pixels and a token map of {token_map.shape}: "
            "use transforms that move both, such as torchvision.transforms.v2"
        )
    return token_map
