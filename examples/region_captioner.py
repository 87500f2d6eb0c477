"""A small region captioner: features, a vector for each region, a decoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from subtok_data import TokenEmbedding
from subtok_data.boundary import load_network
from subtok_data.nn import FeatureEncoder
from subtok_data.text import region_text_loss

__all__ = ["RegionCaptioner", "lite_encoder"]

_CHANNELS = 112 + 320


class LiteFeatures(nn.Module):
    """Features of EfficientNet-Lite0 at strides 16 and 32, side by side at stride 16."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.stem, self.stages = net.stem, net.stages

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.stem(pixels)
        for stage in self.stages[:5]:
            x = stage(x)
        deep = x
        for stage in self.stages[5:]:
            deep = stage(deep)
        deep = nn.functional.interpolate(deep, x.shape[-2:], mode="bilinear", align_corners=False)
        return torch.cat([x, deep], dim=1)


def lite_encoder(weights: Path | None = None) -> tuple[FeatureEncoder, int]:
    """Frozen encoder and its channels: of the packaged boundary model, or with other weights."""
    net: Any = load_network(None).module
    if weights is not None:
        net.load_imagenet(torch.load(weights, weights_only=True, map_location="cpu"))
    net = net.float().eval()
    return FeatureEncoder(LiteFeatures(net), frozen=True, stride=16), _CHANNELS


class RegionCaptioner(nn.Module):
    """Captions each region from the vector of its token and one of the whole picture.

    The sequence of a region is its token's vector, the mean vector of all tokens of the picture by
    area, then the text.

    Parameters
    ----------
    encoder : FeatureEncoder
        Gives ``channels`` features.
    channels : int
        See there.
    llm : PreTrainedModel
        Any causal language model of transformers.
    """

    prefix_length = 2

    def __init__(self, encoder: FeatureEncoder, channels: int, llm: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.llm = llm
        hidden = llm.get_input_embeddings().embedding_dim
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.embedding = TokenEmbedding(channels, hidden, shape_size=8, stride=16, mlp_ratio=2.0)
        self.drop = nn.Dropout(0.2)

    def prefix(self, batch: Mapping[str, Any]) -> Tensor:
        """Two vectors for each region, (R, 2, hidden)."""
        features = self.norm(self.encoder(batch["pixel_values"]))
        vectors = self.embedding(features, batch, layout="padded")
        whole = (vectors * batch["visual_token_areas"][..., None]).sum(1)
        image = batch["region_to_image"]
        own = vectors[image, batch["region_to_token"]]
        return self.drop(torch.stack([own, whole[image]], dim=1))

    def loss(self, batch: Mapping[str, Any], *, label_smoothing: float = 0.0) -> Tensor:
        """Mean next-token loss of all texts."""
        prefix = self.prefix(batch)
        text = self.llm.get_input_embeddings()(batch["region_input_ids"])
        ones = torch.ones(prefix.shape[:2], dtype=torch.int64)
        mask = torch.cat([ones, batch["region_attention_mask"]], dim=1)
        embeds = torch.cat([prefix, text], dim=1)
        logits = self.llm(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits
        return region_text_loss(logits, batch["region_labels"], label_smoothing=label_smoothing)

    @torch.no_grad()
    def generate(self, batch: Mapping[str, Any], eos: int, max_new_tokens: int = 12) -> list[Any]:
        """Greedy captions: token ids of each region, up to the end token."""
        if not len(batch["region_to_token"]):
            return []
        written = self.llm.generate(
            inputs_embeds=self.prefix(batch),
            attention_mask=torch.ones(len(batch["region_to_token"]), 2, dtype=torch.int64),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=eos,
        )
        return list(written)
