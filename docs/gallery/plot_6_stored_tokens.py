"""
Stored tokens under augmentation
================================

Tokenize once, train without a model: a stored token map moves with its image through crops, flips
and rotations of ``torchvision``, and is numbered anew.
"""

import tempfile

import matplotlib.pyplot as plt
from skimage import data
from torchvision.transforms import v2

from subtok_data import SubobjectCollator, SubobjectDataset, SubobjectTokenizer
from subtok_data.data import tokenize_dataset
from subtok_data.viz import outline_image

photos = [data.astronaut(), data.chelsea(), data.coffee()]
tokenizer = SubobjectTokenizer(num_tokens=60, size=384)
folder = tempfile.mkdtemp()
report = tokenize_dataset(photos, tokenizer, folder, executor="inline")
print(report.images, "images,", report.tokens, "tokens")

augment = v2.Compose([v2.RandomResizedCrop(320, scale=(0.3, 0.8)), v2.RandomHorizontalFlip()])
collator = SubobjectCollator(tokenizer)

figure, axes = plt.subplots(3, 4, figsize=(11, 8.2), layout="constrained")
for column, seed in enumerate((None, 1, 2, 3)):
    options = {} if seed is None else {"transform": augment, "seed": seed}
    dataset = SubobjectDataset(photos, tokens=folder, **options)
    for ax, index in zip(axes[:, column], range(3)):
        batch = collator([dataset[index]])  # no model runs
        h, w = batch["map_sizes"][0].tolist()
        image = batch["pixel_values"][0, :, :h, :w].permute(1, 2, 0).numpy()
        image = (255 * (image - image.min()) / (image.max() - image.min())).astype("uint8")
        ax.imshow(outline_image(image, batch["visual_token_map"][0, :h, :w].numpy()))
        ax.set_title(f"{batch['num_visual_tokens'][0]} tokens", fontsize=9)
        ax.set_axis_off()

# %%
# The first column is what was stored. Random numbers are keyed by (seed, epoch, index), so any
# number of workers gives the same crops.
