"""
Patches, superpixels, subobjects
================================

The same number of tokens from three segmenters. Only one argument changes.
"""

import matplotlib.pyplot as plt
from skimage import data

from subtok_data import EPOCSegmenter, PatchSegmenter, SubobjectTokenizer, SuperpixelSegmenter
from subtok_data.viz import mean_color_image, outline_image

segmenters = {
    "patches": PatchSegmenter(64),
    "SLIC": SuperpixelSegmenter("slic", n_segments=64),
    "subobjects": EPOCSegmenter(),
}
figure, axes = plt.subplots(2, 3, figsize=(10, 6.9), layout="constrained")
for (above, below), (name, segmenter) in zip(axes.T, segmenters.items()):
    tokens = SubobjectTokenizer(segmenter, num_tokens=64)(data.astronaut())
    above.imshow(outline_image(tokens.image, tokens.token_map))
    above.set_title(f"{name}: {tokens.num_tokens} tokens")
    below.imshow(mean_color_image(tokens.image, tokens.token_map))
for ax in axes.flat:
    ax.set_axis_off()

# %%
# Below, each token is painted in its mean colour: what is left of the photo when a token is one
# colour. Whether that helps a model is another question; :doc:`the page on models </vlm>` has what
# was measured.
