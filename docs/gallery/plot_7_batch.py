"""
A batch, drawn
==============

Images of different sizes and different numbers of tokens in one ``dict`` of tensors; each image
stands in the text as one placeholder per token.
"""

# sphinx_gallery_thumbnail_number = 2
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from skimage import data
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from subtok_data import SubobjectCollator, SubobjectTokenizer, TextConfig
from subtok_data.viz import mean_color_image

# A language model's tokenizer comes from AutoTokenizer.from_pretrained; this one needs no network.
rows = [
    {"image": data.astronaut(), "caption": "an astronaut in front of a flag"},
    {"image": data.chelsea(), "caption": "a cat"},
    {"image": data.rocket(), "caption": "a rocket on its launch pad at night"},
]
words = [
    "<pad>",
    "</s>",
    "<unk>",
    *sorted({word for row in rows for word in row["caption"].split()}),
]
core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
core.pre_tokenizer = pre_tokenizers.Whitespace()
language = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>")

tokenizer = SubobjectTokenizer(strength=0.7, max_tokens=40, size=256)
batch = SubobjectCollator(tokenizer, text=TextConfig(language, caption="caption"))(rows)
for key in (
    "input_ids",
    "labels",
    "pixel_values",
    "visual_token_map",
    "num_visual_tokens",
    "visual_token_boxes",
):
    print(f"{key:20} {batch[key].dtype!s:14} {tuple(batch[key].shape)}")

# %%
# The maps, padded right and below to the largest image, each token in its mean colour:

figure, axes = plt.subplots(1, 3, figsize=(10, 3.7), layout="constrained")
for ax, image, token_map, count in zip(
    axes, batch["pixel_values"], batch["visual_token_map"], batch["num_visual_tokens"]
):
    image = image.permute(1, 2, 0).numpy()
    image = (255 * (image - image.min()) / (image.max() - image.min())).astype(np.uint8)
    ax.imshow(mean_color_image(image, token_map.numpy(), empty=(225, 228, 232)))
    ax.set_title(f"{count} tokens")
    ax.set_axis_off()

# %%
# The text, a row per sample: placeholders between start and end, then the caption, of which alone a
# loss is taken.

placeholder = language.convert_tokens_to_ids("<|visual_token|>")
kind = np.select(
    [batch["attention_mask"] == 0, batch["input_ids"] == placeholder, batch["labels"] != -100],
    [0, 1, 3],
    2,
)
names = ["padding", "visual token", "start, end", "supervised text"]
colours = ["#e1e4e8", "#5b8def", "#102042", "#f2a03d"]
figure, ax = plt.subplots(figsize=(10, 2.2), layout="constrained")
ax.pcolormesh(
    kind[::-1], cmap=ListedColormap(colours), vmin=-0.5, vmax=3.5, edgecolors="white", linewidth=1
)
ax.set(
    yticks=[0.5, 1.5, 2.5],
    yticklabels=["rocket", "cat", "astronaut"],
    xlabel="position in input_ids",
)
ax.spines[:].set_visible(False)
handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in colours]
figure.legend(handles, names, ncols=4, loc="outside upper center", frameon=False)
