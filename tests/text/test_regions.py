"""Texts of regions: ids, labels, the shift, and SCA's sequence."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny_tokenizers import byte_tokenizer, word_tokenizer
from tokenizers.processors import TemplateProcessing
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from subtok_data.batch import IGNORE_INDEX
from subtok_data.batch.validate import _region_text_problems
from subtok_data.errors import ConfigError, SampleError
from subtok_data.text import RegionText, layout_regions, region_text_loss

TEXTS = ["A red ball", "Two dogs", "What is this ? A red ball . Two dogs . A red ball . Two dogs ."]


def batch_of(config: RegionText, texts: list[str], row: dict | None = None) -> dict:
    batch = layout_regions(config, config.encode(texts, row or {}))
    owners = torch.zeros(len(texts), dtype=torch.int64)
    assert list(_region_text_problems({"region_to_image": owners, **batch})) == []
    return batch


def test_every_word_and_the_end_are_supervised():
    words = word_tokenizer()
    batch = batch_of(RegionText(words), TEXTS)
    ids, labels = batch["region_input_ids"], batch["region_labels"]
    assert ids.shape == labels.shape
    for row, text in enumerate(TEXTS):
        expected = [*words(text, add_special_tokens=False)["input_ids"], words.eos_token_id]
        length = int(batch["region_attention_mask"][row].sum())
        assert ids[row, :length].tolist() == labels[row, :length].tolist() == expected
        assert (labels[row, length:] == IGNORE_INDEX).all()
        assert (ids[row, length:] == words.pad_token_id).all()


def test_a_leading_token_is_not_supervised():
    words = word_tokenizer()
    batch = batch_of(RegionText(words, bos=True), TEXTS)
    assert (batch["region_input_ids"][:, 0] == words.bos_token_id).all()
    assert (batch["region_labels"][:, 0] == IGNORE_INDEX).all()
    assert (batch["region_labels"][:, 1] != IGNORE_INDEX).all()


def test_long_texts_are_cut_and_end():
    words = word_tokenizer()
    batch = batch_of(RegionText(words, max_length=6), TEXTS)
    assert batch["region_input_ids"].shape == (3, 6)
    assert batch["region_input_ids"][2, -1] == words.eos_token_id
    padded = batch_of(RegionText(words, max_length=6, pad_to_multiple_of=8), TEXTS)
    assert padded["region_input_ids"].shape == (3, 8)


def test_no_regions_give_empty_tensors():
    batch = batch_of(RegionText.sca(word_tokenizer()), [], {"task_type": "caption"})
    assert batch["region_input_ids"].shape == (0, 0)
    assert batch["region_labels"].shape == (0, 1)
    assert batch["region_task"].shape == (0,)
    assert batch["region_labels"].dtype == torch.int64


def beginning_tokenizer() -> PreTrainedTokenizerFast:
    """Put ``bos`` before every text, as Llama's tokenizers do."""
    words = byte_tokenizer()
    words.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", words.bos_token_id)]
    )
    return words


@pytest.mark.parametrize("tokenizer", [byte_tokenizer, beginning_tokenizer])
def test_sca_rows_are_what_its_collator_makes(tokenizer):
    words = tokenizer()
    config = RegionText.sca(words)
    texts = ["red ball", "x" * 100]
    batch = batch_of(config, texts, {"task_type": "recognition"})
    ids, labels = batch["region_input_ids"], batch["region_labels"]
    assert ids.shape == (2, 19), "18 tokens of text and the end"
    assert labels.shape == (2, 20), "the cap of 20"
    for row, text in enumerate(texts):
        # Its own call of the tokenizer; then the end is appended.
        own = words(text, truncation=True, max_length=18)["input_ids"]
        assert (own[0] == words.bos_token_id) == (tokenizer is beginning_tokenizer)
        expected = [*own, words.eos_token_id]
        padding = 19 - len(expected)
        assert ids[row].tolist() == expected + [words.pad_token_id] * padding
        assert labels[row].tolist() == [IGNORE_INDEX, *expected] + [IGNORE_INDEX] * padding
    assert batch["region_task"].tolist() == [0, 0]
    caption = batch_of(config, texts, {"task_type": "caption"})
    assert caption["region_task"].tolist() == [1, 1]


