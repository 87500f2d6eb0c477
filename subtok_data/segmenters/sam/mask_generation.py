"""Masks of everything in an image from a promptable model: SAM's automatic mask generation.

The procedure is that of Segment Anything (Kirillov et al., arXiv 2304.02643, section B) and its
published code: a grid of points for the image and for each crop, three masks per point, filters,
and suppression of duplicates within and across crops. The model is behind a protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subtok_data.arguments import check_count, check_share
from subtok_data.device_streams import send_to
from subtok_data.errors import ConfigError, SubtokError
from subtok_data.segmenters.sam.generated_masks import GeneratedMasks, mask_boxes, mask_runs

__all__ = [
    "UPSCALED",
    "GenerationOptions",
    "PointDecoder",
    "crop_boxes",
    "generate_masks",
    "nan_error",
    "point_grid",
    "refuse_nan",
]

UPSCALED = 32
"""Masks at the size of the crop or image at one time: this bounds the memory, not the result."""


@dataclass(frozen=True)
class GenerationOptions:
    """How masks of a whole image are generated; the defaults are those of SAM.

    Parameters
    ----------
    points_per_side : int
        The image gets a grid of this many points squared.
    points_per_batch : int
        Points per call of the mask decoder; bounds memory.
    iou_threshold : float
        Masks are kept if the model predicts a higher IoU; 0 keeps all.
    stability_threshold : float
        Least share of pixels that stay when the cut-off rises; 0 keeps all.
    stability_offset : float
        The stability is area(logit > offset) / area(logit > −offset).
    box_nms : float
        Of masks of one crop whose boxes overlap more, the one of highest predicted IoU stays.
    crop_layers : int
        Layer l adds 2^l × 2^l overlapping crops.
    crop_nms : float
        Of masks whose boxes overlap more, the one from the smallest crop stays.
    crop_overlap : float
        Overlap of crops, as a share of the image's shorter side.
    crop_points_factor : int
        The grid of layer l has ``points_per_side / crop_points_factor^l`` points per side.
    edge_margin : float
        Masks whose box comes this close, in pixels, to an edge of their crop that is no edge of the
        image are cut off there, and left out.
    encoder_batch : int
        Images or crops per call of the image encoder.

    Raises
    ------
    ConfigError
        A value out of range.

    Examples
    --------
    >>> GenerationOptions(points_per_side=16).iou_threshold
    0.88
    """

    points_per_side: int = 32
    points_per_batch: int = 64
    iou_threshold: float = 0.88
    stability_threshold: float = 0.95
    stability_offset: float = 1.0
    box_nms: float = 0.7
    crop_layers: int = 0
    crop_nms: float = 0.7
    crop_overlap: float = 512 / 1500
    crop_points_factor: int = 1
    edge_margin: float = 20.0
    encoder_batch: int = 4

    def __post_init__(self) -> None:
        for name in ("points_per_side", "points_per_batch", "crop_points_factor", "encoder_batch"):
            check_count(name, getattr(self, name), optional=False)
        check_count("crop_layers", self.crop_layers, least=0, optional=False)
        for name in ("iou_threshold", "stability_threshold", "box_nms", "crop_nms"):
            check_share(name, getattr(self, name))
        if not 0 <= self.crop_overlap < 1:
            raise ConfigError(f"crop_overlap={self.crop_overlap}: expected 0 or more, below 1")
        for name in ("stability_offset", "edge_margin"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}={getattr(self, name)}: expected 0 or more")
        if self.points_per_side < self.crop_points_factor**self.crop_layers:
            raise ConfigError(
                f"points_per_side={self.points_per_side} leaves no point for crops of layer "
                f"{self.crop_layers} with crop_points_factor={self.crop_points_factor}"
            )

    @property
    def max_overlap(self) -> float:
        """IoU of boxes above which masks that were cleaned count as duplicates.

        The larger of both thresholds, as ``SamAutomaticMaskGenerator`` takes it when it cleans.
        """
        return max(self.box_nms, self.crop_nms)


class PointDecoder(Protocol):
    """A model that gives masks for points."""

    def encode(self, crops: Sequence[NDArray[np.uint8]]) -> list[Any]:
        """Embed (h, w, 3) images; one embedding for each."""
        ...

    def decode(self, embedding: Any, points: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        """Return low-resolution logits (P, M, h, w) and predicted IoU (P, M) for (x, y) points."""
        ...

    def upscale(self, embedding: Any, logits: Tensor) -> Tensor:
        """Bring logits (K, h, w) to the size of the crop."""
        ...


@torch.inference_mode()
def generate_masks(
    decoder: PointDecoder, images: Sequence[NDArray[np.uint8]], options: GenerationOptions
) -> list[GeneratedMasks]:
    """Find masks of everything in each image.

    Parameters
    ----------
    decoder : PointDecoder
        The model.
    images : sequence of (H, W, 3) uint8 arrays
        Encoded together, crops included; decoded one crop after the other.
    options : GenerationOptions
        Grid, filters, crops.

    Returns
    -------
    list of GeneratedMasks
        For each image; without crops ranked by predicted IoU, with crops small crops first.
    """
    jobs = [
        (index, layer, box)
        for index, image in enumerate(images)
        for layer, box in crop_boxes(image.shape[:2], options.crop_layers, options.crop_overlap)
    ]
    found: list[list[GeneratedMasks]] = [[] for _ in images]
    for start in range(0, len(jobs), options.encoder_batch):
        chunk = jobs[start : start + options.encoder_batch]
        crops = [
            np.ascontiguousarray(images[index][y0:y1, x0:x1])
            for index, _, (x0, y0, x1, y1) in chunk
        ]
        for (index, layer, box), embedding in zip(chunk, decoder.encode(crops), strict=True):
            name = index if len(images) > 1 else None
            grid = point_grid(options.points_per_side // options.crop_points_factor**layer)
            masks = _masks_of_crop(
                decoder, embedding, grid, (name, box), images[index].shape[:2], options
            )
            found[index].append(masks.take(_suppress(masks.boxes, masks.ious, options.box_nms)))
    return [_across_crops(parts, options) for parts in found]


def _across_crops(parts: Sequence[GeneratedMasks], options: GenerationOptions) -> GeneratedMasks:
    masks = GeneratedMasks.join(parts)
    if len(parts) < 2:
        return masks
    x0, y0, x1, y1 = masks.crops.T
    return masks.take(_suppress(masks.boxes, 1 / ((x1 - x0) * (y1 - y0)), options.crop_nms))


def _suppress(boxes: NDArray[Any], scores: NDArray[Any], threshold: float) -> NDArray[np.int64]:
    """Greedy suppression by box overlap, on the CPU, where equal scores keep their order."""
    from torchvision.ops import nms  # takes seconds to import, which few processes need

    return nms(
        torch.from_numpy(boxes), torch.from_numpy(scores.astype(np.float32)), threshold
    ).numpy()


def _masks_of_crop(
    decoder: PointDecoder,
    embedding: Any,
    grid: NDArray[np.float64],
    source: tuple[int | None, tuple[int, int, int, int]],
    size: tuple[int, ...],
    options: GenerationOptions,
) -> GeneratedMasks:
    name, crop = source
    x0, y0, x1, y1 = crop
    points = grid * (x1 - x0, y1 - y0)
    parts: list[GeneratedMasks] = []
    for start in range(0, len(points), options.points_per_batch):
        chunk = points[start : start + options.points_per_batch]
        logits, scores = decoder.decode(embedding, chunk)
        ious = scores.flatten().cpu()  # one wait for the device, for all that follows from them
        refuse_nan(ious, name)
        prompts = np.repeat(chunk, logits.shape[1], axis=0)
        logits = logits.flatten(0, 1)
        if options.iou_threshold > 0:
            good = torch.nonzero(ious > options.iou_threshold).flatten()
        else:
            good = torch.arange(len(ious))
        for some in good.split(UPSCALED):
            if len(some):
                masks = decoder.upscale(embedding, logits[send_to(some, logits.device)])
                picked = prompts[some.numpy()]
                parts.append(_filter(masks, ious[some], picked, crop, size, options))
    return GeneratedMasks.join(parts)


def refuse_nan(scores: Tensor, image: int | None = None) -> None:
    """Raise SubtokError for scores that are not finite: filters would drop all masks silently.

    Parameters
    ----------
    scores : tensor
        What a model said; on a device, this waits for it.
    image : int, optional
        Place of the image among those inferred, for the message.

    Examples
    --------
    >>> refuse_nan(torch.zeros(2))
    """
    if not bool(torch.isfinite(scores).all()):
        raise nan_error(image)


def nan_error(image: int | None = None) -> SubtokError:
    """Return the error about scores that are not finite, of one of several images.

    Examples
    --------
    >>> nan_error(2)
    SubtokError('image 2: the model predicts scores that are NaN or infinite: ...')
    """
    where = "" if image is None else f"image {image}: "
    return SubtokError(
        f"{where}the model predicts scores that are NaN or infinite: check its weights and "
        "precision, float16 may overflow"
    )


def _filter(
    logits: Tensor,
    ious: Tensor,
    points: NDArray[np.float64],
    crop: tuple[int, int, int, int],
    size: tuple[int, ...],
    options: GenerationOptions,
) -> GeneratedMasks:
    """Drop unstable masks and those cut off by their crop; the rest in the image's pixels."""
    offset = options.stability_offset
    masks = logits > 0
    measured = torch.cat(
        [
            mask_boxes(masks),
            (logits > offset).sum((1, 2))[:, None],
            (logits > -offset).sum((1, 2))[:, None],
        ],
        dim=1,
    )
    found = measured.cpu().numpy()  # one wait for the device
    # A mask without a possible pixel has no stability: as good as none.
    stability = (found[:, 4] / np.maximum(found[:, 5], 1)).astype(np.float32)
    corner = np.array([crop[0], crop[1], crop[0], crop[1]])
    boxes = (found[:, :4] + corner).astype(np.float32)
    whole = np.array([0, 0, size[1], size[0]])
    at_crop = np.abs(boxes - np.array(crop)) <= options.edge_margin
    at_image = np.abs(boxes - whole) <= options.edge_margin
    keep = ~(at_crop & ~at_image).any(axis=1)
    if options.stability_threshold > 0:
        keep &= stability >= options.stability_threshold
    kept = np.flatnonzero(keep)
    return GeneratedMasks(
        mask_runs(masks[send_to(torch.from_numpy(kept), masks.device)], crop, size),
        boxes[kept],
        ious.float().numpy()[kept],
        stability[kept],
        (points[kept] + corner[:2]).astype(np.float32),
        np.tile(np.array(crop, np.int64), (len(kept), 1)),
    )


