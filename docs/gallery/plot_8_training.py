"""
A training step
===============

From a batch to a loss: tokens become vectors, vectors stand among the embeddings of the text, and a
model of any kind reads both. Here a transformer of one layer learns the names of four photos.
"""

# sphinx_gallery_thumbnail_number = 2
import matplotlib.pyplot as plt
import numpy as np
import torch
from skimage import data
from torch import nn

from subtok_data import SubobjectCollator, SubobjectTokenizer, TokenEmbedding
from subtok_data.nn import FeatureEncoder
from subtok_data.viz import outline_image

torch.manual_seed(0)
names = ["astronaut", "chelsea", "coffee", "rocket"]
rows = [{"image": getattr(data, name)(), "label": i} for i, name in enumerate(names)]
tokenizer = SubobjectTokenizer(num_tokens=40, size=256)
batch = SubobjectCollator(tokenizer)(rows)


class Classifier(nn.Module):
    """One vector per token, one layer of attention, one name."""

    def __init__(self, width=64):
        super().__init__()
        self.encoder = FeatureEncoder(nn.Conv2d(3, 32, 8, stride=8), stride=8)
        self.embedding = TokenEmbedding(
            feature_dim=32, hidden_size=width, stride=self.encoder.stride
        )
        self.mixer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, len(names))

    def forward(self, batch):
        vectors = self.embedding(
            self.encoder(batch["pixel_values"]), batch
        )  # all tokens, image after image
        self.vectors = vectors
        real = batch["visual_token_mask"]
        padded = vectors.new_zeros(*real.shape, vectors.shape[1]).masked_scatter(
            real[..., None], vectors
        )
        mixed = self.mixer(padded, src_key_padding_mask=~real)
        return self.head((mixed * real[..., None]).sum(1) / real.sum(1, keepdim=True))


model = Classifier()
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
losses = []
for _ in range(30):
    loss = nn.functional.cross_entropy(model(batch), batch["label"])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

figure, ax = plt.subplots(figsize=(7, 2.8), layout="constrained")
ax.plot(losses, color="#102042")
ax.set(xlabel="step", ylabel="cross entropy", ylim=(0, None))
ax.spines[["top", "right"]].set_visible(False)

# %%
# A gradient belongs to a token, so it can be drawn on the image: how much each token's vector moves
# the score of the right name.

logits = model(batch)
scores = logits.gather(1, batch["label"][:, None]).sum()
(gradient,) = torch.autograd.grad(scores, model.vectors)
strengths = (
    (gradient * model.vectors).sum(1).abs().detach().split(batch["num_visual_tokens"].tolist())
)

figure, axes = plt.subplots(1, 4, figsize=(11, 3), layout="constrained")
for ax, row, strength, name in zip(axes, rows, strengths, names):
    tokens = tokenizer(row["image"])
    heat = plt.cm.YlOrRd(((strength / strength.quantile(0.9)).clamp(max=1)).numpy())[
        tokens.token_map
    ][..., :3]
    shown = (0.45 * tokens.image + 0.55 * 255 * heat).astype(np.uint8)
    ax.imshow(outline_image(shown, tokens.token_map, color=(255, 255, 255), width=0.8))
    ax.set_title(name)
    ax.set_axis_off()

# %%
# Four photos learned by heart say nothing about a model; :doc:`/vlm` trains one that writes
# captions.