def tiny_llm(vocabulary: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval()


def forward(model: LlamaForCausalLM, batch: dict, prefix: int) -> torch.Tensor:
    """Logits of prefix vectors, then text, as SCA's model runs them."""
    torch.manual_seed(1)
    ids, mask = batch["region_input_ids"], batch["region_attention_mask"]
    queries = torch.randn(len(ids), prefix, model.config.hidden_size)
    embeds = torch.cat([queries, model.get_input_embeddings()(ids)], dim=1)
    attention = torch.cat([torch.ones(len(ids), prefix, dtype=mask.dtype), mask], dim=1)
    with torch.no_grad():
        return model(inputs_embeds=embeds, attention_mask=attention, use_cache=False).logits


def test_the_shift_of_sca_predicts_the_next_token():
    words = byte_tokenizer()
    config = RegionText.sca(words)
    model = tiny_llm(len(words))
    batch = batch_of(config, TEXTS, {"task_type": "caption"})
    prefix = 6 + 8  # task and query tokens
    logits = forward(model, batch, prefix)
    assert logits.shape[1] == prefix + batch["region_input_ids"].shape[1]
    # The published loss: the logits of the last labels, shifted by one against them.
    labels = batch["region_labels"]
    last = logits[:, -labels.shape[1] :]
    published = functional.cross_entropy(
        last[:, :-1].reshape(-1, last.shape[-1]),
        labels[:, 1:].reshape(-1),
        ignore_index=IGNORE_INDEX,
    )
    # Next-token prediction, one token at a time, in plain loops.
    terms = []
    for row in range(len(TEXTS)):
        for place in range(int(batch["region_attention_mask"][row].sum())):
            before = logits[row, prefix + place - 1]
            token = batch["region_input_ids"][row, place]
            terms.append(-before.log_softmax(-1)[token])
    expected = torch.stack(terms).mean()
    assert torch.allclose(published, expected, rtol=1e-5)
    assert torch.allclose(region_text_loss(logits, labels), expected, rtol=1e-5)
    generic = batch_of(RegionText(words, max_length=19), TEXTS)
    assert torch.equal(generic["region_input_ids"], batch["region_input_ids"])
    assert torch.allclose(region_text_loss(logits, generic["region_labels"]), expected, rtol=1e-5)


def test_loss_agrees_with_transformers_own_where_the_text_starts_with_bos():
    words = byte_tokenizer()
    batch = batch_of(RegionText(words, bos=True), TEXTS)
    model = tiny_llm(len(words))
    with torch.no_grad():
        output = model(
            input_ids=batch["region_input_ids"],
            attention_mask=batch["region_attention_mask"],
            labels=batch["region_labels"],
        )
    assert torch.allclose(region_text_loss(output.logits, batch["region_labels"]), output.loss)


def test_loss_of_nothing_is_zero_and_of_no_prefix_an_error():
    assert float(region_text_loss(torch.ones(0, 3, 5), torch.zeros(0, 0, dtype=torch.long))) == 0
    with pytest.raises(ValueError, match="prefix"):
        region_text_loss(torch.ones(1, 2, 5), torch.tensor([[1, 2]]))


def test_what_cannot_work_is_refused():
    words = word_tokenizer()
    config = RegionText.sca(words)
    with pytest.raises(SampleError, match="task_type.*None.*RegionDataset"):
        config.encode(["A red ball"], {})
    with pytest.raises(SampleError, match="no token"):
        RegionText(words).encode(["A", ""], {})
    with pytest.raises(ConfigError, match="no room for a word: bos and eos take 2"):
        RegionText(beginning_tokenizer(), max_length=2)
    for options in ({"max_length": 1}, {"pad_to_multiple_of": 0}, {"ignored_labels": -1}):
        with pytest.raises(ConfigError):
            RegionText(words, **options)
    with pytest.raises(ConfigError):
        RegionText.sca(words, max_length=2)
    words.eos_token = None
    with pytest.raises(ConfigError, match="end token"):
        RegionText(words)
