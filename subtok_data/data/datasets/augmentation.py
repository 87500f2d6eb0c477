"""Live augmentation of images, token maps and prompts together, keyed by (seed, epoch, index)."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from subtok_data.data.datasets.sample import Sample
from subtok_data.errors import ConfigError, ImageError
from subtok_data.images import image_size, to_rgb
from subtok_data.segment import Prompts, RLEMasks, label_runs

__all__ = ["augment", "keyed_randomness", "prompts_from_tensors", "prompts_to_tensors"]


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
    """Augment every image of a sample together with its token map and prompts.

    Parameters
    ----------
    sample : Sample
        Changed in place and returned.
    transform : callable
        Called as ``transform(image)`` with a ``tv_tensors.Image`` (3, H, W) uint8; as
        ``transform(image, mask)`` with a ``tv_tensors.Mask`` (H, W) when the sample has stored
        tokens; as ``transform({"image": image, …})`` when it has prompts: with what
        :func:`prompts_to_tensors` returns, and ``"row_texts"``, all strings in the other columns of
        the row. torchvision's transforms v2 do all three.

    Raises
    ------
    ConfigError
        If image and token map leave the transform with different sizes, it changes the number of
        boxes, points or masks, or it takes no tensors (torchvision's ``ToTensor``).
    ImageError
        If what it returns is no image.

    Notes
    -----
    Prompts of which nothing is left in the image are dropped; ``Prompts.ids`` of the others tells
    which they are.
    """
    from torchvision import tv_tensors  # takes seconds to import, which few workers need

    images = [image if image.flags.writeable else image.copy() for image in sample.images]
    for place, image in enumerate(images):
        transformed: dict[str, Any] = {
            "image": tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1))
        }
        if sample.token_maps is not None:
            # int32: torchvision's nearest resize takes no int16.
            token_map = torch.from_numpy(sample.token_maps[place].astype(np.int32))
            transformed["token_map"] = tv_tensors.Mask(token_map)
        if sample.prompts is not None:
            transformed |= prompts_to_tensors(sample.prompts[place])
            row_texts = list(_strings(sample.columns))
            transformed = _apply(transform, {**transformed, "row_texts": row_texts})
        elif sample.token_maps is not None:
            given = transformed.values()
            transformed = dict(zip(transformed, _apply(transform, *given), strict=True))
        else:
            transformed["image"] = _apply(transform, transformed["image"])
        try:
            images[place] = to_rgb(transformed["image"])
        except ImageError as error:
            raise ImageError(f"the transform returned no image: {error}") from error
        size = image_size(images[place])
        if sample.token_maps is not None:
            sample.token_maps[place] = _same_size(transformed["token_map"], size)
        if sample.prompts is not None:
            sample.prompts[place] = prompts_from_tensors(sample.prompts[place], transformed, size)
    sample.images = images
    return sample


def _apply(transform: Callable[..., Any], *given: Any) -> Any:
    try:
        return transform(*given)
    except (TypeError, AttributeError) as error:
        # What a transform written for Pillow images raises of a tensor.
        raise ConfigError(
            f"the transform failed on a tv_tensors.Image (3, H, W) of uint8: {error}. Images are "
            "tensors here: leave out ToTensor and conversions from or to Pillow, and take "
            "torchvision.transforms.v2; normalisation belongs into PixelConfig"
        ) from error


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
            "use transforms that change both, such as torchvision.transforms.v2"
        )
    return token_map


_CENTRE = 0.5
"""torchvision flips key points as if the first pixel's centre were at 0; ours is at 0.5."""


def prompts_to_tensors(prompts: Prompts) -> dict[str, Any]:
    """Convert prompts to the tensors that a transform is called with.

    Parameters
    ----------
    prompts : Prompts
        P prompts of an image.

    Returns
    -------
    dict
        Only what there is: ``boxes``, ``tv_tensors.BoundingBoxes`` of the prompts that have one;
        ``points``, ``tv_tensors.KeyPoints`` (x, y; the first pixel's centre at 0); ``masks``,
        ``tv_tensors.Mask`` (L, H, W) int32, in which prompt p is p + 1, and L as many layers as
        overlapping masks need; ``texts``, a list of strings.

    Raises
    ------
    ConfigError
        Points, with a torchvision that has no ``KeyPoints`` (below 0.23).

    Examples
    --------
    >>> prompts = Prompts.of((20, 30), boxes=[[1, 2, 3, 4]], texts=["a cup"])
    >>> sorted(prompts_to_tensors(prompts))
    ['boxes', 'texts']
    """
    from torchvision import tv_tensors

    tensors: dict[str, Any] = {}
    if prompts.has_box.any():
        boxes = torch.from_numpy(prompts.boxes[prompts.has_box])
        tensors["boxes"] = tv_tensors.BoundingBoxes(
            boxes,  # pyright: ignore[reportCallIssue]  # the overloads of torchvision name no Tensor
            format=tv_tensors.BoundingBoxFormat.XYXY,
            canvas_size=prompts.size,
        )
    if (prompts.labels >= 0).any():
        points = prompts.points[prompts.labels >= 0]
        tensors["points"] = _key_points(points - _CENTRE, prompts.size)
    if prompts.masks is not None and prompts.has_mask.any():
        tensors["masks"] = tv_tensors.Mask(torch.from_numpy(_layers(prompts.masks)))
    if prompts.texts is not None:
        tensors["texts"] = list(prompts.texts)
    return tensors


def prompts_from_tensors(
    prompts: Prompts, transformed: Mapping[str, Any], size: tuple[int, int]
) -> Prompts:
    """Convert transformed tensors back to prompts; those of which nothing is left are dropped.

    Parameters
    ----------
    prompts : Prompts
        Those before.
    transformed : mapping
        What the transform returned for :func:`prompts_to_tensors`.
    size : (H, W)
        Of the image after it, px.

    Returns
    -------
    Prompts
        Prompts with a box, a point inside or a mask pixel in the image; where there are several,
        all that is left of them. Their ``ids`` are those before.

    Raises
    ------
    ConfigError
        If the transform changed the number of boxes, points or masks.
    """
    bounds = np.array([size[1], size[0]] * 2, np.float32)
    boxes, points, labels = prompts.boxes.copy(), prompts.points.copy(), prompts.labels.copy()
    if prompts.has_box.any():
        found = np.clip(_read(transformed, "boxes", (int(prompts.has_box.sum()), 4)), 0, bounds)
        found[(found[:, 2:] <= found[:, :2]).any(1)] = np.nan
        boxes[prompts.has_box] = found
    used = prompts.labels >= 0
    if used.any():
        dots = _read(transformed, "points", (int(used.sum()), 2)) + _CENTRE
        points[used] = dots
        labels[used] = np.where(
            ((dots >= 0) & (dots < bounds[:2])).all(1), prompts.labels[used], -1
        )
    masks = None
    if prompts.masks is not None:
        masks = _unlayered(transformed, len(prompts), size, any_mask=bool(prompts.has_mask.any()))
    after = replace(prompts, size=size, boxes=boxes, points=points, labels=labels, masks=masks)
    left = after.has_box | after.has_point | after.has_mask
    return after if left.all() else after.take(np.flatnonzero(left))


def _key_points(points: NDArray[np.float32], size: tuple[int, int]) -> Any:
    from torchvision import tv_tensors

    kind: Any = getattr(tv_tensors, "KeyPoints", None)
    if kind is None:
        raise ConfigError(
            "this torchvision has no KeyPoints, which transform points with their image: install "
            "torchvision 0.23 or later, or leave out the transform"
        )
    return kind(torch.from_numpy(points), canvas_size=size)


def _read(transformed: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    values = np.asarray(torch.as_tensor(transformed[name]), np.float32)
    if values.shape != shape:
        raise ConfigError(
            f"the transform made {name} of shape {values.shape} of {shape}: leave out transforms "
            "that remove some, such as SanitizeBoundingBoxes; what leaves the image is dropped "
            "afterwards, together with its text"
        )
    return values


def _layers(masks: RLEMasks) -> NDArray[np.int32]:
    """Masks as label maps: each in the first layer where it overlaps no other."""
    layers: list[NDArray[np.int32]] = []
    for prompt in range(len(masks)):
        pixels = np.flatnonzero(masks.mask(prompt))
        layer = next((one for one in layers if not one.ravel()[pixels].any()), None)
        if layer is None:
            layer = np.zeros(masks.size, np.int32)
            layers.append(layer)
        layer.ravel()[pixels] = prompt + 1
    return np.stack(layers)


def _unlayered(
    transformed: Mapping[str, Any], count: int, size: tuple[int, int], *, any_mask: bool
) -> RLEMasks:
    runs = [np.array([size[0] * size[1]], np.int32)] * count
    layers: NDArray[Any] = np.zeros((0, *size), np.int32)
    if any_mask:
        layers = torch.as_tensor(transformed["masks"]).numpy()
    if layers.shape[1:] != tuple(size):
        raise ConfigError(
            f"the transform gave an image of {size} pixels and masks of {layers.shape[1:]}: use "
            "transforms that change both, such as torchvision.transforms.v2"
        )
    for layer in layers:
        for prompt, own in enumerate(label_runs(layer, range(1, count + 1))):
            if len(own) > 1:  # the mask of a prompt in another layer is one run of nothing
                runs[prompt] = own
    return RLEMasks.from_runs(runs, size)
