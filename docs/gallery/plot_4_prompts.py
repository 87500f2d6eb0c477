"""
Boxes become tokens
===================

Detections, annotations or clicks are tokens of their own, and the rest of the image is partitioned
around them. No promptable model is needed.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle
from skimage import data

from subtok_data import PromptedSegmenter, Prompts, SubobjectTokenizer
from subtok_data.viz import outline_image

photo = data.astronaut()
boxes = [[152, 15, 300, 175], [367, 0, 456, 268], [281, 343, 510, 512]]
names = ["head", "shuttle", "helmet"]
prompts = Prompts.of(photo.shape[:2], boxes=boxes, texts=names)
tokens = SubobjectTokenizer(PromptedSegmenter(), max_tokens=48)(photo, prompts=prompts)

colours = np.array([[240, 90, 60], [60, 140, 255], [60, 190, 90]])
painted = tokens.image.copy()
for token, colour in zip(tokens.prompt_tokens, colours):
    inside = tokens.token_map == token
    painted[inside] = 0.45 * painted[inside] + 0.55 * colour

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 5.1), layout="constrained")
left.imshow(photo)
for (x0, y0, x1, y1), name, colour in zip(boxes, names, colours / 255):
    left.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=3))
    left.text(x0 + 6, y0 + 24, name, color="white", backgroundcolor=colour)
right.imshow(outline_image(painted, tokens.token_map))
for ax in (left, right):
    ax.set_axis_off()

# %%
# ``prompt_tokens`` has the token of each prompt. In a data set boxes are a column, and move with
# augmentations: :doc:`/prompts`.

for name, token in zip(names, tokens.prompt_tokens):
    print(
        f"{name:8} token {token}, {tokens.areas[token]} pixels, box {tokens.boxes[token].tolist()}"
    )
