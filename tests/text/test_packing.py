"""Packed batches: the same losses as padded ones, and the way back."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from helpers.tiny_tokenizers import byte_tokenizer
from hypothesis import given, settings, strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from subtok_data.errors import ConfigError
from subtok_data.text import (
    TextConfig,
    TextEncoder,
    layout_text,
    pack_batch,
    packing_refusal,
    text_efficiency,
    unpack_batch,
)


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(TextConfig(byte_tokenizer(), caption="text"))


def visual_keys(counts: list[list[int]], multiple: int = 1) -> dict[str, torch.Tensor]:
    """Visual part of a batch; the values are random, only shapes and padding matter here."""
    flat = [n for own in counts for n in own]
    generator = torch.Generator().manual_seed(sum(flat))
    width = -(-max(flat) // multiple) * multiple
    mask = torch.arange(width) < torch.tensor(flat)[:, None]
    boxes = torch.rand(len(flat), width, 4, generator=generator) * mask[..., None]
    shapes = (torch.rand(len(flat), width, 3, 3, generator=generator) > 0.5) & mask[..., None, None]
    classes = torch.randint(0, 9, (len(flat), width), generator=generator)
    return {
        "pixel_values": torch.rand(len(flat), 3, 4, 4, generator=generator),
        "visual_token_map": torch.zeros(len(flat), 4, 4, dtype=torch.int32),
        "num_visual_tokens": torch.tensor(flat),
        "visual_token_mask": mask,
        "visual_token_boxes": boxes,
        "visual_token_areas": torch.rand(len(flat), width, generator=generator) * mask,
        "visual_token_shapes": shapes,
        "visual_token_class": classes.masked_fill(~mask, -1),
        "sample_index": torch.arange(len(counts)),
    }


def make(
    encoder: TextEncoder, texts: list[str], counts: list[list[int]], **options
) -> dict[str, torch.Tensor]:
    encoded = [
        encoder.encode({"text": text}, len(own)) for text, own in zip(texts, counts, strict=True)
    ]
    return layout_text(encoder, encoded, counts, visual_keys(counts), **options)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), min_size=1, max_size=4),
    seed=st.integers(0, 999),
    side=st.sampled_from(["right", "left"]),
    multiple=st.integers(1, 8),
    visual_multiple=st.integers(1, 4),
)
def test_unpack_restores_the_padded_batch(encoder, counts, seed, side, multiple, visual_multiple):
    rng = np.random.default_rng(seed)
    texts = ["ab c"[: rng.integers(0, 5)] * int(rng.integers(1, 6)) for _ in counts]
    own = TextEncoder(TextConfig(encoder.config.tokenizer, caption="text", padding_side=side))
    encoded = [own.encode({"text": t}, len(n)) for t, n in zip(texts, counts, strict=True)]
    visual = visual_keys(counts, visual_multiple)
    padded = layout_text(own, encoded, counts, visual, pad_to_multiple_of=multiple)
    packed = layout_text(own, encoded, counts, visual, packing=True)
    restored = unpack_batch(
        packed,
        pad_id=own.pad_id,
        padding_side=side,
        pad_to_multiple_of=multiple,
        visual_multiple_of=visual_multiple,
    )
    assert restored.keys() == padded.keys()
    for name, value in padded.items():
        assert torch.equal(restored[name], value), name
        assert restored[name].dtype == value.dtype
    assert packed["input_ids"].shape == (1, int(padded["attention_mask"].sum()))
    placeholders = int((packed["input_ids"] == own.placeholder_id).sum())
    assert placeholders == len(packed["visual_token_boxes"]) == sum(map(sum, counts))


def test_packed_layout_is_the_contract(encoder):
    packed = make(encoder, ["a ball", "dogs"], [[2], [3, 1]], packing=True)
    assert next(iter(packed)) == "input_ids"
    lengths = packed["cu_seq_lens_q"].diff().tolist()
    expected = torch.cat([torch.arange(n) for n in lengths])[None]
    assert torch.equal(packed["position_ids"], expected)
    assert packed["cu_seq_lens_q"].dtype == packed["cu_seq_lens_k"].dtype == torch.int32
    assert packed["max_length_q"] == packed["max_length_k"] == max(lengths)
    assert isinstance(packed["max_length_q"], int)
    assert (packed["labels"][packed["position_ids"] == 0] == -100).all()
    assert packed["visual_cu_seqlens"].tolist() == [0, 2, 5, 6]
    assert packed["visual_cu_seqlens"].dtype == torch.int32
    assert packed["visual_token_shapes"].shape == (6, 3, 3)
    assert "attention_mask" not in packed
    assert "visual_token_mask" not in packed


def small_llama(vocabulary: int, attention: str) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    return LlamaForCausalLM._from_config(config, attn_implementation=attention).eval()


def token_losses(model: LlamaForCausalLM, batch: dict) -> torch.Tensor:
    """Loss of every label, in order of samples."""
    names = ("input_ids", "attention_mask", "position_ids", "cu_seq_lens_q", "cu_seq_lens_k")
    names += ("max_length_q", "max_length_k")
    given = {name: batch[name] for name in names if name in batch}
    with warnings.catch_warnings():
        # torch announces a future signature of the mask that transformers builds for FlexAttention.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        logits = model(**given, use_cache=False).logits
    labels = batch["labels"][:, 1:]
    learned = labels != -100
    return torch.nn.functional.cross_entropy(
        logits[:, :-1][learned], labels[learned], reduction="none"
    )


@pytest.mark.parametrize(
    "attention", ["eager", "sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)]
)
@torch.no_grad()
def test_loss_of_packed_equals_padded_per_token(encoder, attention):
    texts = ["A red ball on the grass", "Two dogs", "a", "What is this? A red ball"]
    counts = [[3], [5, 2], [1], [4]]
    model = small_llama(len(encoder.config.tokenizer), attention)
    padded = make(encoder, texts, counts)
    ours = token_losses(model, make(encoder, texts, counts, packing=True))
    expected = token_losses(model, padded)
    assert ours.numel() == int((padded["labels"] != -100).sum())
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_cache_would_mix_samples(encoder):
    # Why use_cache=False is asked for: this is what stock models do otherwise.
    texts, counts = ["A red ball on the grass", "Two dogs"], [[3], [5]]
    model = small_llama(len(encoder.config.tokenizer), "sdpa")
    packed = make(encoder, texts, counts, packing=True)
    ids, positions = packed["input_ids"], packed["position_ids"]
    cached = model(input_ids=ids, position_ids=positions, use_cache=True).logits
    separate = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    assert not torch.allclose(cached, separate, atol=1e-3)


def test_efficiency_counts_what_is_content(encoder):
    texts, counts = ["A red ball on the grass", "Two dogs"], [[3], [5]]
    padded = make(encoder, texts, counts)
    packed = make(encoder, texts, counts, packing=True)
    before, after = text_efficiency(padded), text_efficiency(packed)
    assert before["text_padding"] == pytest.approx(
        1 - before["packed_length"] / before["padded_length"]
    )
    assert before["packed_length"] == after["packed_length"] == packed["input_ids"].numel()
    assert before["padded_length"] == after["padded_length"] == padded["input_ids"].numel()
    assert after["text_padding"] == 0
    assert before["visual_padding"] == pytest.approx(0.2)


def test_batches_that_cannot_be_packed_are_refused(encoder):
    with pytest.raises(ConfigError, match="with text"):
        pack_batch({"pixel_values": torch.zeros(1, 3, 2, 2)})
    batch = make(encoder, ["a", "b"], [[1], [1]])
    batch["attention_mask"][1] = 0
    with pytest.raises(ConfigError, match="at least one token"):
        pack_batch(batch)


def test_packing_is_refused_where_it_would_be_wrong():
    from transformers import Qwen2VLConfig

    packing_refusal(LlamaConfig())
    with pytest.raises(ConfigError, match=r"'qwen2_vl'.*several axes"):
        packing_refusal(Qwen2VLConfig())
    with pytest.raises(ConfigError, match="dispatch_batches=False"):
        packing_refusal(dispatch_batches=True)
    with pytest.raises(ConfigError, match="split_batches=False"):
        packing_refusal(LlamaConfig(), split_batches=True)
