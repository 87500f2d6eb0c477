"""A LLaVA model with visual tokens is saved, read and resumed with all its weights."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_llava import small_llava
from helpers.tiny_tokenizers import byte_tokenizer
from torch import nn
from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments

from subtok_data import PatchSegmenter, SubobjectCollator, SubobjectTokenizer, TextConfig
from subtok_data.batch import model_inputs
from subtok_data.errors import ConfigError
from subtok_data.integrations import (
    SubobjectTrainerMixin,
    load_subobject_model,
    use_subobject_tokens,
)
from subtok_data.nn import FeatureEncoder, TokenEmbedding


class SubobjectTrainer(SubobjectTrainerMixin, Trainer):
    loader_options = {"executor": "inline", "prefetch_batches": 0}  # noqa: RUF012


@pytest.fixture(scope="module")
def collator() -> SubobjectCollator:
    text = TextConfig(byte_tokenizer(), caption="caption")
    tokenizer = SubobjectTokenizer(PatchSegmenter(16), size=64)
    return SubobjectCollator(tokenizer, text=text)


def rows() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)
    return [{"image": image, "caption": f"caption {i}"} for i, image in enumerate(images)]


def converted(collator: SubobjectCollator, *, tied: bool = False):
    encoder = collator.options.encoder
    model = small_llava(len(encoder.config.tokenizer), image_size=64, tied=tied)
    return use_subobject_tokens(model, encoder.placeholder_id)


def trainer_of(folder, collator, **options) -> SubobjectTrainer:
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=2,
        learning_rate=0.01,
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
        save_steps=2,
        max_steps=6,
        logging_steps=1,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **options,
    )
    return SubobjectTrainer(
        converted(collator),
        arguments,
        data_collator=collator,
        train_dataset=rows(),
        eval_dataset=rows()[:4],
    )


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_trainer_resumes_with_equal_losses(tmp_path, collator, caplog):
    whole = trainer_of(tmp_path, collator)
    whole.train()
    resumed = trainer_of(tmp_path, collator)
    with caplog.at_level(logging.WARNING):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert "missing keys" not in caplog.text
    assert len(losses(whole)) == 6
    assert losses(resumed) == losses(whole)  # the first four are read from the checkpoint
    assert_same_weights(whole.model, resumed.model)
    assert_same_weights(load_subobject_model(tmp_path / "checkpoint-6"), whole.model)


def test_trainer_loads_the_best_model_at_the_end(tmp_path, collator):
    trainer = trainer_of(
        tmp_path,
        collator,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # the worst, so that it is not the last
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert not best.endswith("checkpoint-6")
    assert_same_weights(load_subobject_model(best), trainer.model)


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}])
@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_saved_models_are_read_again(tmp_path, collator, options, tied):
    model = converted(collator, tied=tied).eval()
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(tmp_path, **options)
    again = load_subobject_model(tmp_path)
    assert_same_weights(model, again)
    assert not again.training
    assert again.generation_config.max_new_tokens == 7
    batch = collator(rows()[:2])
    expected = model(**model_inputs(batch, model)).logits
    assert torch.equal(again(**model_inputs(batch, again)).logits, expected)
    again.save_pretrained(tmp_path / "twice")
    assert_same_weights(load_subobject_model(tmp_path / "twice"), model)


def test_the_dtype_is_kept(tmp_path, collator):
    model = converted(collator).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    assert_same_weights(load_subobject_model(tmp_path), model)


def test_own_encoder_and_embedding_are_given_again(tmp_path, collator):
    def parts() -> dict[str, Any]:
        encoder = FeatureEncoder(nn.Conv2d(3, 12, 8, stride=8), stride=8)
        return {"encoder": encoder, "embedding": TokenEmbedding(12, 32, shape_size=4, stride=8)}

    text = collator.options.encoder
    model = small_llava(len(text.config.tokenizer))
    use_subobject_tokens(model, text.placeholder_id, **parts())
    model.save_pretrained(tmp_path)
    assert_same_weights(load_subobject_model(tmp_path, **parts()), model)
    with pytest.raises(ConfigError, match=r"another encoder or embedding|do not fit"):
        load_subobject_model(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_other_ways_to_read_it_are_refused(tmp_path, collator):
    model = converted(collator)
    with pytest.raises(ConfigError, match="once"):
        use_subobject_tokens(model, 5)
    model.save_pretrained(tmp_path / "converted")
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "converted")
    with pytest.raises(ConfigError, match="load_subobject_model"):
        use_subobject_tokens(stock, 5)
    small_llava(40).save_pretrained(tmp_path / "stock")
    with pytest.raises(ConfigError, match="without visual tokens"):
        load_subobject_model(tmp_path / "stock")
    with pytest.raises(ConfigError, match=r"no config\.json"):
        load_subobject_model(tmp_path)
    (tmp_path / "converted" / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"has no model\.safetensors"):
        load_subobject_model(tmp_path / "converted")
