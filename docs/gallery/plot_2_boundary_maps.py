"""
Boundary maps and scales
========================

A small network gives each pixel the probability that it lies on a boundary. Run at several sizes of
the image, it finds more, and takes as much longer as there are pixels.
"""

import matplotlib.pyplot as plt
from skimage import data

from subtok_data import BoundaryModel
from subtok_data.viz import boundary_image

photo = data.coffee()
settings = {"one size": (1.0,), "1 and 1.5": (1.0, 1.5), "0.5, 1, 1.5 and 2": (0.5, 1.0, 1.5, 2.0)}

figure, axes = plt.subplots(2, 2, figsize=(9, 6.4), layout="constrained")
axes.flat[0].imshow(photo)
axes.flat[0].set_title("photo")
for ax, (title, scales) in zip(axes.flat[1:], settings.items()):
    model = BoundaryModel.from_pretrained(scales=scales)
    ax.imshow(boundary_image(model.predict(photo)))
    ax.set_title(title)
for ax in axes.flat:
    ax.set_axis_off()

# %%
# The map is all that the default tokens are made of: ``SubobjectTokenizer(EPOCSegmenter(model))``
# takes a model with scales of its own.

from subtok_data import EPOCSegmenter, SubobjectTokenizer  # noqa: E402
from subtok_data.viz import plot_tokens  # noqa: E402

tokenizer = SubobjectTokenizer(EPOCSegmenter(model), num_tokens=60)
plot_tokens(tokenizer(photo))