def point_grid(points_per_side: int) -> NDArray[np.float64]:
    """Centres (x, y) of n × n cells of the unit square, row by row; (n², 2).

    Examples
    --------
    >>> point_grid(2).tolist()
    [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    """
    centers = (np.arange(points_per_side) + 0.5) / points_per_side
    x, y = np.meshgrid(centers, centers)
    return np.stack([x.ravel(), y.ravel()], axis=1)


def crop_boxes(
    size: tuple[int, int], layers: int, overlap: float
) -> list[tuple[int, tuple[int, int, int, int]]]:
    """Layer and box (x0, y0, x1, y1; half-open) of the whole image and of every crop.

    Parameters
    ----------
    size : (H, W)
        Of the image.
    layers : int
        Layers of crops; 0 for the image alone.
    overlap : float
        Overlap of the crops of layer 1, as a share of the shorter side; of layer l, 2^(1−l) times
        that.

    Examples
    --------
    >>> crop_boxes((100, 100), 1, 0.2)[1:3]
    [(1, (0, 0, 60, 60)), (1, (0, 40, 60, 100))]
    """
    height, width = size
    boxes = [(0, (0, 0, width, height))]
    for layer in range(1, layers + 1):
        count = 2**layer
        shared = int(overlap * min(size) * (2 / count))
        across = ceil((shared * (count - 1) + width) / count)
        down = ceil((shared * (count - 1) + height) / count)
        for column, row in product(range(count), range(count)):
            x, y = (across - shared) * column, (down - shared) * row
            box = (x, y, min(x + across, width), min(y + down, height))
            if box[0] < box[2] and box[1] < box[3]:  # a tiny image has fewer crops
                boxes.append((layer, box))
    return boxes
