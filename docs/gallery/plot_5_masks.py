"""
Masks of SAM as a partition
===========================

Models like SAM give masks that overlap and leave gaps; a model of tokens needs each pixel once.
``MaskPartitioner`` paints them over one another, small ones on top, makes tokens of large gaps, and
gives the remaining pixels to their neighbours.
"""

import matplotlib.pyplot as plt
import numpy as np
from skimage import data

from subtok_data.segment import FillRules, MaskPartitioner, RLEMasks
from subtok_data.viz import mean_color_image, outline_image

# %%
# The masks here are drawn by hand, so that this page needs no weights: ellipses (y, x, height,
# width) on a cup of coffee.

photo = data.coffee()
height, width = photo.shape[:2]
y, x = np.mgrid[:height, :width]
shapes = {
    "saucer": (230, 278, 168, 202),
    "cup": (150, 290, 122, 115),
    "rim": (100, 290, 84, 120),
    "coffee": (150, 296, 58, 76),
    "spoon": (279, 365, 46, 42),
    "handle": (275, 225, 32, 24),
}
masks = [((y - cy) / h) ** 2 + ((x - cx) / w) ** 2 < 1 for cy, cx, h, w in shapes.values()]
covered = np.sum(masks, axis=0)
print(
    f"of the pixels {(covered == 0).mean():.0%} in no mask, {(covered > 1).mean():.0%} in several"
)

partitioner = MaskPartitioner("area", FillRules(min_area=64, gap_area=1000))
partition = partitioner(
    RLEMasks.from_masks(masks, size=(height, width)).to_evidence(), (height, width)
)
print(partition.num_tokens, "tokens; source (0 mask, 1 gap):", partition.token_fields["source"])

figure, axes = plt.subplots(1, 3, figsize=(11, 2.9), layout="constrained")
axes[0].imshow(photo)
for mask in masks:
    axes[0].contour(mask, levels=[0.5], colors="#ffd866", linewidths=1.5)
axes[1].imshow(covered, cmap="Blues", vmax=len(masks))
flat = mean_color_image(photo, partition.token_map)
axes[2].imshow(outline_image(flat, partition.token_map))
for ax, title in zip(axes, ("masks", "masks per pixel", f"{partition.num_tokens} tokens")):
    ax.set_title(title)
    ax.set_axis_off()

# %%
# With a model it is one argument, ``SubobjectTokenizer(SAMSegmenter("facebook/sam-vit-base"))``:
# :doc:`/sam` is about that, and :doc:`/segmenters` has EfficientSAM and panoptic models too.
