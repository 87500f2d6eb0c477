"""SAM's zero-shot edges as a boundary map: tokens by seeds and flood, from a promptable model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subtok_data.arguments import check_count, check_share
from subtok_data.device_streams import send_to
from subtok_data.segment import WatershedPartitioner
from subtok_data.segmenters.base import (
    Evidence,
    Images,
    Segmenter,
    Sizes,
    partitioner_config,
    refuse_prompts,
)
from subtok_data.segmenters.sam.decoder import PromptableModel
from subtok_data.segmenters.sam.generated_masks import mask_boxes
from subtok_data.segmenters.sam.mask_generation import (
    UPSCALED,
    PointDecoder,
    point_grid,
    refuse_nan,
)

__all__ = ["SAMEdgeSegmenter", "edge_map"]


@torch.inference_mode()
def edge_map(
    decoder: PointDecoder,
    image: NDArray[np.uint8],
    *,
    points_per_side: int = 16,
    points_per_batch: int = 64,
    box_nms: float = 0.7,
) -> NDArray[np.uint8]:
    """Edges of an image from the masks of a grid of points (Kirillov et al., section D.2).

    Masks are not filtered; duplicates are suppressed by box. Of each mask's probabilities, the
    Sobel magnitude is taken along the outline of the mask; the map is the highest over all masks,
    stretched to the full range. Images are taken to go on at their edges, so that those are no
    edges themselves. The paper thins its edges in the end; a flood needs them as they are.

    Parameters
    ----------
    decoder : PointDecoder
        The model.
    image : (H, W, 3) uint8
        The image.
    points_per_side, points_per_batch : int
        Grid, and points per call of the mask decoder.
    box_nms : float
        Of masks whose boxes overlap more, the one of highest predicted IoU stays.

    Returns
    -------
    (H, W) uint8
        255 at the strongest edge; zeros if no mask has one.
    """
    from torchvision.ops import nms  # takes seconds to import, which few processes need

    (embedding,) = decoder.encode([image])
    points = point_grid(points_per_side) * (image.shape[1], image.shape[0])
    logits: list[Tensor] = []
    measured: list[Tensor] = []  # boxes and scores, copied down together: one wait for the device
    for start in range(0, len(points), points_per_batch):
        some, scores = decoder.decode(embedding, points[start : start + points_per_batch])
        logits.append(some.flatten(0, 1))
        parts = logits[-1].split(UPSCALED)
        boxes = [mask_boxes(decoder.upscale(embedding, part) > 0).float() for part in parts]
        measured.append(torch.cat([torch.cat(boxes), scores.float().reshape(-1, 1)], dim=1))
    found = torch.cat(measured).cpu()
    refuse_nan(found[:, 4])
    kept = nms(found[:, :4].contiguous(), found[:, 4].contiguous(), box_nms)
    low = torch.cat(logits)
    strength = torch.zeros(image.shape[:2], device=low.device)
    for some in kept.split(UPSCALED):
        masks = decoder.upscale(embedding, low[send_to(some, low.device)])
        outline = _sobel((masks > 0).float()) > 0
        edges = torch.where(outline, _sobel(masks.sigmoid()), 0.0)
        strength = torch.maximum(strength, edges.amax(0))
    strength -= strength.min()
    strength /= strength.max().clamp(min=torch.finfo(torch.float32).tiny)
    return (strength * 255).round().to(torch.uint8).cpu().numpy()


def _sobel(maps: Tensor) -> Tensor:
    """Sobel magnitude of maps (K, H, W), continued at their edges."""
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    kernels = send_to(torch.stack([kernel, kernel.T])[:, None], maps.device)
    padded = torch.nn.functional.pad(maps[:, None], (1, 1, 1, 1), mode="replicate")
    return torch.nn.functional.conv2d(padded, kernels).square().sum(1).sqrt()


class SAMEdgeSegmenter(PromptableModel, Segmenter):
    """Zero-shot edges of SAM or SAM 2 in place of a boundary model, then seeds and flood.

    Parameters
    ----------
    model, processor, device
        As in :class:`~subtok_data.SAMSegmenter`.
    threshold : float, optional
        Seeds are the connected parts with an edge value below this, in (0, 1);
        ``DEFAULT_THRESHOLD`` (0.1) if not given. Not together with
        ``num_tokens`` or ``strength`` of the tokenizer.
    points_per_side, points_per_batch : int
        Grid, and points per call of the mask decoder.
    box_nms : float
        Of masks whose boxes overlap more, the one of highest predicted IoU stays.

    Raises
    ------
    ConfigError, WeightsError
        As in :class:`~subtok_data.SAMSegmenter`.

    Examples
    --------
    >>> from subtok_data import SAMEdgeSegmenter, SubobjectTokenizer
    >>> tokenizer = SubobjectTokenizer(SAMEdgeSegmenter("facebook/sam-vit-base"), num_tokens=100)
    """

    name: ClassVar[str] = "sam-edges"

    def __init__(
        self,
        model: str | Path | torch.nn.Module | PointDecoder,
        processor: Any = None,
        *,
        threshold: float | None = None,
        points_per_side: int = 16,
        points_per_batch: int = 64,
        box_nms: float = 0.7,
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__(model, processor, device)
        check_count("points_per_side", points_per_side, optional=False)
        check_count("points_per_batch", points_per_batch, optional=False)
        check_share("box_nms", box_nms)
        self.partitioner = WatershedPartitioner(threshold=threshold)
        self.options: dict[str, Any] = {
            "points_per_side": points_per_side,
            "points_per_batch": points_per_batch,
            "box_nms": box_nms,
        }

    def infer(
        self, images: Images, sizes: Sizes, prompts: Sequence[Any] | None = None
    ) -> list[Evidence]:
        """Return ``{"boundary_map": (H, W) uint8}`` for each image, one after the other."""
        del sizes
        refuse_prompts(self, prompts)
        return [{"boundary_map": edge_map(self.decoder, image, **self.options)} for image in images]

    def config(self) -> dict[str, Any]:
        """Options and the identity of the weights, as JSON values."""
        return {
            "segmenter": self.name,
            "partitioner": partitioner_config(self.partitioner),
            "edges": self.options,
            "model": self.model_hash(),
        }

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], folder: Path, device: str | torch.device | None
    ) -> Self:
        """Build from what :meth:`config` and :meth:`save_model` wrote."""
        return cls(
            folder / cls.folder,
            threshold=config["partitioner"].get("threshold"),
            **config["edges"],
            device=device,
        )
