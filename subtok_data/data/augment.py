"""Live augmentation: image and stored token map together, keyed by (seed, epoch, index)."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors

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
    """Apply a transform to every image of a sample, and to its token map with it.

    Parameters
    ----------
    sample : Sample
        Changed in place and returned.
    transform : callable
        Called as ``transform(image)`` with a ``tv_tensors.Image`` (3, H, W) uint8, or as
        ``transform(image, mask)`` with a ``tv_tensors.Mask`` (H, W) when the sample has stored
        tokens. torchvision's transforms v2 do both.

    Raises
    ------
    ConfigError
        If image and token map leave the transform with different sizes.
    """
    for place, image in enumerate(sample.images):
        picture = tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1))
        if sample.token_maps is None:
            sample.images[place] = to_rgb(transform(picture))
            continue
        # int32: torchvision's nearest resize takes no int16.
        mask = tv_tensors.Mask(torch.from_numpy(sample.token_maps[place].astype(np.int32)))
        picture, mask = transform(picture, mask)
        sample.images[place] = to_rgb(picture)
        moved = np.ascontiguousarray(torch.as_tensor(mask).numpy())
        if moved.shape != sample.images[place].shape[:2]:
            raise ConfigError(
                f"the transform gave an image of {sample.images[place].shape[:2]} pixels and a "
                "token map of "
                f"{moved.shape}: use transforms that move both, such as torchvision.transforms.v2"
            )
        sample.token_maps[place] = moved
    return sample
