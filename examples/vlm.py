"""A small vision-language model: any causal language model that reads visual tokens.

Used by ``train_vlm.py`` and ``compare_tokenizers.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from subtok_data.batch import PACKED_KEYS
from subtok_data.nn import FeatureEncoder, TokenEmbedding, merge_visual_tokens

__all__ = ["VLM", "small_encoder", "small_llm", "train_tokenizer", "word_tokenizer"]


class Block(nn.Module):
    """Depthwise 5 x 5 convolution and a two-layer perceptron, with a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spread = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm = nn.GroupNorm(1, width)
        self.mix = nn.Sequential(
            nn.Conv2d(width, 2 * width, 1), nn.GELU(), nn.Conv2d(2 * width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(self.norm(self.spread(x)))


class Normalise(nn.Module):
    """Bytes or floats in [0, 1] to about unit variance: the loader may send the bytes."""

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
        return (x - 0.5) / 0.25


def small_encoder(width: int = 64, blocks: int = 2) -> FeatureEncoder:
    """Encoder to be trained from scratch: stride 4, ``width`` channels."""
    layers: list[nn.Module] = [
        Normalise(),
        nn.Conv2d(3, width // 2, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Conv2d(width // 2, width, 3, stride=2, padding=1),
        *(Block(width) for _ in range(blocks)),
    ]
    return FeatureEncoder(nn.Sequential(*layers), stride=4)


def small_llm(vocabulary: int, hidden: int = 128, layers: int = 4) -> LlamaForCausalLM:
    """Llama-type decoder with random weights."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def train_tokenizer(texts: Iterable[str], vocabulary: int = 2000) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the given texts."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Words and punctuation marks of the given texts as tokens, for texts of few words."""
    split = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    words = {word for text in texts for word, _ in split.pre_tokenize_str(text)}
    names = ["<pad>", "<s>", "</s>", "<unk>", *sorted(words)]
    core = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = split
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


class VLM(nn.Module):
    """Encoder, token embedding and language model.

    Parameters
    ----------
    llm : PreTrainedModel
        Any causal language model of transformers.
    encoder : FeatureEncoder
        Gives feature maps of ``feature_dim`` channels.
    feature_dim : int
        See there.
    placeholder_id : int
        Id of the visual placeholder.
    """

    def __init__(
        self, llm: Any, encoder: FeatureEncoder, feature_dim: int, placeholder_id: int
    ) -> None:
        super().__init__()
        self.llm = llm
        self.encoder = encoder
        self.placeholder_id = placeholder_id
        hidden = llm.get_input_embeddings().embedding_dim
        self.embedding = TokenEmbedding(
            feature_dim, hidden, shape_size=8, stride=encoder.stride, mlp_ratio=2.0
        )

    def inputs_embeds(self, batch: Mapping[str, Any]) -> Tensor:
        """Text embeddings with visual vectors at the placeholders."""
        features = self.encoder(batch["pixel_values"])
        vectors = self.embedding(features, batch, cells=batch.get("token_cells"))
        ids = batch["input_ids"]  # on the CPU, counting placeholders waits for no device
        moved = ids.to(vectors.device, non_blocking=ids.is_pinned())
        text = self.llm.get_input_embeddings()(moved)
        return merge_visual_tokens(text, ids, vectors, self.placeholder_id)

    def forward(self, batch: Mapping[str, Any]) -> Any:
        """Output of the language model, with its loss."""
        packed = {name: batch[name] for name in PACKED_KEYS if name in batch}
        return self.llm(
            inputs_embeds=self.inputs_embeds(batch),
            attention_mask=batch.get("attention_mask"),
            labels=batch["labels"],
            use_cache=False,
            **packed,
        )

    @torch.no_grad()
    def generate(self, batch: Mapping[str, Any], max_new_tokens: int = 40) -> Tensor:
        """Greedy continuation of a left-padded batch: ids of the new tokens."""
        return self.llm.generate(
            inputs_embeds=self.inputs_embeds(batch),
            attention_mask=batch["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
